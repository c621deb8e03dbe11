"""pipelines/drift_report.py: what of older reports is still read, and that a state's name is written down once."""

import ast
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from pipelines.drift_report import JUDGED, UNJUDGED, DriftReport, Retrained, State
from pipelines.storage import canonical_json
from tests.pipelines.alerts.found import WINDOW, report

ROOT = Path(__file__).parents[2]
LIVE = ("perennial", "pipelines", "serving", "embedded", "plugins", "dags", "compose")


def test_a_report_of_an_older_release_is_read():
    """What it lacks has its default, what nobody knows any more is left out.

    Its sentences have no code but are kept.
    """
    old = DriftReport.model_validate(
        report().model_dump(mode="json")
        | {
            "labels": {},
            "quality": {
                "problems": ["age: 9.0% missing"],
                "warnings": ["60 rows are too few to compare"],
                "volume": None,
                "page": "could not be drawn (RuntimeError)",
                "mood": "good",
            },
            "policy": {"path": ["WATCH"], "marks": [{"end": "2020-06-10T00:00:00Z"}], "luck": 1},
            "diagnosis": {},
            "performance": {"rolling": []},
        }
    )
    [problem] = old.quality.problems
    assert (problem.code, problem.field, str(problem)) == ("not_known", None, "age: 9.0% missing")
    assert (old.quality.page, old.quality.page_error) == (None, "could not be drawn (RuntimeError)")
    assert (old.policy.path, old.policy.marks[0].end) == ((State.WATCH,), datetime(2020, 6, 10, tzinfo=UTC))
    assert (old.policy.rule, old.policy.revision, old.diagnosis.performance) == (None, 1, None)
    assert (old.headroom.code, old.headroom.gain) == ("not_measured", None)
    assert old.coverage() == {}
    assert DriftReport.model_validate_json(canonical_json(old)) == old


def test_coverage_is_that_of_all_versions():
    """Rows of all versions that served in a window count together.

    A report without figures has the champion's share.
    """
    figures = {"start": WINDOW.start, "end": WINDOW.end}
    two = [
        {**figures, "version": 1, "rows": 100, "labelled": 40},
        {**figures, "version": 2, "rows": 300, "labelled": 0},
    ]
    assert report(performance={"rolling": two}).coverage() == {WINDOW.end: 0.1}
    assert report(labels={"labelled": {WINDOW.end.isoformat(): 0.5}}).coverage() == {WINDOW.end: 0.5}


def test_every_state_is_judged_or_not():
    """The policy's states and those of windows that were not judged are all there are."""
    assert {*JUDGED, *UNJUDGED} == set(State)


def test_rules_and_dashboards_know_only_what_is_declared():
    """Prometheus' rules and Grafana's queries ask for verdicts and states that exist."""
    texts = [ROOT / "pipelines" / "alerts" / "prometheus.rules.yaml", *(ROOT / "compose" / "grafana").rglob("*.json")]
    asked = [found for path in texts for found in re.findall(r"perennial_(\w+)\{([^}]*)\}", path.read_text())]
    verdicts = {value for name, labels in asked if name == "retrain_unanswered" for value in _values(labels, "verdict")}
    states = {value for name, labels in asked if name == "policy_state" for value in _values(labels, "state")}
    assert verdicts == {"kept", "missing"}
    assert verdicts <= set(get_args(Retrained))
    assert states <= set(State)


def _values(labels: str, name: str) -> list[str]:
    """The values that one label is compared with."""
    return [value for found in re.findall(rf'\b{name}=~?\\?"([^"\\]*)', labels) for value in found.split("|")]


@pytest.mark.parametrize("folder", LIVE)
def test_a_state_is_spelled_where_it_is_declared(folder):
    """No other file that runs spells the name of a state: a new name would be missing there."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "drift_report.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in set(State)
    ]
    assert found == []
