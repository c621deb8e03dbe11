"""The proof of the diagnosis in small: two seeds and a short training, with the functions that the step uses."""

from datetime import date

import pytest

from benchmarks.proof import diagnosis as proof
from pipelines.cases.loans.source import KINDS
from pipelines.drift_report import Diagnosis


@pytest.mark.long
@pytest.mark.parametrize("seed", [300, 301])
def test_every_kind_and_its_day_are_named(seed):
    """On a trained champion each kind of drift is named with the day on which it set in.

    None is named without drift.
    """
    cells = list(proof.judged(proof.Champion(seed, proof.PARAMS.train.model_copy(update={"epochs": 4}))))
    assert [(cell["kind"], cell["found"]) for cell in cells] == [(kind, kind) for kind in KINDS]
    assert all(cell["right"] for cell in cells)
    # What the estimate said before labels came held, unless the rule itself had changed.
    assert {cell["kind"]: cell["estimates_inside"] == cell["estimates"] > 0 for cell in cells} == dict.fromkeys(
        KINDS, True
    ) | {"concept": False}


def test_a_wrong_day_is_not_right(monkeypatch):
    """A diagnosis counts only with the kind and the very day of the drift; of none every window must say so."""

    class Wrong:
        seed = 0

        def diagnoses(self, kind):
            quiet = [Diagnosis(kind="none")] * proof.QUIET_DAYS
            wrong = Diagnosis(kind=kind if kind != "none" else "concept", since=date(2021, 3, 16))
            return [*quiet, wrong, Diagnosis(kind=kind)], ()

    assert [cell["right"] for cell in proof.judged(Wrong())] == [False] * len(KINDS)
