"""What a first champion has to beat: the best answer that knows no field of a row, or the one field that is declared.

The best constant depends on the metric: of numbers the training rows' mean under squared errors, their median under
absolute ones, their quantile under the pinball loss (Gneiting, Journal of the American Statistical Association 106,
2011); of everything else the share of positives, with classes of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.fields import Fields
from pipelines.params import GateParams

FEWEST = 30
"""Values with fewer training rows are answered like all rows: so few would be a baseline that is easy to beat."""


def told(fields: Fields, gate: GateParams) -> str:
    """What the baseline is, in words that follow "the training rows'"."""
    constant = "base rate"
    if fields.number is not None:
        share = _quantile(gate)
        constant = "mean" if share is None else f"{share:g} quantile"
        constant = "median" if share == 0.5 else constant
    return constant if gate.baseline is None else f"{constant} by {gate.baseline}"


def reads(fields: Fields, gate: GateParams) -> list[str]:
    """The columns of training rows that a baseline is made of."""
    return [fields.label] if gate.baseline is None else [gate.baseline, fields.label]


def constant(train: pl.DataFrame, rate: float | list[float], fields: Fields, gate: GateParams) -> float | list[float]:
    """The best answer for all rows alike: the ``rate`` of the training rows, or the quantile of their labels."""
    share = _quantile(gate)
    return rate if share is None else float(np.quantile(train[fields.label].to_numpy(), share))


def answers(
    train: pl.DataFrame, rows: pl.DataFrame, overall: float | list[float], fields: Fields, gate: GateParams
) -> NDArray[np.float64]:
    """The baseline's answer to each of ``rows``, ``[n]`` or ``[n, K]``: the ``overall`` one, or that of its value.

    A value of ``gate.baseline`` with fewer than ``FEWEST`` training rows has the overall one. Null is a value.
    """
    whole = np.array(overall, np.float64)
    found = np.full((rows.height, *whole.shape), whole)
    if gate.baseline is None:
        return found
    own = rows[gate.baseline]
    for (value,), group in train.select(gate.baseline, fields.label).group_by(gate.baseline):
        if group.height >= FEWEST:
            mine = own.is_null() if value is None else (own == value).fill_null(False)
            found[mine.to_numpy()] = _of_group(group[fields.label].to_numpy(), whole, fields, gate)
    return found


def _of_group(label: NDArray[Any], overall: NDArray[np.float64], fields: Fields, gate: GateParams) -> Any:
    """The best constant of these labels; a rate counts one row more, of the overall rate: none is impossible."""
    if fields.number is not None:
        share = _quantile(gate)
        return label.mean() if share is None else np.quantile(label, share)
    counts = np.bincount(label, minlength=fields.outputs) if fields.classes else label.sum()
    return (counts + overall) / (len(label) + 1)


def _quantile(gate: GateParams) -> float | None:
    """The quantile of the labels that is the best constant under the metric; None: it is their mean."""
    if gate.metric == "mae":
        return 0.5
    return gate.quantile if gate.metric == "pinball" else None
