"""A case's declared fields: the one source of validation, encoding, profiles and the ONNX signature.

The hash of the declaration travels with every model bundle, so a gateway with other fields refuses the bundle instead
of feeding it other codes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pipelines.contracts import LabelLine, PredictionLine
from pipelines.errors import ConfigError
from pipelines.feature_names import (
    ENTROPY,
    PREDICTION,
    SCORE,
    missing_share,
    moment_part,
    other_share,
    vector_summaries,
    words,
)

FIELDS = "fields.json"
"""A bundle's declared fields."""
MAX_SIZE = 4_096
"""Numbers of a vector."""
MAX_CLASSES = 1_000
"""Scores of all classes stand in every line of the prediction log."""
INT8_CLASSES = 127
"""Positions of so many classes are kept as int8, those of more as int16."""
SCORES = "scores"
"""The column of all classes' probabilities in rows of the log, where a case has classes."""
TRACEPARENT = "traceparent"
"""The column of requests' traces in rows of the log, where any had one."""
FLOAT32_MAX = 3.4028234663852886e38
"""Numbers reach the model as float32: a larger one would arrive as infinity."""
EVENT_TIME = "event_time"
"""When a row happened: of a moment's parts the age is read beside it."""
CANONICAL = ("id", EVENT_TIME, "label_time")
"""What canonical rows hold beside the declared fields and the label."""
SCORED = ("label", "challenger", "champion")
"""What scores of a holdout hold beside ``id`` and the fields that slices are cut by."""
AS_DELIVERED = "as_delivered"
"""The row as it came, as JSON, beside one of which a value could not be read."""
CHECKED = ("index", "reasons", AS_DELIVERED)
"""What ingest and validation put beside a row."""
RESERVED: Mapping[str, str] = {
    **dict.fromkeys(CHECKED, "rows in quarantine"),
    **dict.fromkeys(SCORED, "the scores of a holdout"),
    **dict.fromkeys((*LabelLine.__annotations__, *PredictionLine.__annotations__), "the prediction log"),
    **dict.fromkeys(CANONICAL, "canonical rows"),
    ENTROPY: "profiles",
}
"""Names that no field can have, and where each is a column of its own.

What else profiles measure has a dot or an @ in its name (pipelines/feature_names.py).
"""
OPTIONS = ("missing", "other")
"""What a field need not declare: hash and files name them only where they are used, so that older ones stay as are."""
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""A time in a row is none before the first and lies before the second."""
HOURS = tuple(map(str, range(24)))
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = tuple(map(str, range(1, 13)))
AGE = "age"
"""Days from a moment to its row's event time: below 0 where the moment lies ahead."""
CALENDAR: Mapping[str, tuple[str, ...]] = {"hour": HOURS, "weekday": WEEKDAYS, "month": MONTHS}
"""The parts of a moment that are categories, with their values; all are read in UTC."""
PARTS = (*CALENDAR, AGE)
OTHER_CHARS = 200
"""The longest value outside of a vocabulary that a category with ``other`` takes, in characters."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Scale:
    """``z = (x - loc) * scale``: ``loc`` in the field's units, ``scale`` in their inverse."""

    loc: float
    scale: float


@dataclass(frozen=True)
class Categorical:
    """A field with a closed vocabulary, from the data set's documentation, never learned from rows.

    With ``missing`` null is a value like the others. With ``other`` every text outside of the vocabulary, of at most
    ``OTHER_CHARS`` characters, counts as one more; without, it is refused.
    """

    name: str
    values: tuple[str, ...]
    about: str = ""
    missing: bool = False
    other: bool = False

    @cached_property
    def codes(self) -> dict[str | None, int]:
        """The code of every declared value, of null behind them; that of all others is ``len(codes)``."""
        codes: dict[str | None, int] = {value: code for code, value in enumerate(self.values)}
        if self.missing:
            codes[None] = len(codes)
        return codes

    @property
    def size(self) -> int:
        """How many codes there are."""
        return len(self.codes) + self.other


