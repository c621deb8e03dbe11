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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from pipelines.contracts import FIGURE_PATTERN, ID_PATTERN
from pipelines.fields import (
    EVENT_TIME,
    FLOAT32_MAX,
    OTHER_CHARS,
    Attribute,
    Categorical,
    Field,
    Fields,
    Flag,
    Moment,
    Numeric,
    Text,
    Vector,
)
from pipelines.params import EventTimes, too_high
from pipelines.problems import Problem, out_of_time, problem, problem_of_time
from serving.gateway.refusal import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

Check = Callable[[object], Problem | None]

_SAFE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_HEAD = re.compile(rb'[ \t\n\r]*\{[ \t\n\r]*("(?:[^"\\]|\\.){0,200}")[ \t\n\r]*:[ \t\n\r]*')
_TAIL = re.compile(rb"\][ \t\n\r]*\}[ \t\n\r]*")
MOST_REPEATS = 4
"""An item with more keys than this many times its fields is not read to say what is wrong with it."""
LONGEST_INTEGER = 400
"""Digits that are read of one: with so many it is beyond every float."""
Time = Annotated[datetime, Meta(tz=True)]
"""An ISO 8601 time with seconds and a zone."""
# The end that Python's ``$`` means may have a line end after it.
_ID, _FIGURE = (pattern.removesuffix("$") + r"\Z" for pattern in (ID_PATTERN, FIGURE_PATTERN))
_Id = Annotated[str, Meta(pattern=_ID)]


@dataclass(frozen=True)
class Shape:
    """One kind of body, ``{name: [item, ...]}``: how it is decoded, and what is checked when that fails.

    ``single`` decodes one item alone.
    ``text`` names the text field, if there is one: whether anything is left of a text is not for msgspec to see.
    ``moments`` names the fields that are times, which items have in UTC; ``lists`` says whether a field holds a list.
    """

    name: str
    decoder: msgspec.json.Decoder[Any]
    single: msgspec.json.Decoder[Any]
    required: tuple[str, ...]
    checks: Mapping[str, Check]
    most: int
    text: str = ""
    moments: tuple[str, ...] = ()
    lists: bool = False


