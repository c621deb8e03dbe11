"""Training on two ranks that a launcher starts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipelines.errors import TrainingDiverged
from pipelines.training.fit import fit
from pipelines.training.job import JOB
from pipelines.training.launch import ONE_NODE, Nodes, can_fork
from pipelines.training.rows import Rows
from tests.pipelines.conftest import free_port
from tests.pipelines.training.models import TEXT, TRAIN, plain, reader, table, texts

REPOSITORY = Path(__file__).parents[3]
TWO = TRAIN.model_copy(update={"ranks": 2})


def test_two_ranks_follow_one_rank_and_leave_no_trace(tmp_path, monkeypatch):
    """At dropout 0 every epoch's loss agrees within 1e-6, and the caller's surroundings are as they were."""
    rows = table(257)  # eight batches of 32 and one of a single row: the second rank's share of it is empty
    one = fit(plain, rows, TRAIN)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    handler, variables = signal.getsignal(signal.SIGTERM), dict(os.environ)
    two = fit(plain, rows, TWO)
    assert two.curve == pytest.approx(one.curve, abs=1e-6)
    for name, tensor in one.model.state_dict().items():
        assert torch.allclose(tensor, two.model.state_dict()[name], atol=1e-5), name
    assert (two.facts["strategy"], two.facts["ranks"]) == ("ddp", 2)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert dict(os.environ) == variables
    assert not list(tmp_path.iterdir())


def test_divergence_on_a_rank_is_told_as_such():
    """A loss that is not finite on one rank stops both at the same step, and comes back as TrainingDiverged."""
    rows = table(64)
    infinite = torch.where(torch.arange(64)[:, None] == 5, float("inf"), rows.dense["numeric"])
    with pytest.raises(TrainingDiverged, match=r"at step 0 \(epoch 0; rows "):
        fit(plain, Rows(rows.ids, rows.labels, {**rows.dense, "numeric": infinite}), TWO)


def test_a_process_with_threads_never_forks_its_ranks():
    """Beside a second thread, which may hold a lock, and with GPUs or several nodes, ranks start in a fresh process."""
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert not can_fork("cpu", ONE_NODE)
    finally:
        stop.set()
        other.join()
    pid = os.fork()
    if pid == 0:
        # A child has one thread, whatever its parent has.
        os._exit(
            0 if can_fork("cpu", ONE_NODE) and not can_fork("cuda", ONE_NODE) and not can_fork("cpu", Nodes(2)) else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def train_fork_and_train():
    """Exits with 0 if a process forked from this one, which has trained, trains on two ranks."""
    rows = table(64)
    fit(plain, rows, TRAIN)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if len(fit(plain, rows, TWO).curve) == TWO.epochs else 2
        finally:
            os._exit(code)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_ranks_start_in_a_forked_process():
    """A process forked from one that has already trained (as Airflow forks its tasks) can launch two ranks itself."""
    # Not from the tests' own process: gRPC, which others of them use, does not survive a fork.
    code = f"from {__name__} import train_fork_and_train; train_fork_and_train()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_ranks_on_two_nodes_and_by_hand(tmp_path):
    """Two nodes with a rank each, and torch's own launcher on the same job, follow one rank within 1e-6."""
    params = TEXT.model_copy(update={"ranks": 2})
    expected = pytest.approx(fit(reader, texts(), TEXT).curve, abs=1e-6)
    work = tmp_path / "work"
    other: list[subprocess.Popen] = []

    def second_node() -> None:
        while not (work / JOB).exists():
            time.sleep(0.05)
        command = [sys.executable, "-m", "pipelines.training.agent", str(work), "--node-rank", "1"]
        other.append(subprocess.Popen(command, cwd=REPOSITORY))

    waiting = threading.Thread(target=second_node)
    waiting.start()
    fitted = fit(reader, texts(), params, work, nodes=Nodes(2, 0, f"127.0.0.1:{free_port()}"))
    waiting.join()
    assert other[0].wait(timeout=30) == 0
    assert fitted.curve == expected
    (work / "result.json").unlink()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        "-m",
        "pipelines.training.rank",
        str(work),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=60, capture_output=True)
    assert json.loads((work / "result.json").read_text())["curve"] == expected
