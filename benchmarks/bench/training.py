"""The project's training loop against its peers, and what it needs.

Samples per CPU-second, start-up, memory, checkpoints. `make bench-training`; about 10 minutes on two quiet cores
(``--quick``: a toy network, under two minutes, written nowhere). Every measurement is a process of its own; the arms
take turns, and ratios are of medians of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import job
from benchmarks.bench.environment import interpreter
from benchmarks.record import goal, record
from pipelines.errors import PerennialError
from pipelines.params_file import load_params
from pipelines.settings import read_settings

PADDED = "bare loop, padded to 128"
BARE = "bare loop"
OURS = "ours"
HALF = "ours, bf16"
ARMS = (PADDED, BARE, OURS, HALF, "Hugging Face Trainer", "Accelerate", "Lightning Fabric")
RUNS = 5
SAMPLES = 512
PADDED_SAMPLES = 160
STRATEGY_SAMPLES = 256
SAVE_AT = 4
Found = dict[str, Any]


def main() -> None:
    """Run the benchmark and write benchmarks/results/training.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a toy network and two runs; prints the tables and writes nothing"
    )
    quick: bool = parser.parse_args().quick
    began = time.perf_counter()
    case = load_params("triage").train
    every = case.checkpoint_every or 50
    network, runs, samples, short = ("toy", 2, 128, 64) if quick else ("minilm", RUNS, SAMPLES, PADDED_SAMPLES)
    python = interpreter()
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as name:
        folder = Path(name)
        origin = put_rows(folder, network, samples, short)
        params = job.BASE.model_copy(update={"threads": min(2, len(os.sched_getaffinity(0)))})
        found: dict[str, list[Found]] = {arm: [] for arm in ARMS}
        for number in range(runs):
            for arm in ARMS if number % 2 == 0 else reversed(ARMS):
                count = short if arm == PADDED else samples
                changes: dict[str, Any] = {"precision": "bf16"} if arm == HALF else {}
                if arm in {OURS, HALF}:
                    changes["checkpoint_every"] = max(1, count // params.batch_size // 2)
                place = folder / f"{ARMS.index(arm)}-{number}"
                found[arm].append(
                    measure(python, place, arm, network, folder / f"rows-{count}.pt", params.model_copy(update=changes))
                )
        rows = [arm_row(arm, found[arm], every) for arm in ARMS]
        costs = [cost_row(folder, strategy, network, every) for strategy in job.STRATEGIES]
    goals = judged(found, every)
    about = {
        "texts": origin,
        "network": network,
        "threads": params.threads,
        "batch": params.batch_size,
        "checkpoint_every": every,
    }
    record(
        "training",
        rows=[*rows, *costs],
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("torch", "transformers", "deepspeed"),
        more={"setting": about, "peers": found[OURS][0]["versions"]},
        keep=not quick,
    )


def put_rows(folder: Path, network: str, samples: int, padded: int) -> str:
    """Write the training rows of every length that is needed to ``folder``; returns where the texts are from."""
    import torch

    from benchmarks.reports import rows

    most = max(samples, STRATEGY_SAMPLES)
    whole, origin = rows(most, network, read_settings())
    if origin != "real":
        print(
            "the file of real reports was not found (PERENNIAL_DATA_DIR): the texts are generated, with the lengths "
            "of real ones"
        )
    for count in {samples, padded, STRATEGY_SAMPLES}:
        # Evenly spaced: the lengths stay those of the whole.
        whole.take(torch.linspace(0, most - 1, count).round().long()).save(folder / f"rows-{count}.pt")
    return origin


def measure(python: Path, folder: Path, arm: str, network: str, rows: Path, params: Any) -> Found:
    """One run of one arm (peers.py)."""
    folder.mkdir()
    spec = {
        "arm": arm,
        "network": network,
        "rows": str(rows),
        "params": params.model_dump(mode="json"),
        "started": time.monotonic(),
    }
    (folder / "arm.json").write_text(json.dumps(spec))
    environment = {
        **os.environ,
        "PYTHONPATH": str(job.ROOT),
        "OMP_NUM_THREADS": str(params.threads),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [str(python), "-m", "benchmarks.bench.peers", str(folder)],
        cwd=job.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PerennialError(f"the arm {arm!r} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: Found = json.loads((folder / "answer.json").read_text())
    print(f"{arm}: {found['samples'] / found['cores']:.1f} samples per CPU-second", flush=True)
    return found


def cores_per_sample(found: Found, every: int, batch: int = job.BASE.batch_size) -> float:
    """CPU seconds per sample with a checkpoint every ``every`` steps.

    They are taken from a run that wrote ``len(saves)`` in few steps.
    """
    saves = [cores for _, cores in found["saves"]]
    saved = statistics.mean(saves) / (every * batch) if saves else 0.0
    return float((found["cores"] - sum(saves)) / found["samples"] + saved)


def arm_row(arm: str, found: Sequence[Found], every: int) -> Found:
    """Median, minimum and maximum of an arm's samples per CPU-second, and its median start-up."""
    rates = [1 / cores_per_sample(run, every) for run in found]
    saves = [save for run in found for save in run["saves"]]
    row = {
        "name": arm,
        "samples_per_cpu_second": round(statistics.median(rates), 2),
        "min": round(min(rates), 2),
        "max": round(max(rates), 2),
        "n": len(rates),
        "samples": found[0]["samples"],
        "samples_per_second": round(
            statistics.median(run["samples"] / (run["wall"] - sum(wall for wall, _ in run["saves"])) for run in found),
            2,
        ),
        "first_step_s": round(statistics.median(run["start_up"] for run in found), 2),
    }
    if saves:
        row |= {
            "save_cpu_s": round(statistics.median(cores for _, cores in saves), 3),
            "save_s": round(statistics.median(wall for wall, _ in saves), 3),
        }
    return row


def judged(found: dict[str, list[Found]], every: int) -> list[Found]:
    """The ratios that have a limit, and those of the peers for comparison."""
    middle = {arm: statistics.median(1 / cores_per_sample(run, every) for run in runs) for arm, runs in found.items()}
    return [
        goal(
            "ours / bare loop with the same batching (samples per CPU-second)",
            middle[OURS] / middle[BARE],
            0.97,
            "higher",
        ),
        goal("ours / fixed padding to 128, fp32", middle[OURS] / middle[PADDED], 5.0, "higher"),
    ]


def cost_row(folder: Path, strategy: str, network: str, every: int) -> Found:
    """Start-up to the first step, peak memory per rank and the cost of a checkpoint of one strategy."""
    place = folder / strategy.replace(" ", "-")
    params = job.BASE.model_copy(update={**job.STRATEGIES[strategy], "checkpoint_every": SAVE_AT})
    process = job.start(place, network, 0.1, folder / f"rows-{STRATEGY_SAMPLES}.pt", params)
    seen = job.watch(place, process, launched=strategy != "single")
    job.answer(place, process)
    steps = job.metrics(place)
    gaps = [after["seconds"] - before["seconds"] for before, after in pairwise(steps)]
    usual = statistics.median(gap for number, gap in enumerate(gaps, start=1) if number % SAVE_AT)
    saves = [max(0.0, gap - usual) for number, gap in enumerate(gaps, start=1) if number % SAVE_AT == 0]
    save = statistics.median(saves)
    checkpoint = max((place / "work" / "checkpoints").glob("step-*"), key=lambda path: path.stat().st_mtime_ns)
    print(f"{strategy}: measured", flush=True)
    return {
        "name": f"strategy {strategy}",
        "first_step_s": round(seen.first_step or 0.0, 2),
        "peak_mib_per_rank": [round(peak) for peak in sorted(seen.peaks.values(), reverse=True)[: params.ranks]],
        "step_s": round(usual, 3),
        "save_s": round(save, 3),
        "save_share": round(save / (save + every * usual), 4),
        "checkpoint_mb": round(sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) / 1e6, 1),
    }


if __name__ == "__main__":
    main()
