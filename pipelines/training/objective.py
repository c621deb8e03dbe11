"""What is minimised, and how fast: the loss and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from pipelines.errors import ConfigError
from pipelines.params import TrainParams

Objective = Callable[[Tensor, Tensor], Tensor]
POWERS = {"none": None, "sqrt": 0.5, "balanced": 1.0}


def objective(params: TrainParams, labels: Tensor, device: torch.device, *, number: bool = False) -> Objective:
    """The loss of logits [B, 1] and labels float32 [B], or of logits [B, K] and labels int64 [B], summed over the rows.

    Of a ``number`` it is the squared error of outputs [B, 1] and labels [B]: standardised ones, so that 1 is what the
    training rows' mean costs a row, whatever the unit. Raises ConfigError for parameters that are about classes then.

    Class weights come from all training ``labels``: the inverse of a class's share to the power 1 (balanced) or
    1/2 (sqrt), scaled to a mean of 1 over the rows, so that a learning rate keeps its meaning.
    """
    if number:
        return _squared_error(params, device)
    smoothing = params.label_smoothing
    power = POWERS[params.class_weights]
    weights: Tensor | None = None
    if power is not None:
        weights = class_weights(labels, power).to(device)

    def binary_loss(logits: Tensor, target: Tensor) -> Tensor:
        target = target.to(device)
        row_weights = None
        if weights is not None:
            row_weights = weights[target.long()]
        if smoothing:
            target = target * (1 - smoothing) + smoothing / 2
        return binary_cross_entropy_with_logits(logits.squeeze(1), target, weight=row_weights, reduction="sum")

    def class_loss(logits: Tensor, target: Tensor) -> Tensor:
        target = target.to(device)
        losses = cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        if weights is not None:
            losses = losses * weights[target]
        return losses.sum()

    if labels.is_floating_point():
        return binary_loss
    return class_loss


def _squared_error(params: TrainParams, device: torch.device) -> Objective:
    for name, neutral in (("label_smoothing", 0.0), ("class_weights", "none")):
        if getattr(params, name) != neutral:
            raise ConfigError(
                f"train.{name} is {getattr(params, name)}, the target is a number, which has no classes: remove it"
            )

    def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
        return mse_loss(outputs.squeeze(1), target.to(device).float(), reduction="sum")

    return squared_error


def validation_objective(
    params: TrainParams, labels: Tensor, device: torch.device, *, number: bool = False
) -> Objective:
    """The loss that validation reports: that of :func:`objective` without label smoothing and class weights."""
    unweighted = params.model_copy(update={"label_smoothing": 0.0, "class_weights": "none"})
    return objective(unweighted, labels, device, number=number)


def class_weights(labels: Tensor, power: float) -> Tensor:
    """Weight of each class, float32 [K], with a mean of 1 over ``labels``.

    A class without a row gets the weight of a class of one row.
    """
    classes = labels.long()
    counts = torch.bincount(classes, minlength=2).clamp(min=1).double()
    raw = (len(labels) / counts) ** power
    return (raw / raw[classes].mean()).float()


def learning_rate_factor(params: TrainParams, step: int, total_steps: int) -> float:
    """Share of the base learning rate at ``step`` (from 0) of ``total_steps``.

    After a linear warm-up the rate is constant, or falls to 0 in a line or in half a cosine (Loshchilov and Hutter,
    2017, arXiv:1608.03983, without restarts).
    """
    warmup_steps = round(params.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if params.schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if params.schedule == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2
