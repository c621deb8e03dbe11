"""pipelines/reports/replay.py: the demo's page says what summary.json says, in the words of the case."""

import re
from datetime import UTC, datetime

import pytest

from pipelines.reports.replay import month_label, page


def _metric(values, *, higher):
    """One metric over two windows; ``values`` are (frozen, perennial, ungated) of each."""
    names = ("frozen", "perennial", "ungated")
    rows = [
        {"month": f"2015 Q{number + 1}", "n": 900, "positives": 600, **dict(zip(names, found, strict=True))}
        for number, found in enumerate(values)
    ]
    means = {
        f"{name}_mean{kind}": sum(row[name] for row in rows) / len(rows) for name in names for kind in ("", "_weighted")
    }
    return {"higher_is_better": higher, "per_month": rows, **means}


def summary(**changes):
    """A small summary.json of the triage case: two quarters, one promotion, one rejection."""
    quiet = {
        "state": "STABLE",
        "action": "none",
        "reason": "",
        "episode": None,
        "max_psi": 0.05,
        "feature": "prediction",
    }
    loud = {**quiet, "state": "DRIFT", "action": "retrain", "reason": "two of three windows are severe", "max_psi": 0.4}
    verdict = {
        "trigger": "schedule",
        "decision": "promote",
        "rule": "lift",
        "reason": "better",
        "n": 500,
        "lift": 0.12,
        "low": 0.05,
        "high": 0.2,
    }
    return {
        "case": "triage",
        "tick": "quarter",
        "min_month_rows": 100,
        "source": "real",
        "source_name": "nvd_cve",
        "notice": "Derived from the National Vulnerability Database",
        "scope": {
            "traffic_rows_per_month": 300,
            "rows_per_training": 2000,
            "seconds_per_training": 90,
            "params": {"train.epochs": 1, "export.int8": False},
        },
        "trainings": [
            {
                "as_of": "2015-01-01T00:00:00Z",
                "rows": 2000,
                "seconds": 61.2,
                "stopped": "finished",
                "strategy": "single",
                "ranks": 1,
            },
            {
                "as_of": "2015-04-01T00:00:00Z",
                "rows": 1990,
                "seconds": 90.3,
                "stopped": "budget",
                "strategy": "single",
                "ranks": 1,
            },
        ],
        "classes": 11,
        "rows_acknowledged": 1800,
        "rows_logged": 1800,
        "errors": 0,
        "drift_runs": 2,
        "training_runs_by_trigger": {"initial": 1, "schedule": 1, "drift": 1, "manual": 0},
        "verdicts": {"promote": 2, "reject": 1, "inconclusive": 0},
        "champions": [
            {
                "version": 1,
                "since": "2015-01-01T00:00:00Z",
                "trigger": "initial",
                "reason": "first",
                "mlflow_run": "a1",
            },
            {
                "version": 2,
                "since": "2015-04-01T00:00:00Z",
                "trigger": "schedule",
                "reason": "better",
                "mlflow_run": "b2",
            },
        ],
        "metrics": {
            "macro_f1": _metric([(0.51, 0.51, 0.51), (0.47, 0.55, 0.57)], higher=True),
            "log_loss": _metric([(1.21, 1.21, 1.21), (1.4, 1.15, 1.18)], higher=False),
            "accuracy": _metric([(0.61, 0.61, 0.61), (0.55, 0.64, 0.64)], higher=True),
        },
        "timeline": [
            {
                "month": "2015 Q1",
                "rows": 900,
                "champion": 1,
                "champion_after": 2,
                "drift": quiet,
                "verdicts": [{**verdict, "outcome": "promoted"}],
            },
            {
                "month": "2015 Q2",
                "rows": 900,
                "champion": 2,
                "champion_after": 2,
                "drift": loud,
                "verdicts": [{**verdict, "decision": "reject", "outcome": "kept"}],
            },
        ],
        "seconds": 612.3,
        **changes,
    }


@pytest.fixture(scope="module")
def html():
    """The page of that summary."""
    return page(summary())


