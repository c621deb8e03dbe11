"""One loop for every strategy and any number of ranks, from top to bottom.

The state of the data order and of dropout is a function of (seed, epoch, step, rank), so there is no
generator to save. The loss is summed over the global batch and divided by its size, so any number of
ranks follows the same path: at dropout 0 the losses agree to rounding.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from pipelines.errors import Preempted, TrainingDiverged
from pipelines.params import TrainParams
from pipelines.training import kept as beside
from pipelines.training.checkpoint import newest as newest_checkpoint
from pipelines.training.checkpoint import publish, state_of
from pipelines.training.group import place, total
from pipelines.training.metrics import FILE, Metrics
from pipelines.training.objective import objective, plain, rate_factor
from pipelines.training.rows import STRIDE, Rows, batches, newest, shares
from pipelines.training.strategies import Strategy, set_up

CPU = torch.device("cpu")
CHECKPOINTS, HEARTBEAT = "checkpoints", "heartbeat"
Stopped = Literal["", "finished", "early", "budget"]

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a training stands; with the checkpoint's weights, all that is needed to go on."""

    step: int = 0
    """Optimiser steps done."""
    summed: float = 0.0
    """Loss of the epoch so far, summed over rows."""
    curve: list[float] = field(default_factory=list)
    """Mean loss of each epoch; the last one may be a part of one, if the budget was spent."""
    validation: list[float] = field(default_factory=list)
    stale: int = 0
    """Validations since the best one."""
    samples: int = 0
    seconds: float = 0.0
    """Time in the loop, over all tries."""
    stopped: Stopped = ""


@dataclass(frozen=True)
class Outcome:
    """A finished training: the whole model's state on rank 0, and how it went."""

    state: dict[str, Tensor]
    progress: Progress
    resumed_from: int | None


