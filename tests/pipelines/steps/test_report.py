"""pipelines/steps/report.py: the daily page of real runs of the loans stream."""

import re
import shutil
from datetime import timedelta

import pytest

from pipelines import ledger
from pipelines.contracts import Evidence, Interval, Verdict
from pipelines.drift_report import DriftReport
from pipelines.reports.daily import figures
from pipelines.settings import Settings
from tests.pipelines.conftest import free_port
from tests.pipelines.drift.stream import Stream, midnight
from tests.pipelines.steps.test_drift import DRIFT_AT, PARAMS, after, day, release, serve
from tests.pipelines.verbs import alert, drift, profile, report

QUIET = PARAMS.model_copy(update={"drift": PARAMS.drift.model_copy(update={"evidently": "never"})})
FIRST, LAST = DRIFT_AT - 1, DRIFT_AT + 1
"""Days that are served: one before the drift and two in it."""


def told(settings: Settings, as_of):
    """All steps of a drift run that people see: the report step's manifest."""
    run_dir = settings.run_dir("loans", as_of)
    for step in (profile, drift, alert):
        step.run(QUIET, settings, run_dir, as_of)
    return report.run(QUIET, settings, run_dir, as_of)


def page(settings: Settings, as_of) -> str:
    """The page of a run, white space folded."""
    return re.sub(r"\s+", " ", (settings.run_dir("loans", as_of) / "report" / "index.html").read_text())


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


@pytest.fixture(scope="module")
def reported(tmp_path_factory, stream) -> Settings:
    """A state folder after the run that confirmed the drift, with labels of its first day alone; MLflow is down.

    Copied before it is changed.
    """
    settings = Settings(
        home=tmp_path_factory.mktemp("reported") / "state", mlflow_url=f"http://127.0.0.1:{free_port()}"
    )
    release(settings, stream, midnight(day(FIRST)))
    for number in range(FIRST, LAST + 1):
        serve(settings, stream, number, delay=1 if number == FIRST else 7)
        told(settings, after(number))
    return settings


@pytest.fixture
def copied(reported, tmp_path) -> Settings:
    """A copy of that state."""
    shutil.copytree(reported.root, tmp_path / "state")
    return Settings(home=tmp_path / "state", mlflow_url=reported.mlflow_url)


def test_the_page_holds_what_the_run_found(reported):
    """What was found stands on the page: rows, versions, every feature's PSI, the days.

    The labels' coverage and the decision with its reason, too.
    """
    text = page(reported, after(LAST))
    found = DriftReport.model_validate_json(
        (reported.run_dir("loans", after(LAST)) / "drift" / "report.json").read_bytes()
    )
    assert found.action == "retrain"
    assert f"{found.current_rows} rows</b>" in text
    assert f"served in the window, by v1 ({found.current_rows})" in text
    for feature in found.features:
        assert re.search(
            rf">{feature.feature}(</b>)?</span>.{{0,400}}?class=\"value\">{re.escape(figures.psi(feature.debiased_psi))}<",
            text,
        ), feature
    assert text.count('class="col') == LAST - FIRST + 1
    assert found.episode in text
    assert "no verdict when this page was made" in text
    assert f'1.0 days</td> <td class="n">{found.performance.rolling[0].log_loss:.3f}'.replace(
        "> <", "><"
    ) in text.replace("> <", "><")
    assert "400 (100%)" in text


def test_the_page_stands_alone(reported):
    """Nothing is loaded from elsewhere, no script runs, and the page is small.

    MLflow away costs nothing but its copy.
    """
    text = page(reported, after(LAST))
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(|\ssrc=", text)
    assert len(text) < 200_000
    assert "page" not in told(reported, after(LAST)).facts


def test_a_verdict_makes_another_page(copied):
    """Running again changes nothing; once the training that was asked for has a verdict, the page says it."""
    as_of = after(LAST)
    before = told(copied, as_of)
    assert told(copied, as_of).key == before.key
    evidence = Evidence(
        metric="log_loss", n=512, positives=40, opponent="champion", lift=Interval(value=-0.012, low=-0.02, high=-0.004)
    )
    verdict = Verdict(
        decision="reject", rule="interval", reason="worse than the champion", evidence=evidence, min_lift=0.005
    )
    ledger.record_verdict(copied.ledger, case="loans", gate_key="g", as_of=as_of, trigger="drift", verdict=verdict)
    assert told(copied, as_of).key != before.key
    text = page(copied, as_of)
    assert "it was retrained, and the candidate was rejected" in text
    assert "was rejected, and the champion stayed: worse than the champion" in text
    assert "-0.012 (-0.020 to -0.004) nats, 512 rows" in text


def test_a_history_played_twice_makes_the_same_key(copied, monkeypatch):
    """Who released, when, and in which run of MLflow is no part of the key; why the version serves is."""
    key, kept = told(copied, after(LAST)).key, ledger.chain(copied.ledger, "loans")
    for changes, same in (
        ({"actor": "somebody else", "mlflow_run": "another", "recorded_at": after(LAST)}, True),
        ({"reason": "another"}, False),
    ):
        monkeypatch.setattr(
            ledger,
            "chain",
            lambda _url, _case, changes=changes: [release.model_copy(update=changes) for release in kept],
        )
        assert (report.run(QUIET, copied, copied.run_dir("loans", after(LAST)), after(LAST)).key == key) is same


def test_an_empty_window_has_a_page(copied):
    """Without any rows the page says so, with the days before and the last decisions still on it."""
    as_of = after(LAST) + timedelta(days=2)
    told(copied, as_of)
    text = page(copied, as_of)
    assert "a person should look" in text
    assert "No rows were served in this window, so nothing can have moved." in text
    assert text.count('class="col') == LAST - FIRST + 3


def test_without_a_champion_there_is_a_page(tmp_path, stream):
    """Before the first champion the page counts the rows and says what is missing."""
    settings = Settings(home=tmp_path / "state", mlflow_url=f"http://127.0.0.1:{free_port()}")
    serve(settings, stream, 0)
    told(settings, after(0))
    text = page(settings, after(0))
    assert "<h1>No model serves yet</h1>" in text
    assert "400 rows were served in this window; nothing can be compared before a first model serves." in text
    assert "No champion, so no reference to compare with." in text
