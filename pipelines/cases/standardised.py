"""A network that predicts a number: it learns the standardised number, and what it keeps of it travels in its weights.

``standardise`` is what training calls before the loop, ``restore`` what the exported graph does with the network's
output: rows go in, the number comes out in its unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardised(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """A part of every network of a number: ``target_mean`` and ``target_scale``, float64, in the number's unit."""

    target_mean: Tensor
    target_scale: Tensor

    def keep_target(self) -> None:
        """Declare what is kept; the network calls it once it is made."""
        # Not float32: a number far from zero for how little it varies would lose what it says.
        self.register_buffer("target_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("target_scale", torch.ones((), dtype=torch.float64))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def fit_target(self, labels: Tensor) -> None:
        """Take mean and standard deviation of the training rows' labels ``[n]``; of equal labels the deviation is 1."""
        mean, deviation = labels.double().mean(), labels.double().std(correction=0)
        self.target_mean.copy_(mean)
        self.target_scale.copy_(torch.where(deviation > 1e-12 * mean.abs(), deviation, torch.ones_like(deviation)))

    def standardise(self, labels: Tensor) -> Tensor:
        """Labels ``[n]`` in the unit as what the network learns, float32 ``[n]``."""
        return ((labels.double() - self.target_mean) / self.target_scale).float()

    def restore(self, outputs: Tensor) -> Tensor:
        """The network's outputs ``[B, 1]`` as numbers in the unit."""
        numbers: Tensor = (outputs.double() * self.target_scale + self.target_mean).float()
        return numbers
