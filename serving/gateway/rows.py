"""What a request must look like, from the case's declared fields.

Two readers of one declaration: msgspec decodes and checks a good body in one pass; a bad one is read
again by :func:`explain`, slowly, to say which field of which row is wrong without repeating what it held.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from pipelines.config import EventTimes, too_high
from pipelines.fields import FLOAT32_MAX, Categorical, Field, Fields, Text, problem
from serving.gateway.refusal import Refused

Check = Callable[[object], str | None]

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,127}$"
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_OWN = ("prediction_id", "event_time")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SAFE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_REASONS = (
    ("expected", "type"),
    ("unknown category", "category"),
    ("unknown class", "class"),
    ("must be finite", "not_finite"),
    ("must be a whole", "not_whole"),
    ("must not be empty", "empty"),
    ("lone surrogate", "not_unicode"),
)
_Id = Annotated[str, Meta(pattern=ID_PATTERN)]
_Moment = Annotated[datetime, Meta(tz=True)]


@dataclass(frozen=True)
class Shape:
    """One kind of body, ``{name: [item, ...]}``: how it is decoded, and what is checked when that fails.

    ``text`` names the text field, if there is one: whether anything is left of a text is not for msgspec to see.
    """

    name: str
    decoder: msgspec.json.Decoder[Any]
    required: tuple[str, ...]
    checks: Mapping[str, Check]
    most: int
    text: str = ""


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A label as posted."""

    prediction_id: _Id
    label: Annotated[int, Meta(ge=0, le=1)]
    revision: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    event_time: _Moment | UnsetType = UNSET


def check_times(items: Sequence[Any], times: EventTimes, received: datetime) -> None:
    """Raise Refused for the first item whose event time or revision cannot be right, seen from the moment of its receipt."""
    for number, item in enumerate(items):
        if item.event_time is not UNSET and (text := times.mistake(item.event_time, received)) is not None:
            raise Refused(422, "event_time", f"row {number}: event_time: {text}", field="event_time", row=number, rows=len(items))
        if isinstance(item, Label) and too_high(item.revision, received):
            text = "must not be above the present time in seconds since 1970: count corrections from 1, or send the time of the correction"
            raise Refused(422, "bounds", f"row {number}: revision: {text}", field="revision", row=number, rows=len(items))


def row_shape(fields: Fields, most: int) -> Shape:
    """The body of a predict request: every declared field, and optionally ``prediction_id`` and ``event_time``."""
    row = msgspec.defstruct(
        "Row",
        [
            *((field.name, _annotation(field)) for field in fields.fields),
            ("prediction_id", _Id | UnsetType, UNSET),
            ("event_time", _Moment | UnsetType, UNSET),
        ],
        forbid_unknown_fields=True,
        gc=False,
    )
    checks = {field.name: _field_check(field) for field in fields.fields}
    if fields.text is not None:
        _visible()  # made now, not by the first request
    return _shape("rows", row, fields.names, checks, most, fields.text.name if fields.text is not None else "")


def label_shape(fields: Fields, most: int) -> Shape:
    """The body of a labels request: 0 or 1, or the name of one of the case's classes."""
    checks: dict[str, Check] = {"label": _whole("label", 0, 1), "revision": _whole("revision", 0, 2**31 - 1)}
    if not fields.classes:
        return _shape("labels", Label, ("prediction_id", "label"), checks, most)
    checks["label"] = _class("label", fields.classes)
    named = msgspec.defstruct("ClassLabel", [("label", Literal[fields.classes])], bases=(Label,), forbid_unknown_fields=True, gc=False, kw_only=True)
    return _shape("labels", named, ("prediction_id", "label"), checks, most)


def _shape(name: str, item: Any, required: tuple[str, ...], checks: Mapping[str, Check], most: int, text: str = "") -> Shape:
    request = msgspec.defstruct("Request", [(name, Annotated[list[item], Meta(min_length=1, max_length=most)])], forbid_unknown_fields=True)
    return Shape(name, msgspec.json.Decoder(request), required, {**checks, "prediction_id": _id_check, "event_time": _time_check}, most, text)


