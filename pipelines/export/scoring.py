"""Scores of a bundle that was exported, now or long ago, for rows of today."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import runtime
from pipelines.errors import ConfigError, IntegrityError
from pipelines.fields import FIELDS, Fields, of_bundle


def read_fields(bundle: Path) -> Fields:
    """The fields that a bundle was trained with; IntegrityError if they do not match the hash it names."""
    fields = of_bundle(bundle)
    expected = json.loads((bundle / "bundle.json").read_text())["fields_hash"]
    if fields.hash != expected:
        raise IntegrityError(
            f"{bundle / FIELDS} has hash {fields.hash[:12]}, bundle.json names {str(expected)[:12]}: "
            "export the model again"
        )
    return fields


def score(bundle: Path, rows: pl.DataFrame, fields: Fields) -> NDArray[np.float64]:
    """Scores ``[n]`` or ``[n, K]`` of a bundle for canonical rows, K being the classes of ``fields`` in their order.

    Rows are encoded with the fields it was trained with, which may be older than ``fields``. Its classes are found by
    name: one that it does not know has probability 0. Raises ConfigError if what it predicts is of another kind, or a
    number in another unit.
    """
    own = read_fields(bundle)
    scores = runtime.score_rows(bundle, own, {name: rows[name].to_list() for name in own.reads if name in rows.columns})
    if _told(own) == _told(fields):
        return scores
    if not (own.classes and fields.classes):
        raise ConfigError(
            f"{bundle} predicts {_told(own)}, the case {_told(fields)}: they do not compare; give the new label a case "
            "of its own"
        )
    of_all = np.zeros((len(scores), len(fields.classes)))
    for position, name in enumerate(fields.classes):
        if name in own.classes:
            of_all[:, position] = scores[:, own.classes.index(name)]
    return of_all


def _told(fields: Fields) -> str:
    """What is predicted, in words; bounds may move and classes keep their names."""
    if fields.number is not None:
        return f"a number ({fields.number.unit})"
    if fields.classes:
        return f"one of the classes {', '.join(fields.classes)}"
    return "a binary label"