class Label(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A label as posted."""

    prediction_id: _Id
    label: Annotated[int, Meta(ge=0, le=1)]
    revision: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    event_time: Time | UnsetType = UNSET


class Figure(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A business figure as posted."""

    prediction_id: _Id
    name: Annotated[str, Meta(pattern=_FIGURE)]
    value: Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
    revision: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    event_time: Time | UnsetType = UNSET


def check_times(items: Sequence[Any], times: EventTimes, received: datetime) -> None:
    """Raise Refused for the first item whose event time or revision cannot be right.

    They are seen from the moment of its receipt.
    """
    for number, item in enumerate(items):
        if (found := _untimely(item, times, received)) is not None:
            raise _refused(found, number, len(items))


def _untimely(item: Any, times: EventTimes, received: datetime) -> Problem | None:
    if item.event_time is not UNSET and (text := times.mistake(item.event_time, received)) is not None:
        return Problem(EVENT_TIME, "event_time", text)
    if isinstance(item, Label | Figure) and too_high(item.revision, received):
        text = (
            "must not be above the present time in seconds since 1970: count corrections from 1, or send the "
            "time of the correction"
        )
        return Problem("revision", "bounds", text)
    return None


def row_shape(fields: Fields, most: int) -> Shape:
    """The body of a predict request: every declared field, and optionally ``prediction_id`` and ``event_time``."""
    row = msgspec.defstruct(
        "Row",
        [
            *((field.name, _annotation(field)) for field in fields.fields),
            ("prediction_id", _Id | UnsetType, UNSET),
            (EVENT_TIME, Time | UnsetType, UNSET),
        ],
        forbid_unknown_fields=True,
        gc=False,
    )
    checks = {field.name: partial(problem, field) for field in fields.fields}
    if fields.text is not None:
        _visible()  # made now, not by the first request
    shape = _shape("rows", row, fields.names, checks, most)
    text = "" if fields.text is None else fields.text.name
    moments = tuple(moment.name for moment in fields.moments)
    return replace(shape, text=text, moments=moments, lists=bool(fields.vectors))


def label_shape(fields: Fields, most: int) -> Shape:
    """The body of a labels request: 0 or 1, the name of one of the case's classes, or a number within its bounds."""
    checks: dict[str, Check] = {"label": _whole("label", 0, 1), "revision": _whole("revision", 0, 2**31 - 1)}
    if fields.number is not None:
        declared = Numeric("label", fields.number.low, fields.number.high)
        checks["label"] = partial(problem, declared)
        number = msgspec.defstruct(
            "NumberLabel",
            [("label", _annotation(declared))],
            bases=(Label,),
            forbid_unknown_fields=True,
            gc=False,
            kw_only=True,
        )
        return _shape("labels", number, ("prediction_id", "label"), checks, most)
    if not fields.classes:
        return _shape("labels", Label, ("prediction_id", "label"), checks, most)
    checks["label"] = _class("label", fields.classes)
    named = msgspec.defstruct(
        "ClassLabel",
        [("label", Literal[fields.classes])],
        bases=(Label,),
        forbid_unknown_fields=True,
        gc=False,
        kw_only=True,
    )
    return _shape("labels", named, ("prediction_id", "label"), checks, most)


def figure_shape(most: int) -> Shape:
    """The body of a figures request: named finite numbers."""
    checks: dict[str, Check] = {
        "name": _name_check,
        "value": partial(problem, Numeric("value")),
        "revision": _whole("revision", 0, 2**31 - 1),
    }
    return _shape("figures", Figure, ("prediction_id", "name", "value"), checks, most)


def _shape(name: str, item: Any, required: tuple[str, ...], checks: Mapping[str, Check], most: int) -> Shape:
    request = msgspec.defstruct(
        "Request", [(name, Annotated[list[item], Meta(min_length=1, max_length=most)])], forbid_unknown_fields=True
    )
    return Shape(
        name,
        msgspec.json.Decoder(request),
        msgspec.json.Decoder(item),
        required,
        {**checks, "prediction_id": _id_check, "event_time": _time_check},
        most,
    )


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
        if (found := _unfit(shape, item)) is not None:
            raise _refused(found, number, len(items))
    return items


def _unfit(shape: Shape, item: Any) -> Problem | None:
    """What of a decoded item is not for msgspec to see; its moments are in UTC afterwards."""
    if item.event_time is not UNSET and (found := out_of_time(EVENT_TIME, "event_time", item.event_time)):
        return found
    for name in shape.moments:
        if (moment := getattr(item, name)) is None:
            continue
        if found := out_of_time(name, "time", moment):
            return found
        setattr(item, name, moment.astimezone(UTC))
    if shape.text and (text := getattr(item, shape.text)) is not None and not _visible().search(text):
        return Problem(shape.text, "empty", "must not be empty")
    return None


class Unfit(NamedTuple):
    """An item that is not as declared: why, as if it had come alone, and its own JSON."""

    error: Refused
    text: bytes


def read_each(shape: Shape, body: bytes, times: EventTimes, received: datetime) -> list[Any]:
    """The items of a body in their order: decoded (structs), and :class:`Unfit` where they are not as declared.

    Raises Refused for a body that is not JSON, or of another shape. What it costs grows with the body's bytes, as that
    of :func:`explain`. For a thread, where bodies are long.
    """
    items = _split(shape, body)
    if not items.alone:
        raise _around(shape, body, len(items))
    return [_each(shape, items, number, times, received) for number in range(len(items))]


def _each(shape: Shape, items: _Items, number: int, times: EventTimes, received: datetime) -> Any:
    text = items.text(number)
    try:
        item = shape.single.decode(text)
    except (ValueError, RecursionError):
        reason, field, words = _said_of(shape, text, items.keys(number))
    else:
        problem = _unfit(shape, item) or _untimely(item, times, received)
        if problem is None:
            return item
        reason, field, words = problem.code, problem.field, str(problem)
    return Unfit(Refused(422, reason, f"row {number}: {words}", field=field, row=number), text)


def _refused(found: Problem, row: int, rows: int) -> Refused:
    return Refused(422, found.code, f"row {row}: {found}", field=found.field, row=row, rows=rows)


def _said_of(shape: Shape, text: bytes, keys: int) -> tuple[str, str | None, str]:
    """``(reason, field, text)`` of an item that cannot be decoded. Raises Refused (400) if it is not even JSON."""
    try:
        found = _problem_of_item(shape, text, keys)
    except (ValueError, RecursionError) as error:
        raise _not_json() from error
    return found or ("shape", None, "is not as declared")


@lru_cache(maxsize=1)
def _visible() -> re.Pattern[str]:
    """A character that :func:`pipelines.text.normalise` keeps.

    Most texts begin with one, and a text without any is empty.
    """
    gone = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in {"Cc", "Cf"})
    return re.compile(rf"[^\s{re.escape(gone)}]")


