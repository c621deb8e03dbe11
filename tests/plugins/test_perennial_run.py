"""Tests of what a DAG run means: cases, clock, trigger, errors."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.definitions.context import _AIRFLOW_PARSING_CONTEXT_DAG_ID
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from perennial.airflow import run as perennial_run
from pipelines import case_files, cases
from pipelines.cases import part, surveying
from pipelines.errors import (
    CaseError,
    ConfigError,
    ConflictError,
    DataError,
    IntegrityError,
    PerennialError,
    TooFewRows,
    TrainingDiverged,
    Unavailable,
)
from pipelines.params import Resources
from pipelines.params_file import load_params
from tests import shop

TICK = datetime(2026, 6, 1, 2, tzinfo=UTC)
NOW = datetime(2026, 6, 3, 11, 30, 15, 123456, tzinfo=UTC)


def _run(end=None, logical=None, after=NOW):
    return SimpleNamespace(data_interval_end=end, logical_date=logical, run_after=after)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2009-05-01", datetime(2009, 5, 1, tzinfo=UTC)),
        ("2009-05-01T02:00:00+00:00", datetime(2009, 5, 1, 2, tzinfo=UTC)),
        ("2009-05-01T02:00:00Z", datetime(2009, 5, 1, 2, tzinfo=UTC)),
        ("2009-05-01T02:00:00", datetime(2009, 5, 1, 2, tzinfo=UTC)),
        ("2009-05-01T02:00:00+02:00", datetime(2009, 5, 1, tzinfo=UTC)),
    ],
)
def test_a_given_moment_wins_over_the_interval(given, expected):
    """conf.as_of is the clock whatever the run's own times are, in UTC, and a bare date is its midnight."""
    assert perennial_run.resolve_as_of(given, _run(end=TICK, logical=TICK)) == expected


@pytest.mark.parametrize("given", [None, ""])
def test_a_scheduled_run_ends_at_its_interval(given):
    """Without conf.as_of, the end of the data interval is the clock, not the moment at which the run began."""
    assert perennial_run.resolve_as_of(given, _run(end=TICK, logical=datetime(2026, 5, 1, 2, tzinfo=UTC))) == TICK


def test_a_manual_run_without_an_interval_takes_its_own_time():
    """Without an interval the logical time counts.

    Without that the time from which the run may run, in whole seconds.
    """
    assert perennial_run.resolve_as_of(None, _run(logical=TICK)) == TICK
    assert perennial_run.resolve_as_of(None, _run()) == NOW.replace(microsecond=0)


def test_a_text_that_is_no_moment_says_how_to_write_it():
    """A text that is no moment is refused with the form to use."""
    with pytest.raises(ConfigError, match="write 2009-05-01"):
        perennial_run.resolve_as_of("yesterday", _run())


@pytest.mark.parametrize(
    ("given", "run_type", "has_champion", "expected"),
    [
        (None, "scheduled", True, "schedule"),
        (None, "backfill", True, "schedule"),
        (None, "manual", True, "manual"),
        ("schedule", "manual", True, "schedule"),
        ("drift", "operator_triggered", True, "drift"),
        ("performance", "operator_triggered", True, "performance"),
        ("drift", "operator_triggered", False, "initial"),
        (None, "scheduled", False, "initial"),
    ],
)
def test_why_a_run_happens(given, run_type, has_champion, expected):
    """The first champion is initial; afterwards the given reason counts, and without one the run's own type."""
    assert perennial_run.resolve_trigger(given, run_type, has_champion=has_champion) == expected


@pytest.mark.parametrize(
    "kind", [ConfigError, DataError, IntegrityError, ConflictError, TrainingDiverged, PerennialError]
)
def test_what_a_retry_cannot_mend_fails_at_once(kind):
    """Every error that says so ends the task without another try and keeps its name and message."""
    with pytest.raises(AirflowFailException, match=f"{kind.__name__}: the disk is pink"), perennial_run.failing_fast():
        raise kind("the disk is pink")


def test_too_few_rows_skip():
    """A run that comes before there is anything to learn from is skipped, not red."""
    with pytest.raises(AirflowSkipException, match="no labels yet"), perennial_run.failing_fast():
        raise TooFewRows("no labels yet")


@pytest.mark.parametrize(
    "error", [Unavailable("MLflow does not answer"), OSError("no space left"), ValueError("a bug")]
)
def test_everything_else_is_tried_again(error):
    """A service that is down, the operating system and the unexpected pass through, so that Airflow tries again."""
    with pytest.raises(type(error)) as caught, perennial_run.failing_fast():
        raise error
    assert caught.value is error


