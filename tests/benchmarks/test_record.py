"""The form of a benchmark's result."""

import json

import pytest

from benchmarks import record


@pytest.mark.parametrize(
    ("value", "limit", "better", "holds"),
    [
        (0.2, 0.3, "lower", True),
        (0.4, 0.3, "lower", False),
        (0.98, 0.97, "higher", True),
        (0.96, 0.97, "higher", False),
        (1.2e-7, 1e-6, "lower", True),
    ],
)
def test_a_goal_says_whether_it_holds(value, limit, better, holds):
    """A goal holds on its better side, the limit included, and a tiny value is not shown as zero."""
    found = record.goal("g", value, limit, better)
    assert found["holds"] is holds
    assert found["value"] == pytest.approx(value)


def test_a_result_is_written_or_only_shown(tmp_path, monkeypatch, capsys):
    """A full run leaves its file with further entries in it; a quick one prints the same table and leaves none."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    given = {
        "rows": [{"name": "one", "seconds": 1.5}],
        "goals": [record.goal("fast", 1.5, 2.0)],
        "seconds": 3.0,
        "more": {"setting": {"quick": 1}},
    }
    record.record("quick", **given, keep=False)
    assert list(tmp_path.iterdir()) == []
    assert "one   1.5" in capsys.readouterr().out
    written = json.loads(record.record("full", **given).read_text())
    assert (written["rows"], written["setting"]) == (given["rows"], {"quick": 1})
    assert written["goals"][0]["holds"] is True
