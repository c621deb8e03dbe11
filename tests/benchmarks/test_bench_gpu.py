"""`make bench-gpu`: its plan's arithmetic, what it does without a GPU, and its whole path at toy size on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import workload
from benchmarks.bench import gpu as bench_gpu
from benchmarks.bench import gpu_rank
from benchmarks.record import RESULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["toy", "minilm-size"])
def test_the_flops_of_a_token(name):
    """6 per weight of a block's matrices and 12 * L * hidden * S, as counted on the network itself."""
    with torch.device("meta"):
        blocks = workload.network(name, 0.0).blocks
    matrices = sum(weight.numel() for block in blocks for weight in block.parameters() if weight.dim() == 2)
    size = workload.SIZES[name]
    assert len(blocks) == size.layers
    assert gpu_rank.flops_per_token(name, 128) == 6 * matrices + 12 * size.layers * size.hidden * 128


def test_without_a_gpu_nothing_is_changed(monkeypatch, capsys):
    """It says so in one sentence, ends well and writes no result."""
    monkeypatch.setattr(bench_gpu, "gpus", lambda: 0)
    monkeypatch.setattr(bench_gpu, "launch", lambda *_: pytest.fail("something was launched"))
    monkeypatch.setattr(sys, "argv", ["bench_gpu"])
    before = {path.name: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    bench_gpu.main()
    assert (
        capsys.readouterr().out
        == "bench-gpu: this machine has no GPU that torch can use, so nothing was measured and nothing was changed.\n"
    )
    assert {path.name: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before


def cell(arm, rate, **more):
    """One turn of one cell of the large model."""
    return {
        "model": "large",
        "batch": 64,
        "compiled": False,
        "ranks": 1,
        "arm": arm,
        "samples_per_second": rate,
        **more,
    }


def test_the_turns_of_a_cell_become_one_row():
    """A row holds the median and the extremes of its turns; a cell that did not fit once did not fit."""
    rows = bench_gpu.summary(
        [
            cell("ddp", 10.0, mfu=0.4),
            cell("fsdp", None, why="out of memory"),
            cell("ddp", 30.0, mfu=0.6),
            cell("ddp", 20.0, mfu=0.5),
        ]
    )
    assert [(row["arm"], row["samples_per_second"]) for row in rows] == [("ddp", 20.0), ("fsdp", None)]
    assert (rows[0]["mfu"], rows[0]["min"], rows[0]["max"], rows[0]["n"]) == (0.5, 10.0, 30.0, 3)


def test_the_goals():
    """MFU is judged by the best arm, fsdp against ddp cell by cell at one GPU; what was not measured is not judged."""
    rows = [
        cell("ddp", 100.0, mfu=0.46),
        cell("fsdp", 96.0, mfu=0.44),
        cell("fsdp", 50.0, ranks=2, mfu=0.3) | {"batch": 256},
    ]
    goals = {goal["name"]: goal for goal in bench_gpu.judged(rows, {"large": 2e-6})}
    assert [(goal["value"], goal["holds"]) for goal in goals.values()] == [(2e-6, True), (0.46, True), (0.96, True)]
    assert [goal["name"] for goal in bench_gpu.judged([], {"toy": 1.0})] == ["export parity of toy"]


@pytest.mark.long
def test_the_whole_path_on_the_cpu():
    """Launched ranks, timing, table and export parity work at toy size without a GPU, and write no result."""
    before = sorted(RESULTS.iterdir())
    command = [sys.executable, "-m", "benchmarks.bench.gpu", "--toy", "--arms", "fsdp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fsdp  toy" in done.stdout
    assert "export parity of toy" in done.stdout
    assert "not written" in done.stdout
    assert sorted(RESULTS.iterdir()) == before
