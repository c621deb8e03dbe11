"""All that is asked of a strategy, in one launch: ``python -m tests.pipelines.training.ranks FOLDER NAME...``.

Two ranks are forked, each name (ddp, fsdp, zero1, zero2, zero3) goes through :func:`trials` in one process group,
and rank 0 leaves what came out in ``FOLDER/NAME.json``.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # what every optimiser imports: once for both ranks

from pipelines.errors import TrainingDiverged, Unavailable
from pipelines.training import rank as one_rank
from pipelines.training.checkpoint import SUMS, publish
from pipelines.training.group import all_reduce_sum, barrier, get_rank, get_world_size, process_group
from pipelines.training.loop import CHECKPOINTS, optimise
from pipelines.training.metrics import read
from pipelines.training.rows import Rows
from pipelines.training.weights import state_sha256
from tests.pipelines.training.models import TEXT, both, mixed, noisy, number, numbers, reader, texts

STRATEGIES = {
    "single": {"strategy": "single"},
    "ddp": {"strategy": "ddp", "ranks": 2},
    "fsdp": {"strategy": "fsdp", "ranks": 2},
    **{f"zero{stage}": {"strategy": "deepspeed", "zero_stage": stage, "ranks": 2} for stage in (1, 2, 3)},
}
EVERYTHING = {
    "ema": 0.9,
    "validation_share": 0.2,
    "warmup": 0.2,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "class_weights": "sqrt",
    "accumulate": 2,
}
OF_NUMBERS = {"label_smoothing": 0.0, "class_weights": "none", "head_learning_rate": None}
"""What is left out of it where the target is a number and the network has no head of its own."""
OF_MIXED = {"label_smoothing": 0.0, "head_learning_rate": 0.1}
"""With a text beside a table losses fall fast, so that a table that is not read is seen in them."""
LEFT_AT = 4
"""The step after which the interrupted trainings leave: in the middle of the first epoch of the two."""


def trials(name: str, folder: Path) -> dict:
    """What the tests look at, by trial; only rank 0's answer is whole."""
    params = TEXT.model_copy(update=STRATEGIES[name])
    rows, work = texts(), folder / name

    def train(build=reader, rows: Rows = rows, leave: int | None = None, **changes):
        chosen = params.model_copy(update=changes)
        torch.manual_seed(chosen.seed)
        steps = itertools.count(1)
        return optimise(
            build(),
            rows,
            chosen,
            work=work,
            preempted=lambda: next(steps) == leave and get_rank() == get_world_size() - 1,
        )

    def told(outcome) -> dict:
        return {
            "losses": [line["loss"] for line in read(work / "metrics.jsonl") if "loss" in line],
            "norms": [line["grad_norm"] for line in read(work / "metrics.jsonl") if "loss" in line],
            "sha256": state_sha256(outcome.state),
            "validation": outcome.progress.validation,
            "stopped": outcome.progress.stopped,
            "steps": outcome.progress.step,
            "resumed_from": outcome.resumed_from,
        }

    def left(build, **changes) -> str:
        try:
            train(build, leave=LEFT_AT, **changes)
        except Unavailable as error:
            return str(error)
        return "it did not leave"

    found = {}
    work.mkdir(parents=True, exist_ok=True)
    found["plain"] = told(train())
    found["accumulated"] = told(train(accumulate=2))
    found["recomputed"] = told(train(activation_checkpointing=True))
    found["all"] = told(train(**EVERYTHING))
    found["noisy"] = told(train(noisy, **EVERYTHING))
    found["left"] = left(noisy, **EVERYTHING)
    found["resumed"] = told(train(noisy, **EVERYTHING))
    found["again"] = told(train(noisy, **EVERYTHING))
    work = folder / f"{name}-to-others"
    found["left plain"] = left(reader)
    work = folder / f"{name}-diverges"
    try:
        train(_broken)
    except TrainingDiverged as error:
        found["diverged"] = str(error)
    work = folder / f"{name}-budget"
    found["budget"] = told(train(budget_minutes=1e-9))
    work = folder / f"{name}-number"
    found["number"] = told(train(number, numbers(), **(EVERYTHING | OF_NUMBERS)))
    work = folder / f"{name}-mixed"
    found["mixed"] = told(train(mixed, both(), **(EVERYTHING | OF_MIXED)))
    work = folder / f"{name}-bf16"
    if name in {"single", "ddp", "fsdp", "zero3"}:
        found["bf16"] = told(train(precision="bf16"))
        found["mixed bf16"] = told(train(mixed, both(), precision="bf16", **(EVERYTHING | OF_MIXED)))
    if name in {"single", "ddp", "fsdp"}:
        found["fp16"] = told(train(precision="fp16"))
    work = folder / f"{name}-full"
    found["full"] = told(_on_a_full_disk(lambda: train(checkpoint_every=2)))
    found["full"]["left behind"] = [path.name for path in (work / CHECKPOINTS).iterdir()]
    publish(folder / f"{name}-late", 1, _late, {}, keep=1)
    found["late"] = sorted(json.loads((folder / f"{name}-late" / "step-1" / SUMS).read_text()))
    other = folder / "single-to-others"
    if name != "single" and not name.startswith("zero"):
        work = other
        found["from single"] = told(train())
        barrier()
    return found


def _late(folder: Path) -> None:
    """Each rank's part of a checkpoint, the last rank's long after the first one's."""
    time.sleep(0.3 * get_rank())
    (folder / f"part-{get_rank()}").write_text("written")


def _on_a_full_disk(run):
    """Run with files limited to 4 KiB for the optimiser's and model's sake: writes beyond it fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        return run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _broken():
    """A reader whose token 23 has no finite meaning: rows that hold it spoil the loss."""
    model = reader()
    with torch.no_grad():
        model.embedding.weight[23] = float("nan")
    return model


def _rank(number: int, port: int, folder: Path, names: list[str]) -> None:
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    with process_group(torch.device("cpu"), 60):
        for name in names:
            found = trials(name, folder)
            if number == 0:
                (folder / f"{name}.json").write_text(json.dumps(found))
            all_reduce_sum([0.0])


def main(folder: Path, names: list[str]) -> int:
    """Fork two ranks and wait for both."""
    for name in names:
        one_rank.preload(TEXT.model_copy(update=STRATEGIES[name]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        torch.multiprocessing.get_context("fork").Process(target=_rank, args=(number, port, folder, names))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
    return sum(process.exitcode != 0 for process in processes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
