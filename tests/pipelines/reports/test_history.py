"""`python -m pipelines history`: who released what, when, why, and on which verdict."""

import io
import json
import re
import sys

import pytest
from rich.console import Console

from pipelines import cli, ledger, storage
from pipelines.contracts import Order
from pipelines.reports import history
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, candidate, month


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A ledger with a promotion on a recorded verdict and a rollback."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    found = Settings()
    gate = storage.read_manifest(candidate(found, month(1), bias=0.125, champion=7) / "gate")
    fields = {"case": CASE, "candidate_key": "k", "bundle": "b", "actor": "ada", "as_of": month(1)}
    ledger.append(
        found.ledger,
        Order(
            **fields,
            after=0,
            champion=8,
            action="promote",
            trigger="drift",
            reason="better",
            verdict_hash=gate.facts["verdict_sha256"],
        ),
    )
    ledger.append(
        found.ledger, Order(**fields, after=1, champion=7, action="rollback", trigger="manual", reason="complaints")
    )
    return found


@pytest.mark.usefixtures("settings")
def test_programs_get_one_line_of_json(capfd):
    """Off a terminal the history is one JSON line with every release and its verdict."""
    assert cli.main(["history", "--case", CASE]) == 0
    out = capfd.readouterr().out
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert [(row["champion"], row["action"], row["reason"]) for row in answer["releases"]] == [
        (8, "promote", "better"),
        (7, "rollback", "complaints"),
    ]
    assert answer["releases"][0]["verdict"]["decision"] == "promote"
    assert answer["releases"][1]["verdict"] is None


@pytest.fixture
def judged(settings):
    """The same with a rejected and an inconclusive candidate before and between the releases.

    And with one that was promoted and never released.
    """
    for number, decision in ((0, "reject"), (2, "inconclusive"), (3, "promote")):
        candidate(settings, month(number), bias=0.2 + number / 100, champion=7, decision=decision)
    return settings


@pytest.mark.usefixtures("judged")
def test_verdicts_that_released_nothing_are_in_the_history(capfd):
    """Rejected and inconclusive candidates are told with rule and reason, in order of time.

    The releases keep their keys.
    """
    assert cli.main(["history", "--case", CASE]) == 0
    answer = json.loads(capfd.readouterr().out)
    told = [(row["as_of"][:10], row["decision"], row["reason"], row["seq"]) for row in answer["verdicts"]]
    assert told == [
        ("2008-08-01", "reject", "lift of 0.2", None),
        ("2008-08-31", "promote", "lift of 0.125", 1),
        ("2008-09-30", "inconclusive", "lift of 0.22", None),
        ("2008-10-30", "promote", "lift of 0.23", None),
    ]
    assert [(row["champion"], row["action"]) for row in answer["releases"]] == [(8, "promote"), (7, "rollback")]
    console = Console(file=io.StringIO(), width=200)
    console.print(history.table(CASE, answer["releases"], answer["verdicts"]))
    lines = console.file.getvalue().splitlines()[2:]
    assert [re.split(r"\s{2,}", line)[3] for line in lines] == [
        "rejected",
        "promote",
        "rollback",
        "inconclusive",
        "not released",
    ]
    assert "lift of 0.22" in lines[3]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("settings")
def test_people_get_a_table(monkeypatch):
    """On a terminal the history is a table, and --json still gives the line."""
    monkeypatch.setenv("COLUMNS", "200")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["history", "--case", CASE]) == 0
    text = terminal.getvalue()
    for word in (*history.COLUMNS, "2008-08-31", "v8", "v7", "drift", "ada", "complaints", "lower_bound ("):
        assert word in text
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["history", "--case", CASE, "--json"]) == 0
    json.loads(terminal.getvalue())


def test_empty_history_says_so(tmp_path, monkeypatch):
    """A case without a release has an empty history, and the table says it."""
    console = Console(file=io.StringIO(), width=120)
    console.print(history.table(CASE, history.releases(Settings(home=tmp_path), CASE)))
    assert "bank has no release yet" in console.file.getvalue()


def test_rollback_needs_no_clock_but_a_reason(tmp_path, monkeypatch, capfd):
    """`rollback` runs without --as-of, exits with 2 where there is nothing to roll back.

    It refuses to go without a reason.
    """
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    assert cli.main(["rollback", "--case", CASE, "--reason", "test"]) == 2
    assert "bank has no release yet" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["rollback", "--case", CASE])
