"""One plain loop for one rank or many.

The state of the data order and of dropout is a function of (seed, epoch, step, rank), so there is no
generator to save. The loss is summed over the global batch and divided by its size, so any number of
ranks follows the same path: at dropout 0 the losses agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipelines.config import TrainParams
from pipelines.errors import TrainingDiverged

_STRIDE = 1_000_003
"""A prime that keeps the seeds of different (seed, epoch) and (seed, step) apart."""


@dataclass(frozen=True)
class Rows:
    """Training rows: ``categorical`` int64 [n, C], ``numeric`` float32 [n, N], ``labels`` float32 [n] of 0 and 1."""

    categorical: Tensor
    numeric: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def as_rows(tensors: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> Rows:
    """Rows from encoded columns (:func:`pipelines.fields.encode`) and labels ``[n]`` of 0 and 1."""
    return Rows(torch.from_numpy(tensors["categorical"]), torch.from_numpy(tensors["numeric"]), torch.tensor(labels, dtype=torch.float32))


def order(rows: int, seed: int, epoch: int) -> Tensor:
    """The permutation of ``rows`` rows in one epoch: the same for every rank and every try."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * _STRIDE + epoch))


def optimise(model: nn.Module, rows: Rows, params: TrainParams) -> list[float]:
    """Train ``model`` (logits [B, 1] from (categorical, numeric)) in place; returns each epoch's mean loss.

    Inside a process group every rank calls this with the same rows and takes its share of each batch.
    Raises TrainingDiverged at the first loss that is not finite.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # The reducer averages gradients over ranks; buffers are constants, so no forward needs to send them.
    network = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False) if ranks > 1 else model
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), params.learning_rate, weight_decay=params.weight_decay, fused=True)
    curve: list[float] = []
    step = 0
    for epoch in range(params.epochs):
        total = 0.0
        for batch in order(len(rows), params.seed, epoch).split(params.batch_size):
            torch.manual_seed((params.seed * _STRIDE + step) * 1024 + rank)
            share = batch[rank::ranks]
            logits = network(rows.categorical[share], rows.numeric[share]).squeeze(1)
            loss = binary_cross_entropy_with_logits(logits, rows.labels[share], reduction="sum")
            optimiser.zero_grad()
            (loss * (ranks / len(batch))).backward()
            summed = loss.detach()
            if ranks > 1:
                dist.all_reduce(summed)
            value = summed.item()
            # The sum over ranks is checked, so every rank stops at the same step and none waits for another.
            if not math.isfinite(value):
                raise TrainingDiverged(f"the loss is {value} at step {step} (epoch {epoch}): lower train.learning_rate or look at the rows")
            optimiser.step()
            total += value
            step += 1
        curve.append(total / len(rows))
    network.eval()
    return curve