def optimise(  # noqa: C901, PLR0915 - one page, from top to bottom
    model: nn.Module,
    rows: Rows,
    params: TrainParams,
    *,
    device: torch.device = CPU,
    work: Path | None = None,
    preempted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train ``model`` (logits [B, 1] or [B, K] from the rows' inputs by name); every rank calls this with the same arguments.

    ``work`` keeps metrics and checkpoints; a checkpoint found there is where training goes on. Raises
    TrainingDiverged at the first loss or gradient that is not finite, Preempted once ``preempted`` says so on
    any rank, both on all ranks at the same step.
    """
    rank = place()[0]
    rows, held = newest(rows, params.validation_share)
    loss_of = objective(params, rows.labels, device)
    with _checkpointed(model, on=params.activation_checkpointing), ExitStack() as ending:
        strategy = set_up(model, params, device)
        live = strategy.live()
        kept = {"ema": beside.copy_of(live)} if params.ema is not None else {}
        progress, resumed_from = Progress(), None
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        if work is not None and (found := newest_checkpoint(work / CHECKPOINTS)):
            state = state_of(found)
            progress, kept = Progress(**state["progress"]), strategy.load(found, state["kept"])
            resumed_from = progress.step
            log.info("training goes on at step %d of %s", progress.step, found)
        metrics = Metrics(work / FILE if work is not None and rank == 0 else None, progress.step)
        ending.callback(metrics.flush)
        beat = partial(_beat, work / HEARTBEAT if work is not None and rank == 0 else None)

        def save() -> bool:
            state = {"progress": asdict(progress), "kept": sorted(kept)}
            metrics.flush()
            return work is not None and publish(
                work / CHECKPOINTS,
                progress.step,
                lambda path: strategy.save(path, kept),
                state,
                params.keep_checkpoints,
            )

        per_epoch = math.ceil(len(rows) / params.batch_size)
        steps, shuffled, cut = per_epoch * params.epochs, -1, []
        model.train()
        before, begun = progress.seconds, time.perf_counter()
        while not progress.stopped:
            epoch, at = divmod(progress.step, per_epoch)
            if shuffled != epoch:
                shuffled, cut = epoch, batches(rows, params.batch_size, params.pool, params.seed, epoch)
            batch, factor = cut[at], rate_factor(params, progress.step, steps)
            torch.manual_seed((params.seed * STRIDE + progress.step) * 1024 + rank)
            summed = _forward_backward(strategy, rows, batch, loss_of, params.accumulate)
            beat()
            progress.seconds = before + time.perf_counter() - begun
            # What one rank knows, all learn before any of them acts: every rank stops at the same step and none waits for another.
            value, leaving, spent = total([summed, preempted(), _over(progress, params)])
            _finite("loss", value, progress.step, epoch, rows, batch)
            norm = strategy.clip_and_step(factor)
            _finite("gradient", 0.0 if norm is None else norm, progress.step, epoch, rows, batch)
            progress.step, progress.summed, progress.samples = (
                progress.step + 1,
                progress.summed + value,
                progress.samples + len(batch),
            )
            if params.ema is not None:
                beside.follow(kept["ema"], live, params.ema, progress.step)
            metrics.add(
                step=progress.step,
                epoch=epoch,
                loss=value / len(batch),
                lr=params.learning_rate * factor,
                grad_norm=norm,
                samples=progress.samples,
                seconds=round(progress.seconds, 3),
            )
            if at + 1 == per_epoch or spent:
                progress.curve.append(progress.summed / sum(map(len, cut[: at + 1])))
                progress.summed = 0.0
            if held is not None and (at + 1 == per_epoch or spent):
                loss = _validate(model, strategy, held, params, device, kept.get("ema"), beat)
                _finite("validation loss", loss, progress.step - 1, epoch, rows, batch)
                _judge(progress, loss, kept, live)
                metrics.add(step=progress.step, epoch=epoch, validation_loss=loss, best=not progress.stale)
            progress.stopped = _ending(progress, params, steps, spent=spent > 0)
            due = params.checkpoint_every is not None and progress.step % params.checkpoint_every == 0
            saved = (due or leaving > 0) and not progress.stopped and save()
            if leaving and not progress.stopped:
                raise Preempted(
                    f"training was asked to leave at step {progress.step}: {'run it again to go on there' if saved else 'nothing could be saved'}"
                )
        metrics.flush()
        best = kept.get("best", kept.get("ema"))
        if best is not None:
            beside.put(best, live)
        model.eval()
        return Outcome(strategy.full_state_dict(), progress, resumed_from)


def _forward_backward(
    strategy: Strategy, rows: Rows, batch: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], accumulate: int
) -> float:
    """Gradients of the global batch's mean loss; returns this rank's part of its sum."""
    rank, ranks = place()
    parts = shares(batch, rank, ranks, accumulate)
    summed: list[Tensor] = []
    for number, own in enumerate(parts, start=1):
        loss = _loss(strategy, rows, own, batch, loss_of, last=number == len(parts))
        # The reduction averages over ranks.
        strategy.backward(loss * (ranks / len(batch)))
        summed.append(loss.detach())
    return float(sum(summed))


def _loss(
    strategy: Strategy,
    rows: Rows,
    own: Tensor,
    batch: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    last: bool,
) -> Tensor:
    """Summed loss of the rows ``own``. A rank without a row computes one that counts nothing: the others wait for its collectives."""
    index = own if len(own) else batch[:1]
    loss = loss_of(strategy.forward(rows.batch(index), last), rows.labels[index])
    return loss if len(own) else loss * 0.0


def _finite(what: str, value: float, step: int, epoch: int, rows: Rows, batch: Tensor) -> None:
    if not math.isfinite(value):
        names = [rows.ids[i] for i in batch.tolist()]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise TrainingDiverged(
            f"the {what} is {value} at step {step} (epoch {epoch}; rows {shown}): lower train.learning_rate or look at the rows"
        )


@torch.no_grad()  # type: ignore[untyped-decorator]
def _validate(
    model: nn.Module,
    strategy: Strategy,
    held: Rows,
    params: TrainParams,
    device: torch.device,
    average: dict[str, Tensor] | None,
    beat: Callable[[], None],
) -> float:
    """Mean plain loss over the validation rows, with the averaged weights if there are any; equal on all ranks."""
    rank, ranks = place()
    loss_of, summed = objective(plain(params), held.labels, device), 0.0
    by_length = torch.arange(len(held)) if held.lengths is None else held.lengths.argsort(stable=True)
    model.eval()
    with beside.swapped(average, strategy.live()):
        for batch in by_length.split(params.batch_size):
            summed += float(_loss(strategy, held, batch[rank::ranks], batch, loss_of, last=True))
            beat()
    model.train()
    return total([summed])[0] / len(held)


def _judge(progress: Progress, loss: float, kept: dict[str, dict[str, Tensor]], live: dict[str, Tensor]) -> None:
    """Count a validation, and keep the weights if they are the best so far (the first ones always are)."""
    better = not progress.validation or loss < min(progress.validation)
    progress.validation.append(loss)
    progress.stale = 0 if better else progress.stale + 1
    if better:
        kept["best"] = beside.copy_of(kept.get("ema", live))


def _over(progress: Progress, params: TrainParams) -> bool:
    """Whether the step that is being done spends the budget, in minutes or in steps."""
    late = params.budget_minutes is not None and progress.seconds >= 60 * params.budget_minutes
    return late or (params.stop_after is not None and progress.step + 1 >= params.stop_after)


def _ending(progress: Progress, params: TrainParams, steps: int, *, spent: bool) -> Stopped:
    if progress.step >= steps:
        return "finished"
    if params.patience is not None and progress.stale >= params.patience:
        return "early"
    return "budget" if spent else ""


def _beat(path: Path | None) -> None:
    """Tell the launcher that this training lives."""
    if path is not None:
        with suppress(OSError):  # a full disk
            path.touch()


class _checkpointed:  # noqa: N801 - used like a function
    """Compute the blocks' activations again in the backward pass instead of keeping them (Chen et al., 2016, arXiv:1604.06174)."""

    def __init__(self, model: nn.Module, *, on: bool) -> None:
        self.blocks: Sequence[Any] = list(getattr(model, "blocks", ())) if on else []

    def __enter__(self) -> None:
        for block in self.blocks:
            block.forward = partial(recomputed, block.forward, use_reentrant=False)

    def __exit__(self, *_: object) -> None:
        for block in self.blocks:
            del block.forward


__all__ = ["CHECKPOINTS", "HEARTBEAT", "Outcome", "Progress", "optimise"]
