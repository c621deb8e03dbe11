"""Tests of the DAG files: what they import, what they build, and what a broken case does to the others."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from embedded.demo.scoring import UNGATED
from pipelines.case_files import CASES_ROOT, case_names
from pipelines.line import order
from pipelines.params_file import load_params
from tests import shop

ROOT = Path(__file__).parents[2]
TRAINING = tuple(step.name for step in order.TRAINING)
TELLING = tuple(step.name for step in order.TELLING)
DRIFT = (*(step.name for step in order.WATCHING), *TELLING, "retrain", "reconcile")
KINDS = ("training", "drift", "rollout", "rollback")


def _report(home: Path, *arguments: str, **environment: str):
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "tests/dags/dag_report.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What Airflow makes of the DAG folder."""
    return _report(tmp_path_factory.mktemp("airflow"), PERENNIAL_SCHEDULES="1")


BROKEN = {
    "syntax": ("schema.py", 'label="sold"', 'label="sold', "schema.py, line 7: SyntaxError"),
    "name": ("schema.py", 'Numeric("price"', 'Numeric("house-value"', "house-value"),
    "vocabulary": ("schema.py", '("red", "blue")', "()", "colour"),
    "copied": ("schema.py", 'case="copied"', 'case="shop"', "declares the fields of the case shop"),
    "unbuilt": ("model.py", "import build", "import building as built", "model.py has no build"),
    "imports": ("source.py", "import polars", "import polarz", "there is no module polarz"),
    "encoded": ("params.yaml", "case: encoded", "case: encoded\nabout: caf\udce9", "byte 0xe9 is not UTF-8"),
    "cron": ("params.yaml", "drift: null", "drift: every now and then", "every now and then"),
    "never": ("params.yaml", "drift: null", "drift: 0 2 31 2 *", "0 2 31 2 *"),
}
"""Cases by what is wrong with them: file, what stood there, what stands there, what is said of it."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The same with a typo in the loans case, a case for each of BROKEN, bank's profiles and desk's source mapped.

    Schedules are switched off.
    """
    cases = tmp_path_factory.mktemp("cases")
    path = shop.write(cases, "desk") / "params.yaml"
    (path.parent / "source.py").unlink()
    params = yaml.safe_load(path.read_text())
    params["source"] = {"kind": "files", "url": "desk/*.parquet"}
    params["dataset"]["mapped_days"] = 7
    path.write_text(yaml.safe_dump(params))
    for case, (file, before, after, _) in BROKEN.items():
        path = shop.write(cases, case) / file
        assert before in path.read_text()
        path.write_bytes(path.read_text().replace(before, after).encode(errors="surrogateescape"))
    for case in case_names():
        (cases / case).mkdir()
        text = (CASES_ROOT / case / "params.yaml").read_text()
        change = {"loans": ("epochs:", "epoch:"), "bank": ("  window: month", "  window: month\n  mapped: true")}
        (cases / case / "params.yaml").write_text(text.replace(*change[case]) if case in change else text)
    return _report(tmp_path_factory.mktemp("airflow"), str(cases), PERENNIAL_SCHEDULES="0")


def test_every_case_has_its_four_dags(report):
    """Each installed case has a training, a drift, a rollout and a rollback DAG, and no file fails to load."""
    assert report["errors"] == {}
    assert sorted(report["dags"]) == sorted(f"{case}_{kind}" for case in case_names() for kind in KINDS)


def test_no_dag_file_imports_anything_heavy(report):
    """Loading any DAG file leaves torch, MLflow, numpy and their like unloaded: they belong into the tasks."""
    assert len(report["heavy"]) == 5
    assert {name: found for name, found in report["heavy"].items() if found} == {}


@pytest.mark.parametrize("case", case_names())
def test_training_follows_the_line(report, case):
    """The training DAG is one straight line in the order of pipelines/line/order.py, one run at a time.

    Beside its end it starts the run that moves a rollout in stages. By hand it takes a trigger and a reason.
    """
    dag = report["dags"][f"{case}_training"]
    assert [task for task in dag["order"] if task != "trial"] == list(TRAINING)
    assert dag["edges"] == sorted([["rollout", "trial"], *map(list, pairwise(TRAINING))])
    assert (dag["max_active_runs"], dag["catchup"]) == (1, False)
    assert set(dag["params"]) == {"as_of", "trigger", "reason"}


