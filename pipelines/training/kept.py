"""Weights beside the live ones: their moving average, and the best so far. Both have the sharding of the live ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()  # type: ignore[untyped-decorator]
def copy_of(live: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of this rank's weights."""
    return {name: weight.detach().clone() for name, weight in live.items()}


@torch.no_grad()  # type: ignore[untyped-decorator]
def put(kept: dict[str, Tensor], live: dict[str, Tensor]) -> None:
    """Make the live weights equal to ``kept``."""
    for name, weight in live.items():
        _own(weight).copy_(_own(kept[name]))


@torch.no_grad()  # type: ignore[untyped-decorator]
def follow(average: dict[str, Tensor], live: dict[str, Tensor], decay: float, step: int) -> None:
    """Move the exponential moving average towards the live weights after optimiser step ``step`` (from 1).

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random first weights are soon forgotten.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_([_own(average[name]) for name in live], [_own(weight) for weight in live.values()], share)


@contextmanager
def swapped(kept: dict[str, Tensor] | None, live: dict[str, Tensor]) -> Iterator[None]:
    """Have the model compute with ``kept`` for a while (with its own weights at None)."""
    if kept is None:
        yield
        return
    own = copy_of(live)
    put(kept, live)
    yield
    put(own, live)


def _own(weight: Any) -> Any:
    """This rank's shard of a distributed tensor, or the tensor itself."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
