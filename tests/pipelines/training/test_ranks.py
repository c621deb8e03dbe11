"""Training on two forked ranks by torch's elastic agent."""

import os
import signal
from pathlib import Path

import pytest
import torch

from pipelines.cases.tabular import Tabular
from pipelines.config import ModelParams
from pipelines.errors import TrainingDiverged, Unavailable
from pipelines.training.fit import fit
from pipelines.training.loop import Rows
from tests.pipelines.training.test_loop import TRAIN, made_rows

TWO = TRAIN.model_copy(update={"ranks": 2})


def plain() -> Tabular:
    """A small network without dropout."""
    return Tabular((3, 3), 2, ModelParams(hidden=(8,), embedding=2, dropout=0.0))


def test_two_ranks_follow_one_rank_and_leave_no_trace(tmp_path, monkeypatch):
    """At dropout 0 every epoch's loss agrees within 1e-6, also with a last batch of one row, and the caller's surroundings come back."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    rows = made_rows(257)  # eight batches of 32 and one of a single row: the second rank's share of it is empty
    handler = signal.getsignal(signal.SIGTERM)
    variables = dict(os.environ)
    one, curve_of_one = fit(plain, rows, TRAIN)
    two, curve_of_two = fit(plain, rows, TWO)
    assert curve_of_two == pytest.approx(curve_of_one, abs=1e-6)
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, two.state_dict()[name], atol=1e-5), name
    assert signal.getsignal(signal.SIGTERM) is handler
    assert dict(os.environ) == variables
    assert not list(tmp_path.iterdir())


def test_divergence_on_a_rank_is_told_as_such():
    """A loss that is not finite on one rank stops both at the same step and comes back as TrainingDiverged, not as a dead rank."""
    rows = made_rows(64)
    with pytest.raises(TrainingDiverged, match="at step 0 "):
        fit(plain, Rows(rows.categorical, torch.where(torch.arange(64)[:, None] == 5, float("inf"), rows.numeric), rows.labels), TWO)


class _Dies(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, categorical, numeric):
        if torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return numeric[:, :1] * self.weight


def test_a_killed_rank_is_unavailable_so_that_the_task_is_tried_again():
    """SIGKILL of one rank ends the launch with an error that the DAG retries, and no rank is left waiting."""
    before = _children()
    with pytest.raises(Unavailable, match="rank failed"):
        fit(_Dies, made_rows(64), TWO)
    assert _children() <= before


def _children() -> set[str]:
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_ranks_start_in_a_forked_process():
    """A process forked from one that has already trained (as Airflow forks its tasks) can launch two ranks itself."""
    rows = made_rows(64)
    fit(plain, rows, TRAIN)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if len(fit(plain, rows, TWO)[1]) == TWO.epochs else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