def test_all_order_the_stages_alike(report):
    """The DAG, dvc.yaml and the demo's ungated retraining run the same stages in the same order.

    Each goes as far as it goes.
    """
    order = report["dags"]["loans_training"]["order"]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == order[: order.index("gate") + 1]
    assert [step.name for step in UNGATED] == order[: len(UNGATED)]
    for before, after in pairwise(stages):
        assert any(f"/{before}" in path for path in stages[after]["deps"])


@pytest.mark.parametrize("case", case_names())
def test_drift_ends_with_the_event(report, case):
    """The drift DAG is profile, headroom, drift, retrain, reconcile; a skipped retrain does not skip what follows.

    A window that was profiled is judged, whatever became of the probe. People are told beside it. Nothing of the loop
    waits for what tells people, or hears of its failures: the run turns red by it, as it ends the run, and that is all.
    """
    dag = report["dags"][f"{case}_drift"]
    assert sorted(dag["order"]) == sorted(DRIFT)
    assert dag["rules"]["reconcile"] == "none_failed"
    loop = [step for step in DRIFT if step not in TELLING]
    assert dag["rules"]["drift"] == "all_done_min_one_success"
    beside = [("profile", "drift"), *pairwise(["drift", *TELLING])]
    assert dag["edges"] == sorted(map(list, [*pairwise(loop), *beside]))
    assert all(dag["order"].index(before) < dag["order"].index(after) for before, after in dag["edges"])


def test_profiles_can_be_mapped_over_days(broken):
    """A case that asks for it has a task per day ahead of `profile`, which also runs when there was no day.

    The rest is as ever.
    """
    dag = broken["dags"]["bank_drift"]
    assert dag["order"][:3] == ["profile_days", "profile_day", "profile"]
    assert sorted(dag["order"][2:]) == sorted(DRIFT)
    assert {("profile_days", "profile_day"), ("profile_day", "profile")} <= set(map(tuple, dag["edges"]))
    assert dag["rules"]["profile"] == "none_failed"


def test_a_source_can_be_read_by_mapped_tasks(broken):
    """A case that asks for it has a task per stretch of days ahead of `ingest`, which also runs when there was none.

    The rest is as ever, and a part makes no asset.
    """
    dag = broken["dags"]["desk_training"]
    assert [task for task in dag["order"] if task != "trial"] == ["ingest_days", "ingest_part", *TRAINING]
    parts = [["ingest_days", "ingest_part"], ["ingest_part", "ingest"], ["rollout", "trial"]]
    assert dag["edges"] == sorted([*parts, *map(list, pairwise(TRAINING))])
    assert dag["rules"]["ingest"] == "none_failed"
    assert "ingest_part" not in dag["lineage"]


@pytest.mark.parametrize("case", case_names())
def test_a_rollout_holds_no_worker(report, case):
    """The rollout DAG is one sensor that is rescheduled between its ticks; candidates that wait do not block it."""
    dag = report["dags"][f"{case}_rollout"]
    assert (dag["order"], dag["sensors"], dag["max_active_runs"]) == (["tick"], {"tick": "reschedule"}, 64)
    assert list(dag["params"]) == ["as_of"]


def test_only_the_training_may_take_long(report):
    """The train task has an execution timeout that follows the case's budget.

    The default queue and pool are left alone.
    """
    limits = report["dags"]["triage_training"]["limits"]
    budget = load_params("triage").train.budget_minutes
    assert {task: limit for task, limit in limits.items() if limit} == {"train": 60 * (30 + 2 * budget)}