@dataclass(frozen=True)
class Numeric:
    """A finite number within hard bounds (inclusive); ``None`` leaves a side open as far as a float32 reaches.

    With ``missing`` it may be null, which the model is given as NaN.
    """

    name: str
    low: float | None = None
    high: float | None = None
    integer: bool = False
    about: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Text:
    """Free text of at most ``max_chars`` characters, not empty once :func:`pipelines.text.normalise` had it.

    With ``missing`` it may be null, which the model is given as a text without words.
    """

    name: str
    max_chars: int = 20_000
    about: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Flag:
    """A boolean: JSON's true or false, to the model and to profiles a category of two.

    With ``missing`` null is a value like the others.
    """

    name: str
    about: str = ""
    missing: bool = False
    values: ClassVar[tuple[str, ...]] = ("false", "true")
    other: ClassVar[bool] = False

    @cached_property
    def codes(self) -> dict[bool | None, int]:
        """The code of false, of true, and of null behind them."""
        codes: dict[bool | None, int] = {False: 0, True: 1}
        if self.missing:
            codes[None] = 2
        return codes

    @property
    def size(self) -> int:
        """How many codes there are."""
        return len(self.codes)


@dataclass(frozen=True)
class Attribute:
    """A text of at most ``max_chars`` characters that rides along: validated, logged, kept, and never a feature.

    The model is not given it and no profile counts it; rows can be cut into slices by it. With ``missing`` it may be
    null.
    """

    name: str
    max_chars: int = 200
    about: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Moment:
    """A time from ``EARLIEST`` to ``LATEST``, of which the model is given the declared ``parts`` (``PARTS``).

    With ``missing`` it may be null, and so are its parts then.
    """

    name: str
    parts: tuple[str, ...] = PARTS
    about: str = ""
    missing: bool = False

    @cached_property
    def columns(self) -> tuple[Categorical | Numeric, ...]:
        """Its parts in declared order as the fields that stand for it, ``<name>.<part>``."""
        return tuple(
            Categorical(moment_part(self.name, part), CALENDAR[part], missing=self.missing)
            if part in CALENDAR
            else Numeric(moment_part(self.name, part), missing=self.missing)
            for part in self.parts
        )


@dataclass(frozen=True)
class Vector:
    """An embedding made elsewhere: ``size`` finite numbers, at most ``MAX_SIZE``, given to the model as they are."""

    name: str
    size: int
    about: str = ""
    missing: ClassVar[bool] = False

    @cached_property
    def columns(self) -> tuple[Numeric, ...]:
        """What stands for it where columns are counted: its length, and its components along fixed directions."""
        return tuple(map(Numeric, vector_summaries(self.name)))


Field = Categorical | Numeric | Text | Flag | Attribute | Moment | Vector
Column = Categorical | Numeric | Text | Flag
"""A feature as profiles count it, and but for vectors as the model is given it."""
Formula = tuple[Any, ...]
"""How a derived feature is computed, see :mod:`pipelines.derived.formulas`."""


@dataclass(frozen=True)
class Binary:
    """Yes or no: a label of 1 or 0, and the probability of 1 as the score."""


@dataclass(frozen=True)
class Classes:
    """One of several classes: a label is its position among ``values``, scores are the probabilities of all."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """A finite number in a ``unit`` (minutes, EUR), within hard bounds (inclusive); ``None`` leaves a side open.

    A label beyond them is refused, and no prediction lies beyond them. A bound leaves a side open as far as a float32
    reaches.
    """

    unit: str
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that there can be."""
        return (
            -FLOAT32_MAX if self.low is None else float(self.low),
            FLOAT32_MAX if self.high is None else float(self.high),
        )


Target = Binary | Classes | Number


