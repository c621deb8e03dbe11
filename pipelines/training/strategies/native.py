"""What single, DDP and FSDP share: torch's own optimiser step and torch's own checkpoint format.

The format is one for the three, so a training can go on under another of them and with another number of ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from pipelines.params import TrainParams
from pipelines.training.strategies import ExtraWeights, Strategy, adamw, set_rates

# It is one rank at times, and knows it.
warnings.filterwarnings("ignore", r"torch\.distributed is disabled, unavailable or uninitialized", UserWarning)

HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Dynamic loss scaling for fp16 (Micikevicius et al., 2018, arXiv:1710.03740): the scale is halved at an overflow, and
# doubled after so many steps without one.
FIRST_SCALE = 2.0**12
LARGEST_SCALE = 2.0**24
STEPS_TO_GROW = 500


def native(  # noqa: C901 - one closure per function of the interface
    model: nn.Module,
    network: nn.Module,
    params: TrainParams,
    device: torch.device,
    *,
    set_gradient_sync: Callable[[bool], None],
    reshard: Callable[[], None] = lambda: None,
) -> Strategy:
    """The strategy of ``network``, which runs ``model`` (or is it).

    ``set_gradient_sync(is_last)`` has the gradients all-reduced at the last micro-batch, and not before.
    ``reshard`` ends a forward pass that no backward pass follows.
    """
    optimiser = adamw(model, params)
    half = HALF_PRECISION.get(params.precision)
    scales_loss = params.precision == "fp16"
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    # The loss scale, and the steps since it changed; every rank computes them from the same norms.
    scaling = torch.tensor([1.0, 0.0], dtype=torch.float64)
    if scales_loss:
        scaling[0] = FIRST_SCALE

    def forward(inputs: Mapping[str, Tensor], is_last: bool) -> Tensor:
        set_gradient_sync(is_last)
        with torch.autocast(device.type, half, enabled=half is not None):
            logits: Tensor = network(**{name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()})
        if not torch.is_grad_enabled():
            reshard()
        return logits.float()

    def backward(loss: Tensor) -> None:
        if scales_loss:
            loss = loss * float(scaling[0])
        loss.backward()

    def clip_and_step(factor: float) -> float | None:
        scale = float(scaling[0])
        gradients = [weight.grad for weight in trainable.values() if weight.grad is not None]
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1 / scale)
        norm = nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        value = float(norm)
        if math.isfinite(value):
            if params.clip is not None:
                nn.utils.clip_grads_with_norm_(trainable.values(), params.clip, norm)
            set_rates(optimiser, factor)
            optimiser.step()
        optimiser.zero_grad()
        if scales_loss:
            return _rescaled(scaling, value)
        return value

    def save(folder: Path, extra_weights: ExtraWeights) -> None:
        weights, state = get_state_dict(model, optimiser)
        parts = _parts(weights, state, extra_weights, scaling)
        dcp.save(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())

    def load(folder: Path, names: Iterable[str]) -> ExtraWeights:
        extra_weights = {name: {key: weight.detach().clone() for key, weight in trainable.items()} for name in names}
        weights, state = get_state_dict(model, optimiser)
        parts = _parts(weights, state, extra_weights, scaling)
        dcp.load(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())
        set_state_dict(model, optimiser, model_state_dict=parts["model"], optim_state_dict=parts["optimiser"])
        return extra_weights

    def full_state_dict() -> dict[str, Tensor]:
        whole: dict[str, Tensor] = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return whole

    return Strategy(forward, backward, clip_and_step, lambda: trainable, save, load, full_state_dict)


def _parts(
    weights: dict[str, Any], state: dict[str, Any], extra_weights: ExtraWeights, scaling: Tensor
) -> dict[str, Any]:
    """What a checkpoint holds; these names are those of checkpoints on disk."""
    return {"model": weights, "optimiser": state, "kept": extra_weights, "scaling": scaling}


def _rescaled(scaling: Tensor, norm: float) -> float | None:
    """Move the loss scale after a step with gradient ``norm``; returns the norm, or None if the scale overflowed.

    An overflow at a scale of 1 is the model's own, not that of the scaling.
    """
    if math.isfinite(norm):
        scaling[1] += 1
        if scaling[1] >= STEPS_TO_GROW:
            scaling[0] = min(float(scaling[0]) * 2, LARGEST_SCALE)
            scaling[1] = 0.0
        return norm
    if scaling[0] <= 1:
        return norm
    scaling[0] = max(float(scaling[0]) / 2, 1.0)
    scaling[1] = 0.0
    return None
