"""From a torch model's outputs to answers: the link that training judges by and export ships."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.encoding import signature
from pipelines.fields import Fields


class Scored(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """A model with its link inside: what ships answers probabilities ``[B, 1]`` or ``[B, K]``, not logits.

    Of a number it answers that, ``[B, 1]`` in its unit, within the declared bounds.
    It takes the tensors of :func:`pipelines.encoding.signature` in their order, the model itself by their names.
    """

    def __init__(self, model: nn.Module, fields: Fields) -> None:
        super().__init__()
        self.model = model
        self._names = [tensor["name"] for tensor in signature(fields)[0]]
        self._classes = bool(fields.classes)
        self._number = fields.number

    def forward(self, *tensors: Tensor) -> Tensor:
        """Sigmoid of the logits ``[B, 1]`` of a binary label, softmax over those ``[B, K]`` of classes, or numbers."""
        logits = self.model(**dict(zip(self._names, tensors, strict=True)))
        if self._number is not None:
            numbers: Tensor = self.model.restore(logits) if hasattr(self.model, "restore") else logits
            return numbers.clamp(*self._number.bounds)
        if self._classes:
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits)