@dataclass(frozen=True, init=False)
class Fields:
    """What a case predicts and from what.

    The ``target`` says what the ``label`` is: :class:`Binary`, :class:`Classes` or a :class:`Number`. ``classes`` is
    short for ``target=Classes(classes)``; with neither the label is binary. A case has at most one text field.
    ``derived`` are features that no row has: the ``formulas`` beside them say how each is computed from the
    others (:mod:`pipelines.derived`; they are there once the case is loaded). What could only fail later raises
    ConfigError here, with one sentence that names case and field.
    """

    case: str
    fields: tuple[Field, ...]
    label: str
    about: str
    target: Target
    derived: tuple[Categorical | Numeric | Flag, ...]
    formulas: tuple[Formula, ...]

    def __init__(
        self,
        case: str,
        fields: tuple[Field, ...],
        label: str,
        about: str = "",
        classes: tuple[str, ...] | None = None,
        target: Target | None = None,
        derived: tuple[Categorical | Numeric | Flag, ...] = (),
        formulas: tuple[Formula, ...] = (),
    ) -> None:
        named = Binary() if classes is None or classes == () else Classes(classes)
        declared: dict[str, Any] = {
            "case": case,
            "fields": fields,
            "label": label,
            "about": about,
            "target": target or named,
        }
        declared |= {"derived": derived, "formulas": formulas}
        for name, value in declared.items():
            object.__setattr__(self, name, value)
        if (first := next(_mistakes(self), None)) is not None:
            raise ConfigError(f"{self.case}: {first}")
        if classes is not None and self.target != named:
            raise ConfigError(f"{case}: label {label}: classes and target say different things: give one of them")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes by position; none where the target is binary or a number."""
        return self.target.values if isinstance(self.target, Classes) else ()

    @property
    def number(self) -> Number | None:
        """The target where it is a number."""
        return self.target if isinstance(self.target, Number) else None

    @cached_property
    def features(self) -> tuple[Column | Moment | Vector, ...]:
        """What the model is given, in declared order: the raw features, and the derived ones."""
        return (*self.raw, *self.derived)

    @cached_property
    def raw(self) -> tuple[Column | Moment | Vector, ...]:
        """The features that a row has, in declared order: the fields but the attributes."""
        return tuple(field for field in self.fields if not isinstance(field, Attribute))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The features with what stands for every moment and vector in its place: what can be counted of a row.

        :func:`pipelines.encoding.unfolded` puts them into a frame, and the derived ones.
        """
        return _unfolded(self.features)

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """The moments in declared order."""
        return tuple(field for field in self.fields if isinstance(field, Moment))

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """The vectors in declared order."""
        return tuple(field for field in self.fields if isinstance(field, Vector))

    @cached_property
    def categorical(self) -> tuple[Categorical | Flag, ...]:
        """The categories and flags among the columns: those of the ``categorical`` tensor."""
        return tuple(field for field in self.columns if isinstance(field, Categorical | Flag))

    @cached_property
    def numeric(self) -> tuple[Numeric, ...]:
        """The numbers and ages: the first columns of the ``numeric`` tensor, those of vectors stand behind them."""
        single = _unfolded(field for field in self.features if not isinstance(field, Vector))
        return tuple(field for field in single if isinstance(field, Numeric))

    @cached_property
    def width(self) -> int:
        """How many columns the ``numeric`` tensor has."""
        return len(self.numeric) + sum(vector.size for vector in self.vectors)

    @cached_property
    def text(self) -> Text | None:
        """The text field, if the case has one."""
        return next((field for field in self.fields if isinstance(field, Text)), None)

    @cached_property
    def has_table(self) -> bool:
        """Whether the model is given the tensors of a table: it is, unless its only feature is a text."""
        return any(not isinstance(field, Text) for field in self.features)

    @cached_property
    def outputs(self) -> int:
        """Scores per row: the probability of the positive class, one per class, or the predicted number."""
        return len(self.classes) or 1

    @cached_property
    def answers(self) -> tuple[float, float]:
        """The least and the largest score that a model can give, as a float32 holds them."""
        if self.number is None:
            return 0.0, 1.0
        low, high = struct.unpack("2f", struct.pack("2f", *self.number.bounds))
        return low, high

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All field names in declared order: what a row has."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the raw features in declared order: what a row is scored by."""
        return tuple(field.name for field in self.raw)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of all columns: of features, derived ones, parts of moments and summaries of vectors."""
        return tuple(column.name for column in self.columns)

    @property
    def repeats(self) -> tuple[str, ...]:
        """The names by which a row with a text is a repeat of another: the text's first, then those of all inputs.

        None without a text.
        """
        if self.text is None:
            return ()
        return (self.text.name, *(name for name in self.inputs if name != self.text.name))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The names that encoding reads: the features, and the event time where a moment has an age."""
        if any(AGE in moment.parts for moment in self.moments):
            return (*self.inputs, EVENT_TIME)
        return self.inputs

    @property
    def shares(self) -> tuple[str, ...]:
        """The names of the shares that profiles hold: of missing values and of values outside of the vocabulary."""
        missing = [missing_share(field.name) for field in self.features if field.missing]
        return (*missing, *(other_share(field.name) for field in self.categorical if field.other))

    @property
    def measured(self) -> tuple[str, ...]:
        """The names that drift can decide by.

        They are the columns, of a text its number of words, the declared shares, and what the model gives.
        """
        columns = [words(column.name) if isinstance(column, Text) else column.name for column in self.columns]
        measured = [*columns, *self.shares, SCORE]
        if self.classes:
            measured.append(PREDICTION)
        return tuple(measured)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names by whose values rows can be cut into slices.

        They are those of categories, flags, attributes and whole numbers, and the label unless it is a number.
        """
        groups = [
            field.name
            for field in self.fields
            if isinstance(field, Categorical | Flag | Attribute) or (isinstance(field, Numeric) and field.integer)
        ]
        if self.label not in SCORED and self.number is None:
            groups.append(self.label)
        return tuple(groups)

    @property
    def hash(self) -> str:
        """sha256 of what encoding depends on: kinds, names, order, vocabularies and bounds of the features, the target.

        Neither prose nor attributes are part of it: a champion serves on when one is added. Nor are formulas, which
        every bundle has with it.
        """
        declared: list[Any] = [self.case, self.label, _spec(self.raw)]
        if self.derived:
            declared.append(["derived", _spec(self.derived)])
        if self.classes:
            declared.append(self.classes)
        if self.number is not None:
            declared.append(["Number", self.number.unit, self.number.low, self.number.high])
        return hashlib.sha256(json.dumps(declared).encode()).hexdigest()

    @property
    def features_hash(self) -> str:
        """sha256 of all that decides what a feature's value is: :attr:`hash`, and the formulas where there are any."""
        if not self.derived:
            return self.hash
        return hashlib.sha256(json.dumps([self.hash, self.formulas]).encode()).hexdigest()


