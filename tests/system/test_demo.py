"""The whole loop, for real: `make demo FAST=1 TICKS=6`, and what its live stack answers afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import httpx
import polars as pl
import pytest

from embedded.demo.plan import load_plan
from embedded.demo.progress import Progress
from embedded.demo.release import released
from embedded.demo.replay import Replay
from embedded.demo.traffic import client, wait_for_closed_segments
from pipelines import cases, ledger
from pipelines.contracts import EpisodeTrigger, Window
from pipelines.files import file_sha256
from pipelines.params_file import load_params
from pipelines.places import PRIVATE
from pipelines.settings import Settings
from pipelines.storage import MANIFEST, read_manifest
from tests.system.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def _tree(settings: Settings, case: str) -> dict[str, str]:
    """Every committed file of every run with its sha256."""
    return {
        str(path): file_sha256(path)
        for path in sorted((settings.root / "artefacts" / case).rglob("*"))
        if path.is_file()
    }


def _mlflow_runs(settings: Settings, case: str) -> list[dict]:
    from mlflow import MlflowClient

    registry = MlflowClient(settings.mlflow_url)
    return [dict(version) for version in registry.search_model_versions(f"name='{case}'")]


def test_every_row_is_answered_logged_and_right(summary):
    """Rows sent, acknowledged and logged are one number, no request failed.

    Each answer is ONNX Runtime's on its version.
    """
    assert summary["errors"] == 0
    assert summary["rows_sent"] == summary["rows_acknowledged"] == summary["rows_logged"] > 1000
    assert summary["answers_unequal"] == 0
    assert summary["airflow"]["dag_runs_failed"] == 0
    assert summary["ticks"] == summary["drift_runs"] >= 6


def test_drift_led_to_training(summary):
    """An episode started training.

    On the bank data it made a champion, and the loop beats the model that was never changed.
    """
    events = get_args(EpisodeTrigger)
    assert sum(summary["training_runs_by_trigger"][trigger] for trigger in events) >= 1
    if summary["case"] == "bank":
        assert [champion for champion in summary["champions"] if champion["trigger"] in events]
        assert summary["metrics"]["log_loss"]["perennial_mean"] < 0.85 * summary["metrics"]["log_loss"]["frozen_mean"]


def test_summary_is_what_the_systems_recorded(summary, settings, airflow):
    """training_runs_by_trigger, champions and dag_runs_failed come out the same from Airflow, MLflow and the ledger."""
    case = summary["case"]
    runs = airflow.runs(f"{case}_training")
    assert Counter(run["conf"]["trigger"] for run in runs) == Counter(
        {k: v for k, v in summary["training_runs_by_trigger"].items() if v}
    )
    failed = [
        run for dag in ("training", "drift") for run in airflow.runs(f"{case}_{dag}") if run["state"] != "success"
    ]
    assert len(failed) == summary["airflow"]["dag_runs_failed"]
    history = ledger.releases(settings.ledger, case)
    assert [(r.champion, r.mlflow_run) for r in history] == [
        (c["version"], c["mlflow_run"]) for c in summary["champions"]
    ]
    from mlflow import MlflowClient

    assert (
        int(MlflowClient(settings.mlflow_url).get_model_version_by_alias(case, "champion").version)
        == history[-1].champion
    )


def test_later_datasets_hold_logged_rows_only(summary, settings):
    """Every row of every dataset after the first champion went through the gateway."""
    from pipelines.data import log

    case = summary["case"]
    params = load_params(case)
    logged = set(
        log.read_predictions(settings, case, Window(start=params.period[0], end=datetime(2100, 1, 1, tzinfo=UTC)))["id"]
    )
    first, *later = sorted((settings.root / "artefacts" / case).glob("*/dataset"))
    seen = set(pl.read_parquet(first / "train.parquet")["id"])
    assert seen.isdisjoint(logged)
    assert later
    for folder in later:
        for part in ("train", "holdout"):
            assert set(pl.read_parquet(folder / f"{part}.parquet")["id"]) <= logged


def test_a_run_again_changes_nothing(summary, settings, airflow):
    """Clearing a finished drift run and a finished training run leaves everything as it was.

    Every file, release and MLflow version.
    """
    case = summary["case"]
    before = (
        _tree(settings, case),
        ledger.releases(settings.ledger, case),
        _mlflow_runs(settings, case),
        len(airflow.runs(f"{case}_training")),
    )
    for dag in (f"{case}_drift", f"{case}_training"):
        run_id = airflow.runs(dag)[-1]["dag_run_id"]
        airflow.clear(dag, run_id)
        assert airflow.wait(dag, run_id)["state"] == "success"
    airflow.wait_quiet([f"{case}_training"])
    assert (
        _tree(settings, case),
        ledger.releases(settings.ledger, case),
        _mlflow_runs(settings, case),
        len(airflow.runs(f"{case}_training")),
    ) == before


def test_drift_needs_no_source(summary, settings, tmp_path):
    """Each step killed at its commit once, a drift run in a copy of the state writes the same report.

    The source is unreadable there.
    """
    case, last = summary["case"], datetime.fromisoformat(summary["timeline"][-1]["as_of"])
    copy = _copy(settings, tmp_path)
    report = copy.run_dir(case, last) / "drift" / "report.json"
    expected = report.read_bytes()
    for step in ("profile", "drift"):
        shutil.rmtree(copy.run_dir(case, last) / step)
        code = f"""
