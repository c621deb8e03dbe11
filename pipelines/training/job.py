"""What lies in a training's working folder, by which the caller, the agent and the ranks understand each other.

Files work for a fork, a fresh process and another node alike.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from pipelines.errors import CaseError, ConfigError, DataError, PerennialError, Preempted, TrainingDiverged, Unavailable
from pipelines.files import make_durable, write_atomic
from pipelines.params import TrainParams
from pipelines.training.progress import Outcome, Progress
from pipelines.training.strategies import name_of

JOB = "job.json"
MODEL = "model.pt"
ROWS = "rows.pt"
FAILURES = "failures"
RESULT = "result.json"
WEIGHTS = "result.pt"
ERRORS: dict[str, type[PerennialError]] = {
    kind.__name__: kind for kind in (TrainingDiverged, ConfigError, CaseError, DataError, Preempted, Unavailable)
}


def write_result(folder: Path, outcome: Outcome, params: TrainParams) -> None:
    """Leave a finished training in ``folder``, the facts last: without them there is no result."""
    try:
        torch.save(outcome.state, folder / f".{WEIGHTS}")
        make_durable([folder / f".{WEIGHTS}"])
        os.replace(folder / f".{WEIGHTS}", folder / WEIGHTS)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise Unavailable(
            f"the trained weights cannot be written to {folder} ({error}): free space and run the step again"
        ) from error
    progress = outcome.progress
    strategy: str = name_of(params)
    if strategy == "deepspeed":
        strategy = f"deepspeed zero {params.zero_stage}"
    facts = {
        "strategy": strategy,
        "precision": params.precision,
        "ranks": params.ranks,
        "stopped": progress.stopped,
        "steps": progress.step,
        "epochs": len(progress.curve),
        "curve": progress.curve,
        "validation": progress.validation,
        "resumed_from": outcome.resumed_from,
        "samples": progress.samples,
        "samples_per_second": _samples_per_second(progress),
        "seconds": round(progress.seconds, 3),
    }
    write_atomic(folder / RESULT, json.dumps(facts).encode())


def _samples_per_second(progress: Progress) -> float | None:
    if not progress.seconds:
        return None
    return round(progress.samples / progress.seconds, 1)


def note(folder: Path, who: str, error: BaseException) -> None:
    """Leave an error for the process that waits for this training."""
    write_atomic(
        folder / FAILURES / f"{who}.json", json.dumps({"kind": type(error).__name__, "message": str(error)}).encode()
    )


def failure(folder: Path, code: int) -> PerennialError:
    """The error of a training that failed: what a rank said on purpose, else what the agent saw of its death."""
    notes = [json.loads(path.read_text()) for path in sorted((folder / FAILURES).glob("*.json"))]
    for kind, error in ERRORS.items():
        for found in notes:
            if found["kind"] == kind:
                return error(found["message"])
    seen = f"the agent ended with code {code}"
    if notes:
        seen = notes[0]["message"]
    return Unavailable(f"a training rank failed: {seen}; run the step again")