def _spec(fields: Sequence[Field]) -> list[Any]:
    return [[type(field).__name__, {k: v for k, v in _declared(field).items() if k != "about"}] for field in fields]


def _unfolded(features: Iterable[Column | Moment | Vector]) -> tuple[Column, ...]:
    found: list[Column] = []
    for field in features:
        found += field.columns if isinstance(field, Moment | Vector) else (field,)
    return tuple(found)


def _declared(field: Field) -> dict[str, Any]:
    """A field's declaration, of the ``OPTIONS`` those that it uses."""
    return {name: value for name, value in asdict(field).items() if value or name not in OPTIONS}


def _mistakes(fields: Fields) -> Iterator[str]:
    """What cannot work in a declaration, each as a sentence without the case."""
    if not isinstance(fields.fields, tuple):
        yield f"the fields are {fields.fields!r}: give a tuple of them"
    strange = [field for field in fields.fields if not isinstance(field, Field)]
    if strange:
        yield f"{strange[0]!r} is no field: declare it as Categorical, Numeric, Text, Flag, Moment, Vector or Attribute"
    yield from _mistakes_of_derived(fields)
    if not fields.features:
        yield "there are no fields to predict from: declare at least one"
    yield from _mistakes_of_names(fields)
    for field in (*fields.fields, *fields.derived):
        yield from (f"field {field.name}: {what}" for what in (*_mistakes_of_options(field), *_mistakes_of(field)))
    texts = [field.name for field in fields.fields if isinstance(field, Text)]
    if len(texts) > 1:
        yield f"{len(texts)} fields are texts, {', '.join(texts)}: declare one of them, or join them in the source"
    yield from (f"label {fields.label}: {what}" for what in _mistakes_of_target(fields.target))