def _in_a_case(tmp_path, statement):
    """Run a statement as the code of the case shop."""
    with shop.installed(tmp_path / "cases") as root:
        path = shop.write(root) / "source.py"
        path.write_text(f"def resolve(settings, params): ...\ndef rows(source, window, params):\n    {statement}\n")
        with perennial_run.failing_fast():
            part("shop", "source").rows(None, None, None)


def test_an_error_in_a_cases_code_says_where(tmp_path):
    """The task's error names case, file and line.

    Code and data that are wrong fail at once, what a service may mend is tried again.
    """
    where = r"CaseError: case shop: pipelines/cases/shop/source\.py, line 3: KeyError: 'price': mend this line"
    with pytest.raises(AirflowFailException, match=where):
        _in_a_case(tmp_path / "one", "{}['price']")
    with pytest.raises(CaseError, match="line 3: ConnectionError: the warehouse is away") as caught:
        _in_a_case(tmp_path / "two", "raise ConnectionError('the warehouse is away')")
    assert caught.value.retry
    with pytest.raises(AirflowFailException, match=r"DataError: 3 prices are missing"):
        _in_a_case(
            tmp_path / "three", "from pipelines.errors import DataError; raise DataError('3 prices are missing')"
        )
    with pytest.raises(AirflowFailException, match=r"shop/source\.py, line 3: SyntaxError"):
        _in_a_case(tmp_path / "four", "if")


def test_only_small_facts_travel():
    """Lists, tables and long texts stay in the manifest; single values go into the XCom."""
    facts = {
        "rows": 3,
        "share": 0.5,
        "reason": "fine",
        "champion": None,
        "ok": True,
        "curve": [1, 2],
        "window": {"start": 1},
        "log": "x" * 501,
    }
    assert perennial_run.small(facts) == {"rows": 3, "share": 0.5, "reason": "fine", "champion": None, "ok": True}


def test_one_broken_case_leaves_the_others(tmp_path, monkeypatch):
    """A params.yaml with a typo is named with its key, and the other cases are still there."""
    good = (case_files.CASES_ROOT / "bank" / "variants" / "network" / "bank.yaml").read_text()
    for case, text in (
        ("bank", good),
        ("loans", good.replace("case: bank", "case: loans").replace("epochs:", "epoch:")),
    ):
        (tmp_path / case).mkdir()
        (tmp_path / case / "params.yaml").write_text(text)
    monkeypatch.setattr(case_files, "CASES_ROOT", tmp_path)
    found, broken = perennial_run.readable_cases()
    assert [params.case for params in found] == ["bank"]
    assert "train.epoch:" in broken["loans"]


def test_a_task_looks_at_its_own_case_only(monkeypatch):
    """A task that parses its DAG file reads one case however many there are.

    Airflow tells it by its parsing context.
    """
    read = []
    monkeypatch.setattr(
        surveying,
        "_looked_at",
        lambda case, _settings, **_: read.append(case) or cases.Case(case, load_params(case)),
    )
    monkeypatch.setenv(_AIRFLOW_PARSING_CONTEXT_DAG_ID, "bank_drift")
    found, broken = perennial_run.readable_cases()
    assert ([params.case for params in found], broken, read) == (["bank"], {}, ["bank"])


def test_a_replay_switches_schedules_off(monkeypatch):
    """PERENNIAL_SCHEDULES=0 leaves every DAG without a timetable, and so does a case without a cron expression."""
    assert perennial_run.timetable("0 2 * * *") is not None
    assert perennial_run.timetable(None) is None
    monkeypatch.setenv("PERENNIAL_SCHEDULES", "0")
    assert perennial_run.timetable("0 2 * * *") is None


def test_the_train_task_asks_for_what_the_case_declares():
    """Queue and pool are asked for where they are set only, a slot per GPU.

    Whatever hangs is ended after a time that follows the budget.
    """
    bank = load_params("bank")
    plain = bank.model_copy(update={"train": bank.train.model_copy(update={"budget_minutes": None})})
    assert perennial_run.train_arguments(plain) == {"execution_timeout": timedelta(days=1)}
    resources = Resources(gpus=2, queue="gpu", pool="h200")
    asked = bank.model_copy(
        update={"resources": resources, "train": bank.train.model_copy(update={"budget_minutes": 60.0})}
    )
    assert perennial_run.train_arguments(asked) == {
        "execution_timeout": timedelta(minutes=150),
        "queue": "gpu",
        "pool": "h200",
        "pool_slots": 2,
    }
