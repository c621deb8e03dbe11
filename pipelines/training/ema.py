"""Weights beside the model's own: their exponential moving average (EMA), and a copy of the best ones so far.

Each is a dictionary from a parameter's name to this rank's shard of it, sharded as the model's own weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()  # type: ignore[untyped-decorator]
def clone_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of this rank's weights."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()  # type: ignore[untyped-decorator]
def copy_weights(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Overwrite the weights of ``target`` in place with those of ``source``."""
    for name, weight in target.items():
        _local(weight).copy_(_local(source[name]))


@torch.no_grad()  # type: ignore[untyped-decorator]
def update_ema(ema: dict[str, Tensor], weights: dict[str, Tensor], decay: float, step: int) -> None:
    """Move the average towards ``weights`` after optimiser step ``step`` (from 1).

    The decay starts low, at min(decay, (1 + step) / (10 + step)), so that the random first weights are soon forgotten.
    """
    warmed_up_decay = min(decay, (1 + step) / (10 + step))
    averages = [_local(ema[name]) for name in weights]
    torch._foreach_lerp_(averages, [_local(weight) for weight in weights.values()], 1 - warmed_up_decay)


@contextmanager
def swapped_in(other: dict[str, Tensor] | None, weights: dict[str, Tensor]) -> Iterator[None]:
    """Let the model compute with the ``other`` weights inside the block; with None it keeps its own."""
    if other is None:
        yield
        return
    own = clone_weights(weights)
    copy_weights(other, weights)
    yield
    copy_weights(own, weights)


def _local(weight: Any) -> Any:
    """This rank's shard of a DTensor, or the tensor itself."""
    if hasattr(weight, "to_local"):
        return weight.to_local()
    return weight
