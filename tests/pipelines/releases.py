"""What the tests of rollout, rollback and reconcile do again and again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from pipelines import ledger, runtime
from pipelines.cases import load_fields
from pipelines.deploy import rollout as room
from pipelines.deploy import triton
from pipelines.errors import Unavailable
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, month, registered
from tests.pipelines.verbs import rollout

ONE_ROW = {"categorical": np.zeros((1, 10), np.int64), "numeric": np.ones((1, 9), np.float32)}


def roll_out(settings: Settings, number: int, run_dir: Path, **arguments):
    """The rollout step of the n-th run: its facts."""
    return rollout.run(load_params(CASE), settings, run_dir, month(number), **arguments).facts


def promote(settings: Settings, number: int) -> Path:
    """Promote version ``number`` of run ``number`` over the champion there is; returns the run's folder."""
    head = ledger.head(settings.ledger, CASE)
    run_dir = registered(settings, month(number), number, bias=number / 10, champion=head.champion if head else None)
    assert roll_out(settings, number, run_dir)["outcome"] == "promoted"
    return run_dir


def answering(settings: Settings, *versions: int) -> list[int]:
    """Those of ``versions`` that answer in Triton."""
    found = []
    for version in versions:
        try:
            triton.infer(settings, CASE, version, ONE_ROW)
            found.append(version)
        except Unavailable:
            pass
    return found


def equals_onnxruntime(settings: Settings, version: int, run_dir: Path) -> bool:
    """Whether Triton's answer of ``version`` is that of ONNX Runtime on the run's bundle."""
    tensors = room.probe_tensors(load_fields(CASE), run_dir / "export")
    found = triton.infer(settings, CASE, version, tensors)
    return np.allclose(found, runtime.score(run_dir / "export", tensors), rtol=0, atol=1e-6)


def kill_stub(settings: Settings, version: int) -> None:
    """Kill the Python stub that answers for ``version`` and wait until it is gone."""
    os.kill(stub(settings, version), signal.SIGKILL)
    while _stubs(settings, version):
        time.sleep(0.01)


def stub(settings: Settings, version: int) -> int:
    """The pid of the Python stub that answers for ``version``."""
    deadline = time.monotonic() + 60
    while (
        len(found := _stubs(settings, version)) != 1
    ):  # an older one that was just replaced may still be on its way out
        assert time.monotonic() < deadline, f"{len(found)} stubs of version {version}"
        time.sleep(0.05)
    return found[0]


def _stubs(settings: Settings, version: int) -> list[int]:
    path = str(settings.model_repository / CASE / str(version))
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if path in _command(folder)]


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_text()
    except OSError:
        return ""