import sys, importlib
from datetime import datetime
from pathlib import Path
from typing import get_args
from pipelines import cases
from pipelines.line import runner
from pipelines.line.order import STEP_BY_NAME
from pipelines.line.step import Run
from pipelines.params_file import load_params
from pipelines.settings import Settings
def refuse(*a, **k): raise PermissionError("the source is unreadable")
source = cases.part({case!r}, "source"); source.resolve = source.rows = refuse
params, settings, as_of = load_params({case!r}), Settings(), datetime.fromisoformat({last.isoformat()!r})
runner.run(STEP_BY_NAME["{step}"], Run(params, settings, as_of))
"""
        environment = {**os.environ, "PERENNIAL_HOME": str(copy.root), "PERENNIAL_DATA_DIR": str(tmp_path / "nothing")}
        for failpoint, expected_code in ((f"{step}:publish", -signal.SIGKILL), ("", 0)):
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=REPOSITORY,
                env={**environment, "PERENNIAL_FAILPOINT": failpoint},
                check=False,
            )
            assert done.returncode == expected_code
    assert report.read_bytes() == expected


def _copy(settings: Settings, folder: Path) -> Settings:
    """The loop's state without Airflow's and MLflow's, in a folder of its own."""
    target = folder / "copy"
    for name in ("artefacts", "lake", "prediction_log"):
        shutil.copytree(settings.root / name, target / name)
    # SQLite copies itself consistently while gateways read it.
    subprocess.run(
        [sys.executable, "-c", _BACKUP, str(settings.root / "ledger.db"), str(target / "ledger.db")], check=True
    )
    return Settings(home=target)


_BACKUP = "import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b); a.close(); b.close()"


