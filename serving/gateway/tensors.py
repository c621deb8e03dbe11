"""Open Inference Protocol, version 2: the tensors of a request as rows, and answers as tensors.

A tensor is an input for each declared field, with an element for each row. What it holds becomes the body of a
predict request, so that both ways in have one validation, one log and one routing. The protocol has no missing values:
NaN in a number, ``null`` in JSON and an empty element of BYTES stand for them, where a field may be missing.

Source: https://github.com/open-inference/open-inference-protocol (REST and gRPC, version 2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from pipelines.fields import EVENT_TIME, Attribute, Categorical, Field, Fields, Flag, Moment, Numeric, Text, Vector
from serving.gateway.identity import Answer
from serving.gateway.refusal import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES, BOOL = "BYTES", "BOOL"
NUMBERS = {
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""The protocol's numbers, as NumPy calls their bytes."""
OPTIONAL = ("prediction_id", EVENT_TIME)
"""Inputs that a request may leave out."""
_encode = msgspec.json.Encoder().encode


class Tensor(NamedTuple):
    """An input: ``values`` are numbers, booleans, texts or bytes, row by row; None where JSON held null."""

    name: str
    datatype: str
    shape: Sequence[int]
    values: Sequence[Any]


class Output(NamedTuple):
    """An output of one element for each row."""

    name: str
    datatype: str
    values: list[Any]

    def raw(self) -> bytes:
        """Its elements as the protocol's bytes."""
        if self.datatype == BYTES:
            found = serialize_byte_tensor(np.array([value.encode() for value in self.values], np.object_))
            return bytes(found.item())
        return np.array(self.values, NUMBERS[self.datatype]).tobytes()


class About(NamedTuple):
    """What metadata says of an input or output."""

    name: str
    datatype: str
    shape: list[int]


def inputs(fields: Fields) -> list[About]:
    """The inputs of a case's requests: the declared fields, then those that may be left out."""
    declared = [About(field.name, _datatype(field), _shape(field)) for field in fields.fields]
    return [*declared, *(About(name, BYTES, [-1]) for name in OPTIONAL)]


def outputs(fields: Fields) -> list[About]:
    """The outputs of a case's answers."""
    return [About(name, datatype, [-1]) for name, datatype, _ in answered(fields, [])]


def answered(fields: Fields, answers: Sequence[Answer]) -> list[Output]:
    """The answers' prediction, its score (but of a number), the version that gave it and the row's id."""
    score = [Output("score", "FP64", [answer.score for answer in answers])]
    if fields.number is not None:
        prediction = Output("prediction", "FP64", [answer.score for answer in answers])
        score = []
    elif fields.classes:
        prediction = Output("prediction", BYTES, [fields.classes[int(answer.prediction)] for answer in answers])
    else:
        prediction = Output("prediction", "INT64", [int(answer.prediction) for answer in answers])
    version = Output("version", "INT64", [answer.version for answer in answers])
    return [prediction, *score, version, Output("prediction_id", BYTES, [answer.id for answer in answers])]


