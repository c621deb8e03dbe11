"""A version as it scores logged rows: its bundle's files as they were committed, with the gateway's own code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import answering, storage
from pipelines.deploy import known
from pipelines.encoding import BUNDLE
from pipelines.errors import ConfigError, IntegrityError, NotKept
from pipelines.fields import SCORES, Fields, as_kind, frame_schema
from pipelines.files import file_sha256
from pipelines.parts import MAX_BATCH
from pipelines.settings import Settings
from pipelines.text import TOKENIZER

ROWS, TEXTS = 4 * MAX_BATCH, MAX_BATCH
"""Rows that are encoded together: of a table, and with a text, whose tokens take a thousand times a number's room."""


@dataclass(frozen=True)
class Version:
    """A version: its number, its candidate's key, and its bundle as a model that answers."""

    number: int
    key: str
    model: answering.Model

    @property
    def folder(self) -> Path:
        """Its bundle."""
        return self.model.folder

    @property
    def fields(self) -> Fields:
        """The fields that it was trained with."""
        return self.model.fields


def load(settings: Settings, case: str, number: int) -> Version:
    """A version that was released, or that a training run registered, every file of its bundle checked.

    Raises ConfigError for an unknown one, NotKept if its bundle is gone, IntegrityError if a file of it is not what
    was committed, or its files are not of one another.
    """
    target = known.target(settings, case, number)
    name, where = f"version {number} of {case}", settings.root / target["bundle"]
    try:
        folder = storage.find(where, target["candidate_key"])
    except (ConfigError, NotKept) as error:
        raise NotKept(
            f"the bundle of {name} is gone: restore {where} from a backup, or leave the version out"
        ) from error
    try:
        about = json.loads((folder / BUNDLE).read_text())
        if (told := about.get("tokenizer_sha256")) and told != file_sha256(folder / TOKENIZER):
            raise IntegrityError(
                f"{folder / TOKENIZER} of {name} is another tokenizer than its {BUNDLE} names ({told[:12]}): "
                "restore the bundle"
            )
        return Version(number, target["candidate_key"], answering.load(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the bundle of {name} is not whole ({error}): restore {folder} from a backup") from error


def columns(fields: Fields, rows: pl.DataFrame) -> dict[str, Any]:
    """What encoding reads of logged rows, as the gateway had it; what was logged otherwise is missing."""
    kinds = frame_schema(fields)
    there = [name for name in fields.reads if name in rows.columns]
    read = rows.select(as_kind(pl.col(name), kinds[name]).alias(name) for name in there)
    return {name: _values(read[name]) for name in there}


def _values(column: pl.Series) -> Any:
    return column.to_numpy() if column.dtype == pl.Float64 else column.to_list()


def scores(version: Version, rows: pl.DataFrame) -> NDArray[np.float64]:
    """The scores ``[n, outputs]`` of logged rows, some thousand at a time, in inferences cut as the gateway's.

    Raises DataError if a field is missing in the rows, or holds what the encoding refuses; IntegrityError of a model
    that does not work.
    """
    fields = version.fields
    each = ROWS if fields.text is None else TEXTS
    found = np.empty((rows.height, fields.outputs))
    for start in range(0, rows.height, each):
        found[start : start + each] = version.model.scores(columns(fields, rows.slice(start, each)))
    return found


def logged(rows: pl.DataFrame, outputs: int) -> NDArray[np.float64]:
    """The scores of logged rows, ``[n, outputs]``; ``[n, 1]``, the likeliest class's, where not all were logged."""
    if outputs > 1 and SCORES in rows.columns and (rows[SCORES].list.len() == outputs).fill_null(value=False).all():
        return rows[SCORES].list.to_array(outputs).to_numpy().astype(np.float64)
    return rows["score"].to_numpy().astype(np.float64).reshape(-1, 1)


def beside(found: NDArray[np.float64], told: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores in the form of those that were logged: of classes the largest, where no other was."""
    return found if found.shape == told.shape else found.max(axis=1, keepdims=True)


def decisions(found: NDArray[np.float64], fields: Fields) -> NDArray[Any]:
    """What scores ``[n, outputs]`` decide, as the gateway logs it: 0 or 1, a class's position, or the number."""
    if fields.number is not None:
        return found[:, 0]
    if fields.classes:
        return np.asarray(found.argmax(axis=1))
    return np.asarray(found[:, 0] >= 0.5, np.int64)