def explain(shape: Shape, body: bytes) -> Refused:
    """The first problem of a body that could not be decoded, as a refusal.

    Counted first, and only items up to the first bad one are read: what it costs grows with the body's bytes, not with
    what they hold (8 MB take less than half a second and 150 MB). For a thread, where bodies are long.
    """
    try:
        items = _split(shape, body)
    except Refused as error:
        return error
    for number in range(len(items)):
        try:
            found = _problem_of_item(shape, items.text(number), items.keys(number))
        except (ValueError, RecursionError):
            return _not_json()
        if found is not None:
            reason, field, text = found
            return Refused(422, reason, f"row {number}: {text}", field=field, row=number, rows=len(items))
    return _around(shape, body, len(items))


def _split(shape: Shape, body: bytes) -> _Items:
    """The items of a body, not read yet. Raises Refused where it is of another shape, or has none or too many."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, "json", "the body is not UTF-8") from error
    head = _HEAD.match(body)
    if head is None or not _is_name(head[1], shape.name):
        raise _refused_shape(body, _form(shape))
    if not body.startswith(b"[", head.end()):
        text = f"{shape.name} must be a list of at least one object"
        raise _refused_shape(body, text, field=shape.name)
    items = _items(body, head.end(), deepest=3 if shape.lists else 2)
    if not len(items):
        text = f"{shape.name} must be a list of at least one object"
        raise _refused_shape(body, text, field=shape.name)
    if len(items) > shape.most:
        text = f"{shape.name} has {len(items)} items, at most {shape.most} are allowed"
        raise Refused(422, "too_many", text, field=shape.name, rows=len(items))
    return items


def _form(shape: Shape) -> str:
    return f'the body must be {{"{shape.name}": [{{...}}, ...]}}'


def _around(shape: Shape, body: bytes, rows: int) -> Refused:
    """What is wrong with a body whose items are as they should be."""
    if not _is_json(body):
        return _not_json()
    return Refused(422, "shape", f"{_form(shape)} and nothing else", rows=rows)


def _refused_shape(body: bytes, text: str, field: str | None = None) -> Refused:
    """A body of another shape, if it is JSON at all."""
    if not _is_json(body):
        return _not_json()
    return Refused(422, "shape", text, field=field, rows=0)


def _not_json() -> Refused:
    return Refused(400, "json", "the body is not JSON")


def _is_json(body: bytes) -> bool:
    """Whether the body is JSON: all of it is looked at and nothing built.

    Lone surrogates are a matter of Unicode, not of JSON.
    """
    try:
        msgspec.json.decode(body.replace(b"\\ud", b"\\u0").replace(b"\\uD", b"\\u0"), type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return True


def _is_name(text: bytes, name: str) -> bool:
    try:
        return bool(json.loads(text) == name)
    except ValueError:
        return False


class _Items(NamedTuple):
    """The items of a body's list, found without reading them.

    Item ``i`` lies between ``edges[i]`` and ``edges[i + 1]``. ``shown`` is False inside what an item nests and no field
    holds: that there is one says it all. ``commas`` are the places of those between the keys of items. ``alone``:
    nothing else stands in the body.
    """

    body: NDArray[np.uint8]
    shown: NDArray[np.bool_]
    edges: NDArray[np.int64]
    commas: NDArray[np.int64]
    alone: bool

    def __len__(self) -> int:
        return len(self.edges) - 1

    def text(self, number: int) -> bytes:
        """One item's JSON, what it nests left empty."""
        part = slice(self.edges[number] + 1, self.edges[number + 1])
        return self.body[part][self.shown[part]].tobytes()

    def keys(self, number: int) -> int:
        """How many keys one item has, repeated ones too."""
        first, last = np.searchsorted(self.commas, self.edges[number : number + 2])
        return int(last - first) + 1