def _words(html):
    """The page's text without tags, and the chart's, whose letters are drawn."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("<svg")[0] + html.partition("</svg>")[2]))


def test_the_page_speaks_of_the_cases_metrics_and_ticks(html):
    """A case with classes is told by macro-F1 and log-loss of its quarters.

    With them goes the share of rows outside the largest class.
    """
    html = page(summary())
    words = _words(html)
    assert (
        "Over 2 quarters the frozen model reached a mean macro-F1 of 0.490 and a log-loss of 1.305; "
        "Perennial, with 1 promotion, reached 0.530 and 1.180"
    ) in words
    assert "<!-- macro-F1 (higher is better) -->" in html
    assert "<!-- log-loss (lower is better) -->" in html
    assert "<!-- 2015 Q2 -->" in html
    assert "not of the largest class" in words
    assert "66.7%" in words
    assert "ROC-AUC" not in html


def test_the_page_admits_where_blind_retraining_was_better(html):
    """Only the windows and metrics in which the ungated model beat the loop are listed."""
    listed = _words(html).partition("Where retraining blindly did better")[2]
    assert "2015 Q2 macro-F1 0.550 0.570" in listed
    assert "log-loss" not in listed.partition("The gate waits")[0]


def test_a_reduced_replay_says_its_scope(html):
    """What was trained at most, and what each training really took, stands on the page of a reduced replay.

    It stands on no other.
    """
    said = "At most 300 sampled rows of traffic a month; at most 2,000 rows and 90 s per training."
    assert said in _words(html)
    assert "Instead of the case's own parameters: train.epochs: 1 , export.int8: false ." in _words(html).replace(
        "&#39;", "'"
    )
    assert "2015-04-01 1,990 90.3 by its budget single" in _words(html)
    scope = {"traffic_rows_per_month": None, "rows_per_training": None, "seconds_per_training": None}
    assert "per training" not in _words(page(summary(scope=scope)))


def test_nothing_is_loaded_from_elsewhere(html):
    """The page is one file: no script, no style sheet, no image, no font of another address."""
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html)
    assert "@import" not in html


def test_windows_are_named_by_their_tick():
    """A window is its quarter, its month or its day."""
    moment = datetime(2015, 4, 1, tzinfo=UTC)
    assert [month_label(moment, tick) for tick in ("quarter", "month", "week", "day")] == [
        "2015 Q2",
        "2015-04",
        "2015-04-01",
        "2015-04-01",
    ]


def test_the_page_of_a_number_speaks_of_its_errors():
    """Where a number is predicted the page has RMSE and MAE, and no log-loss."""
    rmse = _metric([(44.0, 43.0, 43.5), (45.0, 43.2, 43.1)], higher=False)
    mae = _metric([(29.0, 27.5, 27.6), (30.0, 27.9, 28.0)], higher=False)
    told = summary(metrics={"rmse": rmse, "mae": mae}, classes=None)
    for verdict in (one for tick in told["timeline"] for one in tick["verdicts"]):
        verdict["metric"] = "rmse"
    text = re.sub(r"\s+", " ", page(told))
    assert "lift of rmse 0.120" in text
    assert "reached a mean RMSE of 44.500 and an MAE of 29.500" in text
    assert "mean MAE, frozen" in text
    assert "log-loss" not in text
    assert "66.7%" not in text


def test_the_page_of_a_number_has_its_columns_and_its_scope():
    """Means stand below their own columns, and nothing is said of classes or of limits that there are none of."""
    metrics = {name: _metric([(44.0, 43.0, 43.5), (45.0, 43.2, 43.1)], higher=False) for name in ("rmse", "mae")}
    scope = {"traffic_rows_per_month": 300, "rows_per_training": 2000, "seconds_per_training": None, "params": {}}
    text = page(summary(metrics=metrics, classes=None, scope=scope))
    table = text[text.index("Quarter by quarter") :]
    widths = {len(re.findall("<t[hd]", row)) for row in table[: table.index("</table>")].split("</tr>")[:-1]}
    assert widths == {8}
    words = _words(text)
    assert "rows of traffic a month; at most 2,000 rows per training." in words
    assert all(beyond not in words for beyond in ("more than one class", "None", "own parameters"))
