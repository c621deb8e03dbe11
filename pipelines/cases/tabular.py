"""The network of the tabular cases: embeddings for categories, scaled numbers, a multilayer perceptron.

Entity embeddings after Guo and Berkhahn, "Entity Embeddings of Categorical Variables", 2016
(arXiv:1604.06737).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipelines.cases.standardised import Standardised
from pipelines.fields import Fields
from pipelines.params import MixedModelParams, ModelParams

Layers = ModelParams | MixedModelParams
"""What says how many hidden layers there are, and how large embeddings of categories are."""
SCALED_LIMIT = 5.0
"""Scaled numbers are clamped to +-5 standard deviations: an indicator that leaves the training range
saturates instead of driving the logits to wherever the last slope points."""


class Tabular(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """One output, or one per class, from category codes and raw numbers; filling and scaling are part of the module.

    Outputs are the logit of a binary label, or logits of the classes.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        sizes: tuple[int, ...],
        numbers: int,
        params: Layers,
        outputs: int = 1,
        holes: tuple[int, ...] = (),
        beside: int = 0,
    ) -> None:
        """``sizes`` are the numbers of codes in column order, ``numbers`` the count of numeric columns.

        ``outputs`` is the number of classes, 1 otherwise; ``holes`` are the positions of the numbers that may be NaN.
        ``beside`` is how many numbers of another kind the hidden layers are given, as they are.
        """
        super().__init__()
        self.holes = list(holes)
        numbers += len(holes)
        self.embeddings = nn.ModuleList(nn.Embedding(size, params.embedding) for size in sizes)
        for embedding in self.embeddings:
            # Zero, not random: a category that no training row has stays neutral instead of adding noise.
            nn.init.zeros_(embedding.weight)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        width = params.embedding * len(sizes) + numbers + beside
        layers: list[nn.Module] = []
        for hidden in params.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(params.dropout)]
            width = hidden
        self.output = nn.Linear(width, outputs)
        # Training starts at the base rate exactly; random first logits would be noise that a short training keeps.
        nn.init.zeros_(self.output.weight)
        self.body = nn.Sequential(*layers)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def adapt(self, numeric: Tensor, labels: Tensor) -> None:
        """Fit the scaling to the training rows ``[n, N]`` and start the output at their base rates (labels ``[n]``).

        A column that does not vary gets scale 0: nothing can be learned from it, so its first change must say nothing.
        Numbers that mean and deviation do not suit come scaled already (:func:`pipelines.encoding.find_scales`).
        Mean and deviation are those of the numbers that are there, and the mean fills in for those that are not.
        """
        if self.holes:
            known = self._with_indicators(numeric).double()
            mean = known.nanmean(0).nan_to_num()
            deviation = (known - mean).square().nanmean(0).nan_to_num().sqrt()
        else:
            mean = numeric.double().mean(0)
            deviation = numeric.double().std(0, correction=0)
        self.mean.copy_(mean)
        # Less than float32 resolves is no deviation, whatever the unit.
        self.scale.copy_(torch.where(deviation > 1e-7 * mean.abs(), 1 / deviation, torch.zeros_like(deviation)))
        self.start(labels)

    def start(self, labels: Tensor) -> None:
        """Start the output at the base rates of the training rows' labels ``[n]``."""
        # One row of each class more than there are: the logit stays finite with one class only.
        outputs = self.output.out_features
        if outputs > 1:
            counts = torch.bincount(labels, minlength=outputs) + 1.0
            self.output.bias.copy_((counts / counts.sum()).log())
            return
        positives = float(labels.sum()) + 1
        rows = len(labels) + 2
        self.output.bias.fill_(math.log(positives / (rows - positives)))

    def forward(self, categorical: Tensor, numeric: Tensor, *beside: Tensor) -> Tensor:
        """Outputs ``[B, 1]`` or ``[B, K]`` of int64 codes ``[B, C]`` and float32 numbers ``[B, N]``.

        With what stands ``beside`` them, each float32 ``[B, H]``.
        """
        values = numeric
        if self.holes:
            values = self._with_indicators(numeric)
            values = torch.where(values.isnan(), self.mean, values)
        scaled = ((values - self.mean) * self.scale).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        embedded = [embedding(categorical[:, column]) for column, embedding in enumerate(self.embeddings)]
        logits: Tensor = self.output(self.body(torch.cat([*embedded, scaled, *beside], dim=1)))
        return logits

    def _with_indicators(self, numeric: Tensor) -> Tensor:
        """Numbers ``[B, N]``, and behind them 1 where one that may be missing is, else 0: ``[B, N + H]``.

        An indicator is scaled as a number is: what was never missing in the training rows says nothing when it is.
        """
        return torch.cat([numeric, numeric[:, self.holes].isnan().to(numeric.dtype)], dim=1)


class TabularNumber(Tabular, Standardised):
    """The same network for a number: its output is the standardised number, and starts at the mean."""

    def __init__(
        self, sizes: tuple[int, ...], numbers: int, params: Layers, holes: tuple[int, ...] = (), beside: int = 0
    ) -> None:
        """As of :class:`Tabular`."""
        super().__init__(sizes, numbers, params, holes=holes, beside=beside)
        self.keep_target()

    def start(self, labels: Tensor) -> None:
        """Start the output at the training rows' mean, which is what 0 stands for."""
        self.fit_target(labels)
        nn.init.zeros_(self.output.bias)


def build(params: Layers, fields: Fields, beside: int = 0) -> Tabular:
    """The network for a case's declared fields and target; the caller seeds torch.

    ``beside`` is as of :class:`Tabular`.
    """
    sizes = tuple(field.size for field in fields.categorical)
    holes = tuple(position for position, field in enumerate(fields.numeric) if field.missing)
    if fields.number is not None:
        return TabularNumber(sizes, fields.width, params, holes, beside)
    return Tabular(sizes, fields.width, params, fields.outputs, holes, beside)
