"""How far a training has come, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from pipelines.params import TrainParams

Stopped = Literal["", "finished", "early", "budget"]


@dataclass
class Progress:
    """Where a training stands; with a checkpoint's weights, all that is needed to go on.

    The names are those of a checkpoint's ``state.json``: checkpoints of earlier commits are read, too.
    """

    step: int = 0
    """Optimiser steps done."""
    summed: float = 0.0
    """Loss of the epoch so far, summed over its rows."""
    curve: list[float] = field(default_factory=list)
    """Mean loss of each epoch; the last one may be a part of one, if the budget was spent."""
    validation: list[float] = field(default_factory=list)
    """Mean loss of each validation."""
    stale: int = 0
    """Validations since the best one."""
    samples: int = 0
    """Rows trained on, over all epochs."""
    seconds: float = 0.0
    """Time in the loop, over all tries."""
    stopped: Stopped = ""
    """What ended the training; empty while it goes on."""


@dataclass(frozen=True)
class Outcome:
    """A finished training: the whole model's state on rank 0, and how it went."""

    state: dict[str, Tensor]
    progress: Progress
    resumed_from: int | None


def budget_spent(progress: Progress, params: TrainParams) -> bool:
    """Whether the step that is being done spends the budget, in minutes or in steps."""
    if params.budget_minutes is not None and progress.seconds >= 60 * params.budget_minutes:
        return True
    return params.stop_after is not None and progress.step + 1 >= params.stop_after


def stop_reason(progress: Progress, params: TrainParams, total_steps: int, *, out_of_budget: bool) -> Stopped:
    """Why a training ends after the steps done so far, or empty if it goes on."""
    if progress.step >= total_steps:
        return "finished"
    if params.patience is not None and progress.stale >= params.patience:
        return "early"
    if out_of_budget:
        return "budget"
    return ""