def _mistakes_of_derived(fields: Fields) -> Iterator[str]:
    if not isinstance(fields.derived, tuple):
        yield f"derived is {fields.derived!r}: give a tuple of fields"
        return
    for field in fields.derived:
        if not isinstance(field, Categorical | Numeric | Flag):
            yield f"{field!r} is no derived feature: declare it as Categorical, Numeric or Flag"
        elif isinstance(field, Numeric) and not field.missing:
            yield f"{field.name} is derived: a quotient can be no number, declare it with missing=True"
        elif isinstance(field, Numeric) and (field.low, field.high, field.integer) != (None, None, False):
            yield f"{field.name} is derived: leave out low, high and integer, and clip it in features.py"


def _mistakes_of_target(target: Target) -> Iterator[str]:
    if isinstance(target, Classes):
        yield from _mistakes_of_words("classes", target.values)
        if not 2 <= len(target.values) <= MAX_CLASSES:
            found = f"{len(target.values)} classes"
            yield f"{found}: declare none (a binary label) or 2 to {MAX_CLASSES:,} different ones"
    elif isinstance(target, Number):
        if not isinstance(target.unit, str) or not target.unit.strip():
            yield f'its unit is {target.unit!r}: say in what it is counted, as in Number("minutes"), or "1" for none'
        yield from _mistakes_of_bounds(target.low, target.high)
        if target.low is not None and _as_float32(target.low) == _as_float32(target.high):
            yield f"its bounds leave one number, {target.low:g}: there is nothing to predict; widen them"
    elif not isinstance(target, Binary):
        yield f"{target!r} is no target: declare it as Binary(), Classes(values) or Number(unit, low, high)"


def _as_float32(bound: Any) -> Any:
    """A bound as a model's answers have it; what is no such number is told elsewhere."""
    try:
        return struct.unpack("f", struct.pack("f", bound))[0]
    except (struct.error, OverflowError):
        return bound


def _mistakes_of_names(fields: Fields) -> Iterator[str]:
    names = (*fields.names, *(field.name for field in fields.derived))
    named = [*(("a field", name) for name in names), ("the label", fields.label)]
    for what, name in [("the case", fields.case), *named]:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            mend = "use a letter, then letters, digits and _, at most 64 in all, as in house_value"
            yield f"{what} is named {name!r}: {mend}"
    for what, name in named:
        # A label may be called what it is.
        if name in RESERVED and (what, name) != ("the label", "label"):
            yield f"{what} is named {name}, as a column of {RESERVED[name]} is: name it otherwise"
    if twice := _repeated(names):
        yield f"the field {twice[0]} is declared twice: remove one of them, or name it otherwise"
    if fields.label in names:
        told = "a model would be told the answer"
        yield f"the label {fields.label} is declared as a field, too: {told}; remove the field"


def _mistakes_of_options(field: Field) -> Iterator[str]:
    for option in OPTIONS:
        if not isinstance(given := getattr(field, option, False), bool):
            yield f"{option} is {given!r}: give True or False"