def test_every_dag_says_what_it_is(report):
    """Every DAG has a description for people, its case as a tag, an owner, retries that back off, and stays short."""
    for name, dag in report["dags"].items():
        case = name.rsplit("_", 1)[0]
        assert case in dag["doc"]
        assert {"perennial", case} <= set(dag["tags"])
        assert dag["owners"] == ["perennial"]
        assert all(retries >= 2 and backoff >= 2 for retries, backoff in dag["retries"].values())
        assert dag["lines"] <= 80


@pytest.mark.parametrize("case", case_names())
def test_assets_show_what_comes_from_what(report, case):
    """Data, dataset, model and release of a case are one chain through its tasks, drift reads the release.

    No DAG is scheduled on any of them.
    """
    made = {kind: [f"perennial://{case}/{kind}"] for kind in ("data", "dataset", "model", "release")}
    assert report["dags"][f"{case}_training"]["lineage"] == {
        "ingest": [[], made["data"]],
        "dataset": [made["data"], made["dataset"]],
        "register": [made["dataset"], made["model"]],
        "rollout": [made["model"], made["release"]],
    }
    assert report["dags"][f"{case}_drift"]["lineage"] == {"profile": [made["release"], []]}
    assert report["dags"][f"{case}_rollback"]["lineage"] == {"rollback": [[], made["release"]]}
    assert not [dag for dag in report["dags"].values() if "Asset" in dag["timetable"]]


def test_every_run_has_a_deadline(report):
    """People are told of a run that takes too long, counted from its queueing.

    A training after all that its train task may take and an hour.
    """
    for name, dag in report["dags"].items():
        case, _, kind = name.rpartition("_")
        [[reference, seconds, callback, arguments]] = dag["deadlines"]
        assert (reference, callback, arguments) == (
            "DagRunQueuedAtDeadline",
            "perennial.airflow.deadlines.late",
            {"case": case},
        )
        limit = dag["limits"].get("train") or 0
        assert seconds == {"training": limit + 3600, "drift": 3600, "rollout": 2 * 2 * 86_400, "rollback": 600}[kind]


def test_every_run_tells_of_its_failure(report):
    """The DAG's own callback tells of a run that failed, for its case.

    No task has one, so that a try that fails is told to nobody.
    """
    for name, dag in report["dags"].items():
        assert dag["tells"] == ["_tell", name.rpartition("_")[0]]


def test_schedules_are_data_intervals(report):
    """A live case has explicit data intervals (their end is the clock); history has no schedule and asks for as_of."""
    for kind in ("training", "drift"):
        live = report["dags"][f"loans_{kind}"]
        history = report["dags"][f"bank_{kind}"]
        assert live["timetable"] == "CronDataIntervalTimetable"
        assert live["params"]["as_of"]["type"] == ["null", "string"]
        assert history["timetable"] != "CronDataIntervalTimetable"
        assert history["params"]["as_of"]["type"] == "string"


def test_a_rollback_needs_a_reason(report):
    """The rollback DAG has a required reason that is not blank, and no schedule."""
    for case in case_names():
        reason = report["dags"][f"{case}_rollback"]["params"]["reason"]
        assert (reason["type"], reason["default"], reason["pattern"]) == ("string", False, r"\S")


def test_a_broken_case_stops_itself_only(broken):
    """A typo in one params.yaml is one import error that names the key, in a file without DAGs.

    The DAGs of the other cases are all there.
    """
    assert sorted(broken["dags"]) == sorted(
        f"{case}_{kind}" for case in [*case_names(), "desk"] if case != "loans" for kind in KINDS
    )
    assert list(broken["errors"]) == ["perennial_cases.py"]
    assert "case loans has no DAGs" in broken["errors"]["perennial_cases.py"]
    assert "train.epoch:" in broken["errors"]["perennial_cases.py"]


@pytest.mark.parametrize("case", BROKEN)
def test_whatever_is_wrong_is_said_of_its_case(broken, case):
    """The import error names every broken case with what is wrong: code, fields, names, bytes, schedules.

    None of them has a DAG.
    """
    [said] = [
        part for part in broken["errors"]["perennial_cases.py"].split(" | ") if f"case {case} has no DAGs: " in part
    ]
    assert BROKEN[case][3] in said
    assert not [name for name in broken["dags"] if name.startswith(case)]
