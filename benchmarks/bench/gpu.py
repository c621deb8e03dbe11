"""The strategies on a GPU: samples per second, MFU, memory, and the exported model's parity. `make bench-gpu`.

Encoders of MiniLM's size and of BERT-large's (random weights), bf16, sequence 128, global batches of 64, 256 and 1024;
single, ddp, fsdp and ZeRO 1-3, eager and compiled; 20 steps of warm-up and 100 measured ones, three times, the arms
taking turns. One rank shows what hooks and copies cost, not what sharding gains. About two hours on one H200, half of
it for the 216 launches (--quick: 5 and 20 steps, one turn, about 20 minutes); ``--models``, ``--batches`` and
``--arms`` take a part of it, one model is written to a file of its own. Without a GPU nothing is measured or changed;
``--toy`` walks the same path on the CPU with a toy network and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import job
from benchmarks.record import goal, record
from pipelines.errors import PerennialError

MODELS, BATCHES, SEQUENCE = ("minilm-size", "large"), (64, 256, 1024), 128
ARMS = {
    "single": "single",
    "ddp": "ddp 2",
    "fsdp": "fsdp 2",
    "zero1": "ZeRO-1 2",
    "zero2": "ZeRO-2 2",
    "zero3": "ZeRO-3 2",
}
"""What the command line calls an arm, and what job.STRATEGIES does; the number of ranks is that of this run."""
WARM_UP, STEPS, TURNS = 20, 100, 3
PARITY = 1e-4
"""A probability of a GPU in fp32 against ONNX Runtime on the CPU: other kernels, other order of sums."""
Row = dict[str, Any]


def main() -> None:
    """Run the benchmark and write benchmarks/results/gpu.json; without a GPU say so and change nothing."""
    given = arguments()
    if not given.toy and not gpus():
        print("bench-gpu: this machine has no GPU that torch can use, so nothing was measured and nothing was changed.")
        return
    began = time.perf_counter()
    ranks = given.ranks or (2 if given.toy else 1)
    few = given.toy or given.quick
    plan: Row = {
        "device": "cuda",
        "sequence": SEQUENCE,
        "warm_up": WARM_UP // (4 if few else 1),
        "steps": STEPS // (5 if few else 1),
    }
    if given.toy:
        plan = {"device": "cpu", "sequence": 16, "warm_up": 1, "steps": 2}
    models = ["toy"] if given.toy else given.models
    cells = [("toy", 4, False)] if given.toy else [*product(models, given.batches, (False, True))]
    measured: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as name:
        folder = Path(name)
        # First: what it needs beyond torch is missing at once or not at all.
        parities = {} if given.no_parity else {model: parity(folder, model, plan["device"]) for model in models}
        for turn in range(1 if few else TURNS):
            for model, batch, compiled in cells:
                for arm in given.arms if turn % 2 == 0 else reversed(given.arms):
                    spec = {**plan, "arm": ARMS[arm], "model": model, "batch": batch, "compiled": compiled}
                    measured.append(launch(folder, spec, 1 if arm == "single" else ranks))
    rows = summary(measured)
    whole = given.batches == list(BATCHES) and given.arms == list(ARMS) and not (few or given.no_parity)
    setting = {"precision": "bf16", "fused": True, **plan, "turns": 1 if few else TURNS, "parity": parities}
    seconds, packages = time.perf_counter() - began, ("torch", "transformers", "deepspeed", "onnxruntime")
    name = "gpu" if given.models == list(MODELS) else f"gpu-{given.models[0]}"
    record(
        name,
        rows=rows,
        goals=judged(rows, parities),
        seconds=seconds,
        packages=packages,
        more={"setting": setting},
        keep=whole or given.keep,
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, one turn; writes nothing without --keep")
    parser.add_argument(
        "--toy", action="store_true", help="the same path on the CPU with a toy network; writes nothing"
    )
    parser.add_argument(
        "--keep", action="store_true", help="write the result of a quick run or of some batches and arms, too"
    )
    parser.add_argument("--no-parity", action="store_true", help="export nothing: onnx and ONNX Runtime are not there")
    parser.add_argument("--ranks", type=int, default=0, help="GPUs to use (default: 1)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    return parser.parse_args()


def gpus() -> int:
    """How many GPUs torch can use."""
    import torch

    return int(torch.cuda.device_count())


def launch(folder: Path, spec: Row, ranks: int) -> Row:
    """One cell on ranks of its own (gpu_rank.py), so that nothing of another one lies in the device's memory.

    Its row.
    """
    out, path = folder / "row.json", folder / "spec.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps({**spec, "out": str(out)}))
    done = python(
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "benchmarks.bench.gpu_rank",
        str(path),
    )
    if not out.exists() or done.returncode:
        raise PerennialError(f"{spec['arm']} on {spec['model']} ended with {done.returncode}: {done.stderr[-2000:]}")
    row: Row = json.loads(out.read_text())
    print(row, flush=True)
    return row


def parity(folder: Path, model: str, device: str) -> float:
    """Largest difference between torch on the device and the exported model, in a process of its own."""
    place = folder / f"bundle-{model}"
    place.mkdir()
    done = python("-m", "benchmarks.bench.gpu_parity", model, device, str(place))
    if done.returncode:
        raise PerennialError(f"the export of {model} ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of this environment that finds the repository."""
    environment = {**os.environ, "PYTHONPATH": str(job.ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=job.ROOT, env=environment, capture_output=True, text=True, check=False
    )


def summary(measured: Sequence[Row]) -> list[Row]:
    """One row per cell: medians over the turns, with the extremes of the rate."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in measured:
        cells.setdefault((row["model"], row["batch"], row["compiled"], row["arm"]), []).append(row)
    return [of_turns(turns) for turns in cells.values()]


def of_turns(turns: Sequence[Row]) -> Row:
    """The turns of one cell in one row; a cell that did not fit once did not fit."""
    if any(turn["samples_per_second"] is None for turn in turns):
        return next(turn for turn in turns if turn["samples_per_second"] is None)
    rates = [turn["samples_per_second"] for turn in turns]
    middle: Row = {
        name: statistics.median(turn[name] for turn in turns)
        for name in ("step_ms", "samples_per_second", "mfu", "peak_gib")
        if name in turns[0]
    }
    return {**turns[0], **middle, "min": min(rates), "max": max(rates), "n": len(rates)}


def judged(rows: Sequence[Row], parities: dict[str, float]) -> list[Row]:
    """The goals that this run can judge."""
    found = [goal(f"export parity of {model}", worst, PARITY) for model, worst in parities.items()]
    large = [row["mfu"] for row in rows if row["model"] == "large" and "mfu" in row]
    if large:
        found.append(goal("best MFU on the large model", max(large), 0.45, "higher"))
    rates = {
        (row["arm"], row["model"], row["batch"], row["compiled"]): row["samples_per_second"]
        for row in rows
        if row["ranks"] == 1
    }
    shares = [
        rate / rates[("ddp", *cell)]
        for (arm, *cell), rate in rates.items()
        if arm == "fsdp" and rate and rates.get(("ddp", *cell)) and cell[0] == "large"
    ]
    if shares:
        found.append(
            goal("fsdp / ddp at one GPU, large model, median over its cells", statistics.median(shares), 0.95, "higher")
        )
    return found


if __name__ == "__main__":
    main()
