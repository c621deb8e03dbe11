"""How one training is spread over ranks. The loop knows this interface, a model file knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError
from pipelines.params import TrainParams

ExtraWeights = dict[str, dict[str, Tensor]]
"""Weights beside the model's own: by purpose ("ema", "best"), then by name as in :attr:`Strategy.local_weights`."""
Name = Literal["single", "ddp", "fsdp", "deepspeed"]


@dataclass(frozen=True)
class Strategy:
    """What differs between strategies, as functions that close over the model and its optimiser."""

    forward: Callable[[Mapping[str, Tensor], bool], Tensor]
    """(inputs on any device, whether this is the step's last micro-batch) -> logits, float32."""
    backward: Callable[[Tensor], None]
    """Add the gradients of a loss; they are averaged over ranks at the last micro-batch."""
    clip_and_step: Callable[[float], float | None]
    """Factor of the base learning rates -> the gradients' global norm before clipping, equal on all ranks.

    Without a step if the norm is not finite; None if that was the loss scaling of fp16, which then is lower."""
    local_weights: Callable[[], dict[str, Tensor]]
    """This rank's shard of the trainable weights by name; writing to them changes the model."""
    save: Callable[[Path, ExtraWeights], None]
    """All ranks: write weights, optimiser and the extra weights into an existing folder."""
    load: Callable[[Path, Iterable[str]], ExtraWeights]
    """All ranks: read back what ``save`` wrote; the names are those that the extra weights had."""
    full_state_dict: Callable[[], dict[str, Tensor]]
    """All ranks: the whole model on the CPU, whatever the sharding; empty on ranks other than 0."""


def name_of(params: TrainParams) -> Name:
    """The strategy that ``auto`` stands for: ``single`` at one rank, ``ddp`` above."""
    if params.strategy != "auto":
        return params.strategy
    if params.ranks == 1:
        return "single"
    return "ddp"


def home_of(params: TrainParams) -> str:
    """The module of the strategy."""
    return {"fsdp": "fsdp", "deepspeed": "deepspeed"}.get(name_of(params), "single_ddp")


def set_up(model: nn.Module, params: TrainParams, device: torch.device) -> Strategy:
    """Move ``model`` to ``device`` and make it trainable under its strategy, inside the process group if there is one.

    Raises ConfigError if strategy and precision do not go together.
    """
    # Inside: deepspeed costs seconds and is the business of one strategy.
    strategy: Strategy = import_module(f"pipelines.training.strategies.{home_of(params)}").set_up(model, params, device)
    return strategy


def adamw(model: nn.Module, params: TrainParams) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) over the trainable weights.

    With ``head_learning_rate`` the weights of ``model.head`` are a group of their own. Each group's ``base`` is its
    learning rate before the schedule. Raises ConfigError if there is no head to give the rate to.
    """
    head: set[int] = set()
    if params.head_learning_rate is not None:
        if hasattr(model, "head"):
            head = {id(weight) for weight in model.head.parameters()}
        if not head:
            raise ConfigError(
                f"train.head_learning_rate is {params.head_learning_rate}, "
                f"but {type(model).__name__} has no `head`: remove it"
            )
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    body = {
        "params": [weight for weight in trainable if id(weight) not in head],
        "lr": params.learning_rate,
        "base": params.learning_rate,
    }
    top = {
        "params": [weight for weight in trainable if id(weight) in head],
        "lr": params.head_learning_rate,
        "base": params.head_learning_rate,
    }
    groups = [group for group in (body, top) if group["params"]]
    return torch.optim.AdamW(groups, params.learning_rate, weight_decay=params.weight_decay, fused=True)


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its base."""
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * factor
