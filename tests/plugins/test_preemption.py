"""The train task, executed by the real operator, is ended by SIGTERM and tried again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.training.test_faults import gone

ROOT = Path(__file__).parents[2]


def _start(folder, url):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.plugins.preempted", str(folder), url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.long
def test_a_preempted_training_saves_and_the_retry_goes_on(tmp_path, mlflow_url):
    """SIGTERM has the ranks save the step that they are at and leaves none alive.

    MLflow says KILLED, then the retry finishes in the same run.
    """
    from mlflow import MlflowClient

    task = _start(tmp_path, mlflow_url)
    until = time.monotonic() + 90
    while not (tmp_path / "happened").exists():
        assert task.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    task.send_signal(signal.SIGTERM)
    assert task.wait(60) == 0
    assert gone(tmp_path)
    first = json.loads((tmp_path / "answer.json").read_text())
    assert first["error"].startswith("Preempted: training was asked to leave at step 7")
    assert first["retry"]
    client = MlflowClient(mlflow_url)
    run_id = first["link"].rpartition("/")[2]
    assert client.get_run(run_id).info.status == "KILLED"
    assert _start(tmp_path, mlflow_url).wait(90) == 0
    second = json.loads((tmp_path / "answer.json").read_text())
    assert (second["resumed_from"], second["link"]) == (7, first["link"])
    run = client.get_run(run_id)
    steps = [point.step for point in client.get_metric_history(run_id, "train.loss")]
    assert (run.info.status, sorted(steps)) == ("FINISHED", list(range(1, max(steps) + 1)))