class _Object(dict[str, Any]):
    """A JSON object that also keeps what a repeated key held first: msgspec checks every value, not only the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def read(shape: Shape, body: bytes) -> list[Any]:
    """The decoded items of a body (structs); raises Refused with the first problem found."""
    try:
        items: list[Any] = getattr(shape.decoder.decode(body), shape.name)
    except (ValueError, RecursionError) as error:
        # msgspec's own words repeat what was sent: they go no further than this line.
        raise explain(shape, body) from error
    for number, item in enumerate(items):
        if item.event_time is not UNSET and (text := _out_of_time(item.event_time)):
            raise Refused(422, "event_time", f"row {number}: {text}", field="event_time", row=number, rows=len(items))
        if shape.text and not _visible().search(getattr(item, shape.text)):
            raise Refused(422, "empty", f"row {number}: {shape.text}: must not be empty", field=shape.text, row=number, rows=len(items))
    return items


@lru_cache(maxsize=1)
def _visible() -> re.Pattern[str]:
    """A character that :func:`pipelines.text.normalise` keeps: most texts begin with one, and a text without any is empty."""
    gone = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in {"Cc", "Cf"})
    return re.compile(rf"[^\s{re.escape(gone)}]")


def explain(shape: Shape, body: bytes) -> Refused:
    """The first problem of a body that could not be decoded, as a refusal."""
    try:
        # Python's reader, as it lets NaN and lone surrogates through: the field that holds them can be named.
        value = json.loads(body.decode(), object_pairs_hook=_Object)
    except UnicodeDecodeError:
        return Refused(400, "json", "the body is not UTF-8")
    except (ValueError, RecursionError):
        return Refused(400, "json", "the body is not JSON")
    form = f'the body must be {{"{shape.name}": [{{...}}, ...]}}'
    if not isinstance(value, _Object) or shape.name not in value:
        return Refused(422, "shape", form)
    if len(value.pairs) > 1:
        return Refused(422, "shape", f"{form} and nothing else")
    items = value[shape.name]
    if not isinstance(items, list) or not items:
        return Refused(422, "shape", f"{shape.name} must be a list of at least one object", field=shape.name)
    if len(items) > shape.most:
        return Refused(422, "too_many", f"{shape.name} has {len(items)} items, at most {shape.most} are allowed", field=shape.name, rows=len(items))
    for number, item in enumerate(items):
        found = _first_problem(shape, item)
        if found is not None:
            reason, field, text = found
            return Refused(422, reason, f"row {number}: {text}", field=field, row=number, rows=len(items))
    return Refused(422, "shape", form, rows=len(items))


def _first_problem(shape: Shape, item: object) -> tuple[str, str | None, str] | None:
    """``(reason, field, text)`` of the first thing wrong with one item."""
    if not isinstance(item, _Object):
        return "shape", None, "must be an object"
    for name in shape.required:
        if name not in item:
            return "missing", name, f"{name}: missing"
    for name in item:
        if name not in shape.checks:
            known = ", ".join(shape.checks)
            if _SAFE_NAME.fullmatch(name):
                return "unknown_field", name, f"{name}: unknown field, the fields are {known}"
            return "unknown_field", None, f"unknown field, the fields are {known}"
    for name, value in item.pairs:
        text = shape.checks[name](dict(value) if isinstance(value, _Object) else value)
        if text is not None:
            reason = name if name in _OWN else next((reason for part, reason in _REASONS if part in text), "bounds")
            return reason, name, text
    return None


def _annotation(field: Field) -> Any:
    if isinstance(field, Categorical):
        return Literal[field.values]
    if isinstance(field, Text):
        return Annotated[str, Meta(min_length=1, max_length=field.max_chars)]
    low = -FLOAT32_MAX if field.low is None else max(field.low, -FLOAT32_MAX)
    high = FLOAT32_MAX if field.high is None else min(field.high, FLOAT32_MAX)
    return Annotated[float, Meta(ge=low, le=high, multiple_of=1 if field.integer else None)]


def _field_check(field: Field) -> Check:
    def check(value: object) -> str | None:
        text = problem(field, value)
        if text is None and isinstance(value, str) and _SURROGATE.search(value):
            text = f"{field.name}: holds a lone surrogate: send Unicode text"
        return text

    return check


def _whole(name: str, low: int, high: int) -> Check:
    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{name}: expected a whole number"
        return None if low <= value <= high else f"{name}: must be from {low} to {high}"

    return check


def _class(name: str, classes: tuple[str, ...]) -> Check:
    def check(value: object) -> str | None:
        return None if isinstance(value, str) and value in classes else f"{name}: unknown class, use one of {', '.join(classes)}"

    return check


def _id_check(value: object) -> str | None:
    if isinstance(value, str) and re.fullmatch(ID_PATTERN.removesuffix("$"), value):
        return None
    return "prediction_id: must be 1 to 128 letters, digits or . _ : / @ + = -, starting with a letter or digit"


def _time_check(value: object) -> str | None:
    try:
        return _out_of_time(msgspec.convert(value, _Moment))
    except msgspec.ValidationError:
        return "event_time: must be an ISO 8601 time with seconds and a time zone, e.g. 2024-05-01T12:00:00Z"


def _out_of_time(moment: datetime) -> str | None:
    # Compared as aware times: year 1 or 9999 may not survive the conversion to UTC.
    return None if EARLIEST <= moment < LATEST else f"event_time: must lie between {EARLIEST.year} and {LATEST.year}"
