"""Activation checkpointing: memory for time (Chen et al., 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def activation_checkpointing(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Have each of ``model.blocks`` compute its activations again in the backward pass instead of keeping them."""
    if not enabled:
        yield
        return
    blocks = list(getattr(model, "blocks", ()))
    for block in blocks:
        # On the instance, over the class's own method: the modules' names, and with them the checkpoint's, stay.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