def _mistakes_of(field: Field) -> Iterator[str]:
    if isinstance(field, Categorical):
        if field.values == ():
            yield "its vocabulary is empty: declare the values it can have"
        yield from _mistakes_of_words("values", field.values)
    elif isinstance(field, Text | Attribute):
        if not isinstance(field.max_chars, int) or isinstance(field.max_chars, bool) or field.max_chars <= 0:
            yield f"max_chars is {field.max_chars!r}: give a whole number above 0"
    elif isinstance(field, Numeric):
        yield from _mistakes_of_bounds(field.low, field.high, integer=field.integer)
    elif isinstance(field, Moment):
        yield from _mistakes_of_parts(field.parts)
    elif isinstance(field, Vector) and (type(field.size) is not int or not 1 <= field.size <= MAX_SIZE):
        yield f"its size is {field.size!r}: give a whole number from 1 to {MAX_SIZE:,}"


def _mistakes_of_parts(parts: Any) -> Iterator[str]:
    known = ", ".join(PARTS)
    if not isinstance(parts, tuple) or not parts:
        yield f"its parts are {parts!r}: give a tuple of at least one of {known}"
        return
    for part in parts:
        if part not in PARTS:
            yield f"{part!r} is no part of a moment: choose from {known}"
    if twice := _repeated(parts):
        yield f"the part {twice[0]} stands twice: remove one"


def _mistakes_of_bounds(low: Any, high: Any, *, integer: bool = False) -> Iterator[str]:
    bounds = [bound for bound in (low, high) if bound is not None]
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) <= FLOAT32_MAX:
            yield f"the bound {bound!r} is no finite number that a float32 holds: give one, or None for no bound"
            return
    if len(bounds) == 2 and bounds[0] > bounds[1]:
        yield f"its bounds are reversed, {bounds[0]:g} is above {bounds[1]:g}: exchange them"
    elif len(bounds) == 2 and integer and math.ceil(bounds[0]) > math.floor(bounds[1]):
        yield f"no whole number lies between {bounds[0]:g} and {bounds[1]:g}: widen the bounds, or drop integer"


def _mistakes_of_words(what: str, words: Any) -> Iterator[str]:
    """What is wrong with a vocabulary, the ``what`` of a field or of the label."""
    if not isinstance(words, tuple):
        yield f"{what} are {words!r}: give a tuple of strings"
        return
    for word in words:
        if not isinstance(word, str) or not word.strip():
            yield f"{word!r} is among its {what}: give strings that are not empty"
        elif any("\ud800" <= char <= "\udfff" for char in word):
            yield f"{word!r} is among its {what} and is no Unicode text: mend it"
    if twice := _repeated([word for word in words if isinstance(word, str)]):
        yield f"{twice[0]!r} stands twice among its {what}: remove one"


def _repeated(values: Sequence[str]) -> list[str]:
    return [value for value, times in Counter(values).items() if times > 1]


def to_json(fields: Fields) -> dict[str, Any]:
    """The declaration as JSON values, e.g. for a model bundle's ``fields.json``; without formulas."""
    told: dict[str, Any] = {
        "case": fields.case,
        "fields": _fields_to_json(fields.fields),
        "label": fields.label,
        "about": fields.about,
        "classes": fields.classes,
    }
    if fields.number is not None:
        told["number"] = asdict(fields.number)
    if fields.derived:
        told["derived"] = _fields_to_json(fields.derived)
    return told


def _fields_to_json(fields: Sequence[Field]) -> list[dict[str, Any]]:
    return [{"kind": type(field).__name__, **_declared(field)} for field in fields]


def from_json(value: Mapping[str, Any]) -> Fields:
    """The declaration that :func:`to_json` wrote: equal to the original, with the same hash."""
    return Fields(
        case=value["case"],
        fields=tuple(_field_from_json(field) for field in value["fields"]),
        label=value["label"],
        about=value["about"],
        target=_target_from_json(value),
        derived=tuple(_field_from_json(field) for field in value.get("derived", ())),  # type: ignore[misc]
    )


