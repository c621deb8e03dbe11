"""Weights on disk, and their identity."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def weights_sha256(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers, in name order."""
    return state_sha256(model.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """:func:`weights_sha256` of a model with this state dict."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict; the file's bytes depend on the weights and the file's name alone."""
    torch.save(model.state_dict(), path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into ``model`` and put it in evaluation mode."""
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()


def fits(model: nn.Module, path: Path) -> bool:
    """Whether a state dict has the names and shapes of ``model``; one that has not is named in a warning."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in torch.load(path, weights_only=True, mmap=True).items()}
    if found != expected:
        log.warning("%s are weights of another architecture: training starts without them", path)
    return found == expected
