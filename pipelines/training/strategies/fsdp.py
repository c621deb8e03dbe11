"""Weights, gradients and optimiser state in shards, one per rank (FSDP2; Zhao et al., 2023, arXiv:2304.11277)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pipelines.params import TrainParams
from pipelines.training.group import get_world_size
from pipelines.training.strategies import Strategy
from pipelines.training.strategies.native import HALF_PRECISION, native


def set_up(model: nn.Module, params: TrainParams, device: torch.device) -> Strategy:
    """Shard every one of ``model.blocks``, then the rest; a block is whole only while it computes.

    Shards stay float32. With bf16 or fp16 they travel and compute in it, under autocast as elsewhere, and gradients
    are reduced in float32.
    """
    model.to(device)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    policy = MixedPrecisionPolicy()
    if params.precision in HALF_PRECISION:
        policy = MixedPrecisionPolicy(param_dtype=HALF_PRECISION[params.precision], reduce_dtype=torch.float32)
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Not what comes in: numbers of a table are scaled in float32 before anything else.
    fully_shard(model, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=False))
    # The root stays whole between forward and backward; without a backward it would go on computing with old weights.
    return native(
        model, model, params, device, set_gradient_sync=model.set_requires_gradient_sync, reshard=model.reshard
    )
