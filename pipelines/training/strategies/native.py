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
from pipelines.training.strategies import Kept, Strategy, adamw, set_rates

# It is one rank at times, and knows it.
warnings.filterwarnings("ignore", r"torch\.distributed is disabled, unavailable or uninitialized", UserWarning)

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, LARGEST_SCALE, STEPS_TO_GROW = 2.0**12, 2.0**24, 500
"""Dynamic loss scaling for fp16 (Micikevicius et al., 2018, arXiv:1710.03740): halved at an overflow, doubled after so many steps without one."""


def native(  # noqa: C901 - one closure per function of the interface
    model: nn.Module,
    network: nn.Module,
    params: TrainParams,
    device: torch.device,
    *,
    sync: Callable[[bool], None],
    rest: Callable[[], None] = lambda: None,
) -> Strategy:
    """The strategy of ``network``, which runs ``model`` (or is it): ``sync(last)`` turns the reduction of gradients on for the last micro-batch.

    ``rest`` ends a forward pass that no backward pass follows.
    """
    optimiser = adamw(model, params)
    half = HALVES.get(params.precision)
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    # One number of state; every rank computes it from the same norms.
    scaling = torch.tensor([FIRST_SCALE if params.precision == "fp16" else 1.0, 0.0], dtype=torch.float64)

    def forward(inputs: Mapping[str, Tensor], last: bool) -> Tensor:
        sync(last)
        with torch.autocast(device.type, half, enabled=half is not None):
            logits: Tensor = network(**{name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()})
        if not torch.is_grad_enabled():
            rest()
        return logits.float()

    def backward(loss: Tensor) -> None:
        (loss * float(scaling[0]) if params.precision == "fp16" else loss).backward()

    def clip_and_step(factor: float) -> float | None:
        scale = float(scaling[0])
        gradients = [weight.grad for weight in trainable.values() if weight.grad is not None]
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1 / scale)
        norm = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        value = float(norm)
        if math.isfinite(value):
            if params.clip is not None:
                nn.utils.clip_grads_with_norm_(trainable.values(), params.clip, norm)
            set_rates(optimiser, factor)
            optimiser.step()
        optimiser.zero_grad()
        return value if params.precision != "fp16" else _rescaled(scaling, value)

    def save(folder: Path, kept: Kept) -> None:
        weights, state = get_state_dict(model, optimiser)
        dcp.save(_parts(weights, state, kept, scaling), checkpoint_id=folder, no_dist=not dist.is_initialized())

    def load(folder: Path, names: Iterable[str]) -> Kept:
        kept = {name: {key: weight.detach().clone() for key, weight in trainable.items()} for name in names}
        weights, state = get_state_dict(model, optimiser)
        parts = _parts(weights, state, kept, scaling)
        dcp.load(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())
        set_state_dict(model, optimiser, model_state_dict=parts["model"], optim_state_dict=parts["optimiser"])
        return kept

    def full_state_dict() -> dict[str, Tensor]:
        whole: dict[str, Tensor] = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return whole

    return Strategy(forward, backward, clip_and_step, lambda: trainable, save, load, full_state_dict)


def _parts(weights: dict[str, Any], state: dict[str, Any], kept: Kept, scaling: Tensor) -> dict[str, Any]:
    return {"model": weights, "optimiser": state, "kept": kept, "scaling": scaling}


def _rescaled(scaling: Tensor, norm: float) -> float | None:
    """Move the loss scale after a step with gradient ``norm``; an overflow at a scale of 1 is no overflow of the scaling."""
    if math.isfinite(norm):
        scaling[1] += 1
        if scaling[1] >= STEPS_TO_GROW:
            scaling[0], scaling[1] = min(float(scaling[0]) * 2, LARGEST_SCALE), 0.0
        return norm
    if scaling[0] <= 1:
        return norm
    scaling[0], scaling[1] = max(float(scaling[0]) / 2, 1.0), 0.0
    return None
