"""The training loop, one for every strategy and any number of ranks.

The order of the rows and the random numbers of dropout are functions of (seed, epoch, step, rank), so a checkpoint
holds no generator's state. The loss is summed over the global batch and divided by its size, so any number of ranks
follows the same path: without dropout the losses agree to rounding.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.errors import Preempted, TrainingDiverged
from pipelines.params import TrainParams
from pipelines.training.activation_checkpointing import activation_checkpointing
from pipelines.training.checkpoint import latest_checkpoint, publish, state_of
from pipelines.training.ema import clone_weights, copy_weights, swapped_in, update_ema
from pipelines.training.group import all_reduce_sum, get_rank, get_world_size
from pipelines.training.metrics import FILE, Metrics
from pipelines.training.objective import Objective, learning_rate_factor, objective, validation_objective
from pipelines.training.progress import Outcome, Progress, budget_spent, stop_reason
from pipelines.training.rows import STRIDE, Rows, batches, micro_batches, train_validation_split
from pipelines.training.strategies import ExtraWeights, set_up

CPU = torch.device("cpu")
CHECKPOINTS = "checkpoints"
HEARTBEAT = "heartbeat"
EMA = "ema"
BEST = "best"
NAMED_ROWS = 8
"""So many rows of a batch are named when its loss is not finite."""

Watch = Callable[[int, nn.Module], None]

log = logging.getLogger(__name__)


def optimise(
    model: nn.Module,
    rows: Rows,
    params: TrainParams,
    *,
    device: torch.device = CPU,
    work: Path | None = None,
    preempted: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> Outcome:
    """Train ``model`` (logits [B, 1] or [B, K], or standardised numbers [B, 1], from the rows' inputs by name).

    Every rank calls this with the same arguments. ``work`` keeps metrics and checkpoints; a checkpoint found there
    is where training goes on. Raises TrainingDiverged at the first loss or gradient that is not finite, Preempted
    once ``preempted`` says so on any rank, both on all ranks at the same step. ``watch`` is given every epoch's number
    and the model as it is judged then; what it raises ends the training.
    """
    with activation_checkpointing(model, enabled=params.activation_checkpointing):
        trainer = _Trainer(model, rows, params, device, work, watch)
        try:
            trainer.train(preempted)
        finally:
            trainer.metrics.flush()
        return trainer.finish()


@dataclass(frozen=True)
class _Step:
    """One optimiser step, the same on all ranks."""

    number: int
    """From 0, over the whole training."""
    epoch: int
    batch: Tensor
    """The global batch: positions among the training rows, int64 [B]."""
    epoch_rows: int
    """Rows of the epoch up to this step's."""
    ends_epoch: bool


class _Trainer:
    """One training on this rank.

    All ranks call the same methods in the same order: most of them wait for the other ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        params: TrainParams,
        device: torch.device,
        work: Path | None,
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.model = model
        self.params = params
        self.device = device
        self.work = work
        self.rank = get_rank()
        self.world_size = get_world_size()

        self.train_rows, self.validation_rows = train_validation_split(rows, params.validation_share)
        self.steps_per_epoch = math.ceil(len(self.train_rows) / params.batch_size)
        self.total_steps = self.steps_per_epoch * params.epochs
        self.epoch_batches: list[Tensor] = []
        self.loss_fn = objective(params, self.train_rows.labels, device, number=rows.number)

        self.strategy = set_up(model, params, device)
        self.weights = self.strategy.local_weights()
        self.extra_weights: ExtraWeights = {}
        if params.ema is not None:
            self.extra_weights[EMA] = clone_weights(self.weights)

        self.progress = Progress()
        self.resumed_from: int | None = None
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            self._resume(work / CHECKPOINTS)
        # All ranks write checkpoints, only rank 0 writes these two.
        self.metrics = Metrics(self._file_of_rank_zero(FILE), self.progress.step)
        self.heartbeat = self._file_of_rank_zero(HEARTBEAT)

    def train(self, preempted: Callable[[], bool]) -> None:
        """Step until the last epoch, early stopping or the budget ends the training."""
        self.model.train()
        self.started = time.perf_counter() - self.progress.seconds
        while not self.progress.stopped:
            self._train_step(preempted)

    def finish(self) -> Outcome:
        """The trained model: its best weights if there was a validation, else the EMA, else the last ones."""
        final_weights = self.extra_weights.get(BEST, self.extra_weights.get(EMA))
        if final_weights is not None:
            copy_weights(final_weights, self.weights)
        self.model.eval()
        return Outcome(self.strategy.full_state_dict(), self.progress, self.resumed_from)

    def _train_step(self, preempted: Callable[[], bool]) -> None:
        progress = self.progress
        step = self._next_step()
        # Dropout differs from rank to rank and from step to step, and a resumed step draws the same again.
        torch.manual_seed((self.params.seed * STRIDE + step.number) * 1024 + self.rank)
        local_loss = self._forward_backward(step.batch)
        self._beat()
        progress.seconds = time.perf_counter() - self.started

        # What one rank knows, all ranks learn before any of them acts: every rank stops at the same step, and none
        # waits for a rank that has left.
        loss_sum, ranks_leaving, ranks_out_of_budget = all_reduce_sum(
            [local_loss, preempted(), budget_spent(progress, self.params)]
        )
        self._check_finite("loss", loss_sum, step)
        lr_factor = learning_rate_factor(self.params, step.number, self.total_steps)
        grad_norm = self.strategy.clip_and_step(lr_factor)
        # None: the loss scaling of fp16 overflowed and left this optimiser step out.
        if grad_norm is not None:
            self._check_finite("gradient", grad_norm, step)

        progress.step += 1
        progress.summed += loss_sum
        progress.samples += len(step.batch)
        if self.params.ema is not None:
            update_ema(self.extra_weights[EMA], self.weights, self.params.ema, progress.step)
        self.metrics.add(
            step=progress.step,
            epoch=step.epoch,
            loss=loss_sum / len(step.batch),
            lr=self.params.learning_rate * lr_factor,
            grad_norm=grad_norm,
            samples=progress.samples,
            seconds=round(progress.seconds, 3),
        )

        out_of_budget = ranks_out_of_budget > 0
        # A budget that ends in the middle of an epoch ends the epoch, too: what was learned is judged.
        if step.ends_epoch or out_of_budget:
            self._end_epoch(step)
        progress.stopped = stop_reason(progress, self.params, self.total_steps, out_of_budget=out_of_budget)
        if not progress.stopped:
            self._checkpoint_or_leave(leaving=ranks_leaving > 0)

    def _next_step(self) -> _Step:
        epoch, position = divmod(self.progress.step, self.steps_per_epoch)
        # A resumed training starts in the middle of an epoch.
        if position == 0 or not self.epoch_batches:
            self.epoch_batches = batches(
                self.train_rows, self.params.batch_size, self.params.pool, self.params.seed, epoch
            )
        return _Step(
            number=self.progress.step,
            epoch=epoch,
            batch=self.epoch_batches[position],
            epoch_rows=sum(len(batch) for batch in self.epoch_batches[: position + 1]),
            ends_epoch=position + 1 == self.steps_per_epoch,
        )

    def _forward_backward(self, batch: Tensor) -> float:
        """Add the gradients of the global batch's mean loss; returns this rank's part of the loss's sum."""
        loss_sum = 0.0
        own_batches = micro_batches(batch, self.rank, self.world_size, self.params.accumulate)
        for number, micro_batch in enumerate(own_batches, start=1):
            is_last = number == len(own_batches)
            loss = self._loss(self.train_rows, micro_batch, batch, self.loss_fn, is_last=is_last)
            # Gradients are averaged over ranks, the loss's mean is over the global batch: undo one, do the other.
            self.strategy.backward(loss * (self.world_size / len(batch)))
            loss_sum = loss_sum + loss.detach()
        return float(loss_sum)

    def _loss(self, rows: Rows, index: Tensor, batch: Tensor, loss_fn: Objective, *, is_last: bool) -> Tensor:
        """The loss summed over the rows at ``index``, this rank's part of ``batch``.

        A rank without a row computes one that counts nothing: the others wait for its collectives.
        """
        is_empty = len(index) == 0
        if is_empty:
            index = batch[:1]
        loss = loss_fn(self.strategy.forward(rows.batch(index), is_last), rows.labels[index])
        if is_empty:
            return loss * 0.0
        return loss

    def _end_epoch(self, step: _Step) -> None:
        progress = self.progress
        progress.curve.append(progress.summed / step.epoch_rows)
        progress.summed = 0.0
        if self.watch is not None:
            with swapped_in(self.extra_weights.get(EMA), self.weights):
                self.watch(step.epoch, self.model)
            self.model.train()
        if self.validation_rows is None:
            return
        loss = self._validate(self.validation_rows)
        self._check_finite("validation loss", loss, step)
        is_best = self._keep_if_best(loss)
        self.metrics.add(step=progress.step, epoch=step.epoch, validation_loss=loss, best=is_best)

    def _validate(self, rows: Rows) -> float:
        """The mean loss over ``rows``, of the EMA's weights if there is an EMA; equal on all ranks."""
        loss_fn = validation_objective(self.params, rows.labels, self.device, number=rows.number)
        by_length = torch.arange(len(rows))
        if rows.lengths is not None:
            by_length = rows.lengths.argsort(stable=True)
        loss_sum = 0.0
        self.model.eval()
        with torch.no_grad(), swapped_in(self.extra_weights.get(EMA), self.weights):
            for batch in by_length.split(self.params.batch_size):
                own_rows = batch[self.rank :: self.world_size]
                loss_sum += float(self._loss(rows, own_rows, batch, loss_fn, is_last=True))
                self._beat()
        self.model.train()
        return all_reduce_sum([loss_sum])[0] / len(rows)

    def _keep_if_best(self, loss: float) -> bool:
        """Count a validation, and keep the weights if they are the best so far (the first ones always are)."""
        progress = self.progress
        is_best = not progress.validation or loss < min(progress.validation)
        progress.validation.append(loss)
        if is_best:
            progress.stale = 0
            self.extra_weights[BEST] = clone_weights(self.extra_weights.get(EMA, self.weights))
        else:
            progress.stale += 1
        return is_best

    def _checkpoint_or_leave(self, *, leaving: bool) -> None:
        step = self.progress.step
        is_due = self.params.checkpoint_every is not None and step % self.params.checkpoint_every == 0
        is_saved = False
        if is_due or leaving:
            is_saved = self._save_checkpoint()
        if not leaving:
            return
        if is_saved:
            raise Preempted(f"training was asked to leave at step {step}: run it again to go on there")
        raise Preempted(f"training was asked to leave at step {step}: nothing could be saved")

    def _save_checkpoint(self) -> bool:
        self.metrics.flush()
        if self.work is None:
            return False
        return publish(
            self.work / CHECKPOINTS,
            self.progress.step,
            lambda folder: self.strategy.save(folder, self.extra_weights),
            {"progress": asdict(self.progress), "kept": sorted(self.extra_weights)},
            self.params.keep_checkpoints,
        )

    def _resume(self, checkpoints: Path) -> None:
        """Go on at the newest checkpoint that is whole, if there is one."""
        found = latest_checkpoint(checkpoints)
        if found is None:
            return
        state = state_of(found)
        self.progress = Progress(**state["progress"])
        self.extra_weights = self.strategy.load(found, state["kept"])
        self.resumed_from = self.progress.step
        log.info("training goes on at step %d of %s", self.progress.step, found)

    def _check_finite(self, what: str, value: float, step: _Step) -> None:
        """Raise TrainingDiverged, which names the batch's rows, if ``value`` is not finite."""
        if math.isfinite(value):
            return
        names = [self.train_rows.ids[position] for position in step.batch.tolist()]
        shown = ", ".join(names[:NAMED_ROWS])
        if len(names) > NAMED_ROWS:
            shown += f" and {len(names) - NAMED_ROWS} more"
        raise TrainingDiverged(
            f"the {what} is {value} at step {step.number} (epoch {step.epoch}; rows {shown}): "
            "lower train.learning_rate or look at the rows"
        )

    def _beat(self) -> None:
        """Tell the launcher that this training lives."""
        if self.heartbeat is None:
            return
        with suppress(OSError):  # a full disk
            self.heartbeat.touch()

    def _file_of_rank_zero(self, name: str) -> Path | None:
        if self.work is None or self.rank != 0:
            return None
        return self.work / name


__all__ = ["CHECKPOINTS", "HEARTBEAT", "Outcome", "Progress", "optimise"]
