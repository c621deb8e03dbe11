"""A case's declared fields: the one source of validation, encoding, profiles and the ONNX signature.

Training and gateway encode through :func:`encode`; the hash of the declaration travels with every
model bundle, so a gateway with other fields refuses the bundle instead of feeding it other codes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, DataError
from pipelines.text import normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CLASSES = 127
"""Positions are kept as int8."""
SCORES = "scores"
"""The column of all classes' probabilities in rows of the log, where a case has classes."""


@dataclass(frozen=True)
class Categorical:
    """A field with a closed vocabulary, from the data set's documentation, never learned from rows."""

    name: str
    values: tuple[str, ...]
    about: str = ""


@dataclass(frozen=True)
class Numeric:
    """A finite number within hard bounds (inclusive); ``None`` leaves a side open."""

    name: str
    low: float | None = None
    high: float | None = None
    integer: bool = False
    about: str = ""


@dataclass(frozen=True)
class Text:
    """Free text, not empty once normalised (:func:`pipelines.text.normalise`) and of at most ``max_chars`` characters."""

    name: str
    max_chars: int = 20_000
    about: str = ""


Field = Categorical | Numeric | Text


@dataclass(frozen=True)
class Fields:
    """What a case predicts and from what.

    Without ``classes`` the ``label`` is a binary column, 1 being the positive class; with them it is one of
    the classes, kept as its position in them. A case has at most one text field, and then no others.
    """

    case: str
    fields: tuple[Field, ...]
    label: str
    about: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(field, Text) for field in self.fields) and len(self.fields) > 1:
            raise ConfigError(f"{self.case}: a text field stands alone, found {', '.join(self.names)}: declare the text only")
        if len(self.classes) in {1, 2} or len(set(self.classes)) < len(self.classes) or len(self.classes) > MAX_CLASSES:
            raise ConfigError(f"{self.case}: {len(self.classes)} classes: declare none (a binary label) or 3 to {MAX_CLASSES} different ones")

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical fields in declared order: the columns of the ``categorical`` tensor."""
        return tuple(field for field in self.fields if isinstance(field, Categorical))

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        """The numeric fields in declared order: the columns of the ``numeric`` tensor."""
        return tuple(field for field in self.fields if isinstance(field, Numeric))

    @property
    def text(self) -> Text | None:
        """The text field, if the case has one."""
        return next((field for field in self.fields if isinstance(field, Text)), None)

    @property
    def outputs(self) -> int:
        """Scores per row: the probability of the positive class, or one per class."""
        return len(self.classes) or 1

    @property
    def names(self) -> tuple[str, ...]:
        """All field names in declared order."""
        return tuple(field.name for field in self.fields)

    @property
    def hash(self) -> str:
        """sha256 of what encoding depends on: kinds, names, order, vocabularies, bounds and classes, not prose."""
        spec = [[type(field).__name__, {k: v for k, v in asdict(field).items() if k != "about"}] for field in self.fields]
        declared = [self.case, self.label, spec, *([self.classes] if self.classes else [])]
        return hashlib.sha256(json.dumps(declared).encode()).hexdigest()


def to_json(fields: Fields) -> dict[str, Any]:
    """The declaration as JSON values, e.g. for a model bundle's ``fields.json``."""
    return {**asdict(fields), "fields": [{"kind": type(field).__name__, **asdict(field)} for field in fields.fields]}


def from_json(value: Mapping[str, Any]) -> Fields:
    """The declaration that :func:`to_json` wrote: equal to the original, with the same hash."""
    kinds: dict[str, Callable[..., Field]] = {"Categorical": Categorical, "Numeric": Numeric, "Text": Text}
    declared = tuple(
        kinds[field["kind"]](**{key: tuple(part) if isinstance(part, list) else part for key, part in field.items() if key != "kind"})
        for field in value["fields"]
    )
    return Fields(case=value["case"], fields=declared, label=value["label"], about=value["about"], classes=tuple(value.get("classes", ())))