def _items(body: bytes, start: int, deepest: int) -> _Items:
    """The items of the list that begins at ``start``, the value of an object's first key.

    ``deepest`` is the depth that fields reach: 2 in an item, 3 where one holds a list.
    """
    # Escaped quotes are no quotes; every replacement keeps its length.
    plain = np.frombuffer(body.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)[start:]
    outside = (np.cumsum(plain == ord('"'), dtype=np.uint8) & 1) == 0
    opening, closing = (outside & ((plain == ord(one)) | (plain == ord(other))) for one, other in ("[{", "]}"))
    depth = np.cumsum(opening.astype(np.int8) - closing.astype(np.int8), dtype=np.int32)  # 1 in the list, 2 in an item
    ends = np.flatnonzero(closing & (depth == 0))
    end = int(ends[0]) if len(ends) else len(plain)
    plain, outside, opening, depth = plain[:end], outside[:end], opening[:end], depth[:end]
    comma = outside & (plain == ord(","))
    edges = np.concatenate([[0], np.flatnonzero(comma & (depth == 1)), [end]])
    whole = np.frombuffer(body, np.uint8)[start : start + end]
    if len(edges) == 2 and not whole[1:].tobytes().strip():
        edges = edges[:1]
    return _Items(
        whole,
        (depth <= deepest) | (opening & (depth == deepest + 1)),
        edges,
        np.flatnonzero(comma & (depth == 2)),
        _TAIL.fullmatch(body, start + end) is not None,
    )


def _problem_of_item(shape: Shape, text: bytes, keys: int) -> tuple[str, str | None, str] | None:
    if keys > (most := MOST_REPEATS * len(shape.checks)):
        return (
            "unknown_field",
            None,
            f"has {keys} fields, at most {most} are read: the fields are {', '.join(shape.checks)}",
        )
    # Python's reader, as it lets NaN and lone surrogates through: the field that holds them can be named.
    return _first_problem(shape, json.loads(text.decode(), object_pairs_hook=_Object, parse_int=_whole_number))


def _whole_number(digits: str) -> int:
    """Python refuses to read very long integers; the first digits say as well that no field takes it."""
    return int(digits[:LONGEST_INTEGER])


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
        found = shape.checks[name](dict(value) if isinstance(value, _Object) else value)
        if found is not None:
            return found.code, name, str(found)
    return None


def _annotation(field: Field) -> Any:
    if field.missing:
        return _value(field) | None
    return _value(field)


def _value(field: Field) -> Any:
    if isinstance(field, Categorical):
        if field.other:
            return Annotated[str, Meta(max_length=OTHER_CHARS)]
        return Literal[field.values]
    if isinstance(field, Text):
        return Annotated[str, Meta(min_length=1, max_length=field.max_chars)]
    if isinstance(field, Attribute):
        return Annotated[str, Meta(max_length=field.max_chars)]
    if isinstance(field, Flag):
        return bool
    if isinstance(field, Moment):
        return Time
    if isinstance(field, Vector):
        number = Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
        return Annotated[list[number], Meta(min_length=field.size, max_length=field.size)]
    low = -FLOAT32_MAX if field.low is None else max(field.low, -FLOAT32_MAX)
    high = FLOAT32_MAX if field.high is None else min(field.high, FLOAT32_MAX)
    return Annotated[float, Meta(ge=low, le=high, multiple_of=1 if field.integer else None)]


def _whole(name: str, low: int, high: int) -> Check:
    def check(value: object) -> Problem | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return Problem(name, "type", "expected a whole number")
        if low <= value <= high:
            return None
        return Problem(name, "bounds", f"must be from {low} to {high}")

    return check


def _class(name: str, classes: tuple[str, ...]) -> Check:
    def check(value: object) -> Problem | None:
        if isinstance(value, str) and value in classes:
            return None
        return Problem(name, "class", f"unknown class, use one of {', '.join(classes)}")

    return check


def _id_check(value: object) -> Problem | None:
    if isinstance(value, str) and re.match(_ID, value):
        return None
    allowed = "must be 1 to 128 letters, digits or . _ : / @ + = -, starting with a letter or digit"
    return Problem("prediction_id", "prediction_id", allowed)


def _name_check(value: object) -> Problem | None:
    if isinstance(value, str) and re.match(_FIGURE, value):
        return None
    return Problem("name", "name", "must be a letter, then letters, digits and _, at most 64 in all")


def _time_check(value: object) -> Problem | None:
    return problem_of_time(EVENT_TIME, "event_time", value)