def wanted(found: Sequence[Output], names: Sequence[str]) -> list[Output]:
    """The outputs of these ``names``, in that order; all where there are none. Refused (400) for an unknown one."""
    by_name = {output.name: output for output in found}
    for name in names:
        if name not in by_name:
            raise Refused(400, "shape", f"outputs: unknown name, the outputs are {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(found)


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """A tensor of the protocol's bytes. Raises Refused (400) if they are none of its ``datatype`` and ``shape``."""
    count = size(shape)
    try:
        if datatype == BYTES:
            values: Sequence[Any] = deserialize_bytes_tensor(raw).tolist()
        elif datatype == BOOL:
            values = np.frombuffer(raw, np.bool_).tolist()
        elif datatype in NUMBERS:
            values = np.frombuffer(raw, NUMBERS[datatype]).tolist()
        else:
            raise Refused(400, "shape", f"inputs: datatype must be one of {', '.join((BYTES, BOOL, *NUMBERS))}")
    except (ValueError, struct.error) as error:
        raise Refused(400, "shape", f"inputs: the bytes of a tensor are no {datatype}") from error
    if len(values) != count:
        raise Refused(400, "shape", f"inputs: a tensor holds {len(values)} elements, its shape says {count}")
    return Tensor(name, datatype, shape, values)


def size(shape: Sequence[int]) -> int:
    """How many elements a shape says. Raises Refused (400) for one that says nothing."""
    count = 1
    for length in shape:
        count *= length
    if not shape or min(shape) < 0:
        raise Refused(400, "shape", "inputs: shape must be [rows] or [rows, 1], of a vector [rows, size]")
    return count


def body(fields: Fields, tensors: Sequence[Tensor], most: int) -> bytes:
    """The body of a predict request that holds the tensors' rows, at most ``most``. Raises Refused for what is none."""
    if not tensors:
        raise Refused(400, "shape", "inputs must be a list of at least one tensor: one for each declared field")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise Refused(400, "shape", "inputs: a name stands there twice")
    rows = tensors[0].shape[0]
    if rows > most:
        raise Refused(422, "too_many", f"inputs have {rows} rows, at most {most} are allowed", rows=rows)
    if not rows:
        raise Refused(422, "shape", "inputs have no rows: send at least one", rows=0)
    known: Mapping[str, Field] = {field.name: field for field in fields.fields}
    columns: dict[str, list[Any]] = {}
    for tensor in tensors:
        field = known.get(tensor.name)
        label = tensor.name if tensor.name in known or tensor.name in OPTIONAL else None
        _check_shape(tensor, field, rows, label)
        columns[tensor.name] = _values(tensor, field, label, rows)
    named = [name for name in columns if name not in OPTIONAL]
    found = [dict(zip(named, row, strict=True)) for row in zip(*(columns[name] for name in named), strict=True)]
    found = found or [{} for _ in range(rows)]
    for name in OPTIONAL:
        for row, value in zip(found, columns.get(name, ()), strict=False):
            if value not in (None, ""):  # an empty one is left out
                row[name] = value
    return _encode({"rows": found})


def _check_shape(tensor: Tensor, field: Field | None, rows: int, label: str | None) -> None:
    vector = isinstance(field, Vector)
    flat = len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)
    if tensor.shape[0] == rows and ((vector and len(tensor.shape) == 2) or (not vector and flat)):
        return
    shape = f"[{rows}, {field.size}]" if isinstance(field, Vector) else f"[{rows}] or [{rows}, 1]"
    about = label or "an input"
    text = f"{about}: shape must be {shape}, as the first input has {rows} rows"
    raise Refused(422, "shape", text, field=label, rows=rows)


def _values(tensor: Tensor, field: Field | None, label: str | None, rows: int) -> list[Any]:
    """A column of what rows hold, as JSON has it."""
    width = max(1, len(tensor.values) // rows)
    if tensor.datatype == BYTES:
        values = _texts(tensor, field, label, rows)
    elif tensor.datatype.startswith("FP"):
        values = _numbers(tensor.values, label, rows, width)
    else:
        values = list(tensor.values)
    if isinstance(field, Vector):
        width = tensor.shape[1]
        return [values[row * width : (row + 1) * width] for row in range(rows)]
    if isinstance(field, Flag) and tensor.datatype in NUMBERS:  # BOOL has no NaN for a missing one
        return [bool(value) if value in (0, 1) else value for value in values]
    return values


def _numbers(given: Sequence[Any], label: str | None, rows: int, width: int) -> list[Any]:
    """None for NaN. Raises Refused for what JSON has no number for, and would be taken for missing."""
    values = list(given)
    try:
        numbers: NDArray[np.float64] = np.array(values, np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):  # from JSON, and none of a row's numbers either
        return values
    endless = np.flatnonzero(np.isinf(numbers))
    if endless.size:
        row = int(endless[0]) // width
        raise Refused(422, "not_finite", f"row {row}: {label}: must be finite", field=label, row=row, rows=rows)
    if not np.isnan(numbers).any():
        return values
    return [None if hole else value for value, hole in zip(values, np.isnan(numbers).tolist(), strict=True)]


def _texts(tensor: Tensor, field: Field | None, label: str | None, rows: int) -> list[Any]:
    empty_is_missing = field is not None and field.missing
    found: list[Any] = []
    for row, value in enumerate(tensor.values):
        text = value
        if isinstance(value, bytes):
            try:
                text = value.decode()
            except UnicodeDecodeError as error:
                about = f"row {row}: {label}: the bytes are not UTF-8"
                raise Refused(422, "not_unicode", about, field=label, row=row, rows=rows) from error
        found.append(None if empty_is_missing and text == "" else text)
    return found


def _datatype(field: Field) -> str:
    if isinstance(field, Numeric):
        return "INT64" if field.integer and not field.missing else "FP64"
    if isinstance(field, Vector):
        return "FP64"
    if isinstance(field, Flag):
        return "FP64" if field.missing else BOOL
    assert isinstance(field, Categorical | Text | Attribute | Moment)
    return BYTES


def _shape(field: Field) -> list[int]:
    if isinstance(field, Vector):
        return [-1, field.size]
    return [-1]


def flattened(data: Any) -> Iterator[Any]:
    """The elements of nested lists, in their order, however deep they lie."""
    left = [data]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left.extend(reversed(one))
        else:
            yield one