def signature(fields: Fields) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The model's input tensors and its output, each ``{name, dtype, shape}``; -1 is a free axis, the first one the batch.

    A model, its ONNX graph, its bundle and Triton's configuration all have this signature.
    """
    if fields.text is not None:
        inputs = [{"name": name, "dtype": "int64", "shape": [-1, -1]} for name in ("input_ids", "attention_mask")]
    else:
        inputs = [
            {"name": "categorical", "dtype": "int64", "shape": [-1, len(fields.categorical)]},
            {"name": "numeric", "dtype": "float32", "shape": [-1, len(fields.numeric)]},
        ]
    return inputs, {"name": "score", "dtype": "float32", "shape": [-1, fields.outputs]}


def frame_schema(fields: Fields) -> dict[str, Any]:
    """Column names and polars types of the case's canonical rows, in canonical order.

    ``id``, ``event_time`` (microseconds, UTC), every declared field (categories and texts as text, numbers as
    float64), the label (int8: 0 and 1, or the position in ``classes``; null until it arrived) and
    ``label_time`` (its arrival).
    """
    import polars as pl

    moment = pl.Datetime("us", "UTC")
    declared = {field.name: pl.Float64() if isinstance(field, Numeric) else pl.String() for field in fields.fields}
    return {"id": pl.String(), "event_time": moment, **declared, fields.label: pl.Int8(), "label_time": moment}


def encode(fields: Fields, columns: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[Any]]:
    """Turn columns of raw tabular values into the model's input tensors (texts: :mod:`pipelines.encoding`).

    Returns ``{"categorical": int64 [B, C], "numeric": float32 [B, N]}``: codes are positions in the
    declared vocabulary. Raises DataError naming the field (never the value) if a column is missing
    or a category is unknown. Scaling and embedding are the graph's work, not done here.
    """
    import numpy as np

    missing = [name for name in fields.names if name not in columns]
    if missing:
        raise DataError(f"{fields.case}: field(s) {', '.join(missing)} missing: send all of {', '.join(fields.names)}")
    rows = len(columns[fields.names[0]])
    categorical: NDArray[np.int64] = np.empty((rows, len(fields.categorical)), np.int64)
    for position, field in enumerate(fields.categorical):
        codes = {value: code for code, value in enumerate(field.values)}
        try:
            categorical[:, position] = [codes[value] for value in columns[field.name]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{fields.case}: unknown category in {field.name}: use one of {', '.join(field.values)}") from error
    numeric: NDArray[np.float32] = np.empty((rows, len(fields.numeric)), np.float32)
    for position, number in enumerate(fields.numeric):
        numeric[:, position] = columns[number.name]
    return {"categorical": categorical, "numeric": numeric}


def problem(field: Field, value: object) -> str | None:
    """Why ``value`` is not allowed in ``field``, or None if it is. The text never echoes the value."""
    if isinstance(field, Numeric):
        return _problem_of_number(field, value)
    if not isinstance(value, str):
        return f"{field.name}: expected a string, got {_kind(value)}"
    if isinstance(field, Categorical):
        return None if value in field.values else f"{field.name}: unknown category, use one of {', '.join(field.values)}"
    if len(value) > field.max_chars:
        return f"{field.name}: must have at most {field.max_chars} characters"
    return None if normalise(value) else f"{field.name}: must not be empty"


def _problem_of_number(field: Numeric, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{field.name}: expected a number, got {_kind(value)}"
    if not math.isfinite(value):
        return f"{field.name}: must be finite"
    if field.integer and value != int(value):
        return f"{field.name}: must be a whole number"
    if field.low is not None and value < field.low:
        return f"{field.name}: must be at least {field.low:g}"
    if field.high is not None and value > field.high:
        return f"{field.name}: must be at most {field.high:g}"
    return None


def _kind(value: object) -> str:
    return "null" if value is None else {str: "a string", bool: "a boolean", list: "a list", dict: "an object"}.get(type(value), "a number")
