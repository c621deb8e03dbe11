"""One rank, or whole copies of the model on every rank (DistributedDataParallel, Li et al., 2020, arXiv:2006.15704)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from pipelines.params import TrainParams
from pipelines.training.strategies import Strategy
from pipelines.training.strategies.native import native


def set_up(model: nn.Module, params: TrainParams, device: torch.device) -> Strategy:
    """Train ``model`` in place; weights stay float32, bf16 and fp16 are autocast."""
    model.to(device)
    if not dist.is_initialized():
        return native(model, model, params, device, set_gradient_sync=lambda _is_last: None)
    # Buffers are constants here, so no forward needs to send them.
    network = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)

    def set_gradient_sync(is_last: bool) -> None:
        network.require_backward_grad_sync = is_last

    return native(model, network, params, device, set_gradient_sync=set_gradient_sync)
