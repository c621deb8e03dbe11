"""What is minimised, and how fast: the loss and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipelines.params import TrainParams

Objective = Callable[[Tensor, Tensor], Tensor]
POWERS = {"sqrt": 0.5, "balanced": 1.0}


def objective(params: TrainParams, labels: Tensor, device: torch.device) -> Objective:
    """The loss of logits [B, 1] and labels float32 [B], or of logits [B, K] and labels int64 [B], summed over the rows.

    Class weights come from all training ``labels``: the inverse of a class's share to the power 1 (balanced) or
    1/2 (sqrt), scaled to a mean of 1 over the rows, so that a learning rate keeps its meaning.
    """
    smoothing, binary = params.label_smoothing, labels.is_floating_point()
    weights = None if params.class_weights == "none" else class_weights(labels, POWERS[params.class_weights]).to(device)

    def of_binary(logits: Tensor, target: Tensor) -> Tensor:
        target = target.to(device)
        own = None if weights is None else weights[target.long()]
        soft = target * (1 - smoothing) + smoothing / 2 if smoothing else target
        return binary_cross_entropy_with_logits(logits.squeeze(1), soft, weight=own, reduction="sum")

    def of_classes(logits: Tensor, target: Tensor) -> Tensor:
        target = target.to(device)
        rows = cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        return rows.sum() if weights is None else (rows * weights[target]).sum()

    return of_binary if binary else of_classes


def plain(params: TrainParams) -> TrainParams:
    """The parameters of the loss that validation reports: no smoothing, no class weights."""
    return params.model_copy(update={"label_smoothing": 0.0, "class_weights": "none"})


def class_weights(labels: Tensor, power: float) -> Tensor:
    """Weight of each class, float32 [K], with a mean of 1 over ``labels``; a class without a row gets that of a class of one."""
    places = labels.long()
    counts = torch.bincount(places, minlength=2).clamp(min=1).double()
    raw = (len(labels) / counts) ** power
    return (raw / raw[places].mean()).float()


def rate_factor(params: TrainParams, step: int, steps: int) -> float:
    """Share of the base learning rate at ``step`` (from 0) of ``steps``: a linear rise, then constant, a line or half a cosine down to 0.

    The cosine is that of Loshchilov and Hutter, 2017, arXiv:1608.03983, without restarts.
    """
    rise = round(params.warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if params.schedule == "constant":
        return 1.0
    done = (step - rise) / max(1, steps - rise)
    return 1 - done if params.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