def test_rollback_is_answered_within_seconds(summary, settings, airflow):
    """The rollback command returns to the previous release, the gateway follows.

    A re-run does not promote it again.
    """
    case = summary["case"]
    before = ledger.releases(settings.ledger, case)
    expected = before[-2].champion
    environment = {
        **os.environ,
        "PERENNIAL_HOME": str(settings.root),
        "PERENNIAL_MLFLOW_URL": settings.mlflow_url,
        "PERENNIAL_TRITON_GRPC": settings.triton_grpc,
        "PERENNIAL_TRITON_CLIENT_FILE": str(settings.root / "secrets" / "triton_client"),
    }
    command = [sys.executable, "-m", "pipelines", "rollback", "--case", case, "--reason", "system test"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answered = time.monotonic()
    with client(settings.gateway_url, settings.key_file) as gateway:
        while _version(gateway, settings, case) != expected:
            assert time.monotonic() - answered < 5, "the gateway still answers with the version that was rolled back"
            time.sleep(0.1)
    promoted = before[-1]
    run_id = next(
        run["dag_run_id"]
        for run in reversed(airflow.runs(f"{case}_training"))
        if datetime.fromisoformat(run["conf"]["as_of"]) == promoted.as_of
    )
    airflow.clear(f"{case}_training", run_id)
    assert airflow.wait(f"{case}_training", run_id)["state"] == "success"
    head = ledger.head(settings.ledger, case)
    assert (head.champion, head.action, head.reason) == (expected, "rollback", "system test")


def _version(gateway: httpx.Client, settings: Settings, case: str) -> int:
    from pipelines.data import log

    params = load_params(case)
    row = log.read_predictions(
        settings, case, Window(start=params.period[0], end=datetime(2100, 1, 1, tzinfo=UTC))
    ).row(0, named=True)
    features = {name: row[name] for name in cases.load_fields(case).names}
    return gateway.post(f"/v1/cases/{case}/predict", json={"rows": [features]}).json()["rows"][0]["version"]


def test_every_artefact_verifies(summary, settings):
    """Every manifest's files have the sha256 that the manifest says."""
    manifests = list((settings.root / "artefacts" / summary["case"]).glob(f"*/*/{MANIFEST}"))
    assert len(manifests) > 20
    for path in manifests:
        read_manifest(path.parent, verify=True)


def test_one_version_arrives_in_stages_and_a_slow_one_is_taken_back(summary, settings, airflow):
    """Airflow moves a candidate from shadow to all of the traffic; one whose answers come late the guard takes back.

    Every answer is in the log, by the version that gave it; nothing of the shadow is.
    """
    from pipelines.data import log

    case = summary["case"]
    plan, params = load_plan(case, fast=True, ticks=6), load_params(case)
    rows = log.read_predictions(settings, case, plan.windows[0])
    own = os.umask(PRIVATE)  # as the demo's own process has it
    with client(settings.gateway_url, settings.key_file) as gateway:
        replay = Replay(plan, params, settings, None, airflow, gateway, Progress(), None)
        arrived, late = released(replay, rows)
    os.umask(own)
    moves = [(row["action"], row["stage"]) for row in arrived["rows"]]
    assert moves == [("open", "shadow"), ("advance", "canary"), ("release", "full")]
    assert (arrived["serves"], late["serves"], late["rows"][-1]["actor"]) == (True, False, "guard")
    assert "requests took" in late["reason"]
    wait_for_closed_segments(settings.prediction_log, case)
    lines = [
        json.loads(line)
        for path in (settings.prediction_log / case / "predictions").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    logged = Counter(str(line["version"]) for line in lines if line["prediction_id"].startswith("release-"))
    assert logged == Counter(arrived["answers"]) + Counter(late["answers"])


def test_posted_labels_decide_the_next_candidate(summary, settings, tmp_path):
    """Corrections of labels change the rows, the key and the weights of the next candidate.

    They are posted through the gateway. The last test of this file: it leaves wrong labels behind.
    """
    case, last = summary["case"], datetime.fromisoformat(summary["timeline"][-1]["as_of"])
    as_of = last + timedelta(days=1)
    plain = _candidate(_copy(settings, tmp_path / "plain"), case, as_of)
    from pipelines.data import log

    labels = log.read_labels(settings, case, as_of).sort("label_time").tail(2000)
    flipped = [
        {"prediction_id": id_, "label": 1 - value, "revision": 1, "event_time": last.isoformat()}
        for id_, value in labels.select("id", "label").iter_rows()
    ]
    with client(settings.gateway_url, settings.key_file) as gateway:
        assert gateway.post(f"/v1/cases/{case}/labels", json={"labels": flipped}).status_code == httpx.codes.OK
    wait_for_closed_segments(settings.prediction_log, case)
    changed = _candidate(_copy(settings, tmp_path / "flipped"), case, as_of)
    assert plain["dataset"].key != changed["dataset"].key
    assert plain["train"].facts["weights_sha256"] != changed["train"].facts["weights_sha256"]


def _candidate(settings: Settings, case: str, as_of: datetime) -> dict:
    """The manifests of a candidate made on the command line, in a process of its own as training forks its ranks."""
    code = "import sys; from pipelines.cli import main; "
    code += "sys.exit(any(main([step, *sys.argv[1:]]) for step in ('ingest', 'validate', 'dataset', 'train')))"
    subprocess.run(
        [sys.executable, "-c", code, "--case", case, "--as-of", as_of.isoformat()],
        cwd=REPOSITORY,
        env={**os.environ, "PERENNIAL_HOME": str(settings.root)},
        capture_output=True,
        check=True,
    )
    return {step: read_manifest(settings.run_dir(case, as_of) / step) for step in ("dataset", "train")}


def test_no_other_user_has_a_part_of_the_state(home, summary):
    """Ledger, log, lake, databases, keys and logs of a running demo.

    Nothing of them may be read, written or entered by anybody but their owner.
    """
    open_ones = [path for path in (home, *home.rglob("*")) if not path.is_symlink() and path.lstat().st_mode & 0o077]
    assert open_ones == []