def of_bundle(folder: Path) -> Fields:
    """The declaration that a bundle was trained with, as its file says. Raises what reading and parsing raise."""
    return from_json(json.loads((folder / FIELDS).read_text()))


def _target_from_json(value: Mapping[str, Any]) -> Target:
    if "number" in value:
        return Number(**value["number"])
    classes = tuple(value.get("classes", ()))
    return Classes(classes) if classes else Binary()


def _field_from_json(value: Mapping[str, Any]) -> Field:
    kinds: dict[str, Callable[..., Field]] = {
        kind.__name__: kind for kind in (Categorical, Numeric, Text, Flag, Attribute, Moment, Vector)
    }
    declared = {key: part for key, part in value.items() if key != "kind"}
    for several in ("values", "parts"):
        if several in declared:
            declared[several] = tuple(declared[several])
    return kinds[value["kind"]](**declared)


def row_sent(fields: Fields, row: Mapping[str, Any]) -> dict[str, Any]:
    """The declared fields of a canonical row as JSON has them: times as ISO 8601."""
    moments = {moment.name for moment in fields.moments}
    return {
        name: row[name].isoformat() if name in moments and row[name] is not None else row[name] for name in fields.names
    }


def frame_schema(fields: Fields) -> dict[str, Any]:
    """Column names and polars types of the case's canonical rows, in canonical order.

    ``id``, ``event_time`` (microseconds, UTC), every declared field (categories, texts and attributes as text, numbers
    as float64, flags as boolean, moments as the event time, vectors as lists of
    float64), the label (:func:`label_type`; null until it arrived) and ``label_time`` (its arrival).
    """
    import polars as pl

    moment = pl.Datetime("us", "UTC")
    declared = {field.name: column_type(field) for field in fields.fields}
    own_id, event_time, label_time = CANONICAL
    return {own_id: pl.String(), event_time: moment, **declared, fields.label: label_type(fields), label_time: moment}


def column_type(field: Field) -> Any:
    """The polars type of a field's column."""
    import polars as pl

    kinds: dict[type, Any] = {
        Numeric: pl.Float64(),
        Flag: pl.Boolean(),
        Moment: pl.Datetime("us", "UTC"),
        Vector: pl.List(pl.Float64()),
    }
    return kinds.get(type(field), pl.String())


def label_type(fields: Fields) -> Any:
    """The polars type of labels: float64 of a number, else int8 or int16 (0 and 1, or the position of a class)."""
    import polars as pl

    if fields.number is not None:
        return pl.Float64()
    return pl.Int8() if len(fields.classes) <= INT8_CLASSES else pl.Int16()


def as_kind(values: Any, kind: Any) -> Any:
    """A polars expression as a column of canonical rows, of polars' type ``kind``: what cannot be read is null.

    True and false are read as they are, or as those words, times as they are, or from ISO 8601 with a zone.
    """
    import polars as pl

    if kind == pl.Boolean():
        words = {"true": True, "false": False}
        return values.cast(pl.String).replace_strict(words, default=None, return_dtype=pl.Boolean)
    if isinstance(kind, pl.Datetime):
        return values.map_batches(_times, return_dtype=kind)
    if isinstance(kind, pl.List):
        return values.map_batches(_lists, return_dtype=kind)
    return values.cast(kind, strict=False)


def _lists(values: Any) -> Any:
    """A series as lists of float64: null of what is no list."""
    import polars as pl

    kind = pl.List(pl.Float64)
    if isinstance(values.dtype, pl.List | pl.Array):
        return values.cast(kind, strict=False)
    return pl.Series(values.name, [None], kind).new_from_index(0, values.len())


def _times(values: Any) -> Any:
    """A series as microseconds in UTC."""
    import polars as pl

    if values.dtype == pl.String:
        return values.str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False)
    return values.cast(pl.Datetime("us", "UTC"), strict=False)
