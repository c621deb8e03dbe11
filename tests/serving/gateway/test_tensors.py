"""Tensors of the Open Inference Protocol as rows of a request: what each datatype means, and what is refused."""

import json

import numpy as np
import pytest
from tritonclient.utils import serialize_byte_tensor

from pipelines.fields import Attribute, Categorical, Fields, Flag, Moment, Number, Numeric, Text, Vector
from serving.gateway import tensors
from serving.gateway.identity import Answer
from serving.gateway.refusal import Refused
from serving.gateway.rows import read, row_shape
from serving.gateway.tensors import Tensor

FIELDS = Fields(
    case="t",
    label="y",
    fields=(
        Numeric("income", low=0, missing=True),
        Numeric("age", low=18, high=100, integer=True),
        Categorical("job", ("admin", "other job"), missing=True),
        Categorical("kind", ("a", "b"), missing=True),
        Flag("member", missing=True),
        Flag("active"),
        Moment("since", missing=True),
        Vector("place", size=2),
        Attribute("shop", missing=True),
        Text("note"),
    ),
)
ROW = {
    "income": 1.5,
    "age": 30,
    "job": "admin",
    "kind": "a",
    "member": True,
    "active": False,
    "since": "2024-05-01T12:00:00Z",
    "place": [0.25, -3.0],
    "shop": "x",
    "note": "Größe",
}
HOLES = {**ROW, **dict.fromkeys(("income", "job", "kind", "member", "since", "shop"))}


def binary(name, values, datatype=None):
    """A field's tensor as the protocol's bytes, as a client would make it of values with holes."""
    about = {one.name: one for one in tensors.inputs(FIELDS)}[name]
    datatype = datatype or about.datatype
    if name == "place":
        array = np.array(values, np.float64)
    elif datatype == "BYTES":
        array = np.array([(value or "").encode() for value in values], np.object_)
        return tensors.from_bytes(name, datatype, array.shape, serialize_byte_tensor(array).item())
    elif datatype == "BOOL":
        array = np.array(values, np.bool_)
    else:
        array = np.array(values, tensors.NUMBERS[datatype] if datatype == "INT64" else np.float64)
    return tensors.from_bytes(name, datatype, array.shape, array.tobytes())


def as_json(name, values):
    """The same of JSON's own values."""
    about = {one.name: one for one in tensors.inputs(FIELDS)}[name]
    shape = [len(values), 2] if name == "place" else [len(values)]
    return Tensor(name, about.datatype, shape, list(tensors.flattened(values)))


def rows_of(given):
    """The rows of a body of tensors."""
    return json.loads(tensors.body(FIELDS, given, 100))["rows"]


@pytest.mark.parametrize("form", [binary, as_json])
def test_rows_are_the_same_whichever_way_they_come(form):
    """Rows with and without holes come out of tensors as a predict request has them, as bytes and as JSON."""
    found = rows_of([form(name, [ROW[name], HOLES[name]]) for name in ROW])

    assert found == [ROW, HOLES]
    items = read(row_shape(FIELDS, 100), json.dumps({"rows": found}).encode())
    assert [item.income for item in items] == [1.5, None]


def test_ids_and_times_go_along_and_may_be_left_out_of_single_rows():
    """prediction_id and event_time are inputs that may be left out, and an empty element leaves them out of its row."""
    given = [
        *(as_json(name, [ROW[name]] * 2) for name in ROW),
        Tensor("prediction_id", "BYTES", [2], [b"a-1", b""]),
        Tensor("event_time", "BYTES", [2, 1], ["", "2024-05-01T12:00:00Z"]),
    ]

    first, second = rows_of(given)

    assert first == {**ROW, "prediction_id": "a-1"}
    assert second == {**ROW, "event_time": "2024-05-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("name", "values", "datatype", "text"),
    [
        ("income", [float("inf")], "FP64", "row 0: income: must be finite"),
        ("note", [b"\xff"], "BYTES", "row 0: note: the bytes are not UTF-8"),
    ],
)
def test_what_json_cannot_say_is_refused_here(name, values, datatype, text):
    """Infinity is not taken for a missing number, and bytes that are no text are named with field and row."""
    given = [as_json(other, [ROW[other]]) for other in ROW if other != name]

    with pytest.raises(Refused, match=text) as refused:
        tensors.body(FIELDS, [*given, Tensor(name, datatype, [1], values)], 100)

    assert (refused.value.status, refused.value.field, refused.value.row) == (422, name, 0)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("income", Tensor("income", "FP64", [1], ["many"]), "type"),
        ("income", Tensor("income", "FP64", [1], [True]), "type"),
        ("age", Tensor("age", "FP64", [1], [None]), "type"),
        ("age", Tensor("age", "INT64", [1], [10**400]), "bounds"),
        ("age", Tensor("age", "FP32", [1], [30.5]), "not_whole"),
        ("active", Tensor("active", "FP64", [1], [2.0]), "type"),
        ("place", Tensor("place", "BYTES", [1, 2], ["a", "b"]), "type"),
        ("place", Tensor("place", "FP64", [1, 3], [1.0, 2.0, 3.0]), "bounds"),
        ("place", Tensor("place", "FP64", [1, 0], []), "bounds"),
        ("kind", Tensor("kind", "INT64", [1], [1]), "type"),
        ("note", Tensor("note", "BYTES", [1], [""]), "empty"),
        ("note", Tensor("note", "BYTES", [1], [{"a": 1}]), "type"),
        ("kind", Tensor("kind", "BYTES", [1], [0]), "type"),
        ("prediction_id", Tensor("prediction_id", "BYTES", [1], [0]), "prediction_id"),
        ("event_time", Tensor("event_time", "BYTES", [1], [False]), "event_time"),
    ],
)
def test_a_value_of_another_kind_meets_the_checks_of_every_request(name, tensor, reason):
    """What a tensor holds that its field may not is refused by the validation of predict requests, by field and row."""
    given = [as_json(other, [ROW[other]]) for other in ROW if other != name]

    with pytest.raises(Refused) as refused:
        read(row_shape(FIELDS, 100), tensors.body(FIELDS, [*given, tensor], 100))

    assert (refused.value.status, refused.value.reason, refused.value.field, refused.value.row) == (
        422,
        reason,
        name,
        0,
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "at least one tensor"),
        ([as_json("age", [30]), as_json("age", [30])], "twice"),
        ([as_json("age", [30]), as_json("income", [1.0, 2.0])], r"income: shape must be \[1\] or \[1, 1\]"),
        ([as_json("age", [30]), Tensor("place", "FP64", [2], [1.0, 2.0])], r"place: shape must be \[1, 2\]"),
        ([Tensor("age", "INT64", [0], [])], "no rows"),
        ([as_json("age", [30] * 101)], "at most 100"),
    ],
)
def test_tensors_that_are_no_rows_are_refused(given, text):
    """Tensors of differing lengths, of one name, of none or too many rows are refused, with what is expected."""
    with pytest.raises(Refused, match=text):
        tensors.body(FIELDS, given, 100)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "text"),
    [
        ("FP64", [2], bytes(15), "no FP64"),
        ("FP64", [2], bytes(24), "holds 3 elements, its shape says 2"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "no BYTES"),
        ("BYTES", [1], b"\x00", "no BYTES"),
        ("BF16", [1], bytes(2), "datatype must be one of"),
        ("FP64", [-1], b"", "shape must be"),
        ("FP64", [], b"", "shape must be"),
    ],
)
def test_bytes_that_are_no_tensor_are_refused(datatype, shape, raw, text):
    """Bytes that do not fit datatype and shape are a refusal, not an error of ours."""
    with pytest.raises(Refused, match=text):
        tensors.from_bytes("age", datatype, shape, raw)


def test_answers_are_tensors_of_what_the_case_predicts():
    """Binary cases answer 0 or 1 with a score, classes by name, numbers without a score; all with version and id."""
    answer = Answer("a", b"", 0, 0, 3, 1, 0.75)
    of = {
        "binary": Fields(case="t", label="y", fields=FIELDS.fields),
        "classes": Fields(case="t", label="y", fields=FIELDS.fields, classes=("low", "hïgh")),
        "number": Fields(case="t", label="y", fields=FIELDS.fields, target=Number("minutes", low=0, high=10)),
    }

    found = {kind: tensors.answered(fields, [answer]) for kind, fields in of.items()}

    assert [(one.name, one.datatype, one.values) for one in found["binary"]] == [
        ("prediction", "INT64", [1]),
        ("score", "FP64", [0.75]),
        ("version", "INT64", [3]),
        ("prediction_id", "BYTES", ["a"]),
    ]
    assert found["classes"][0].values == ["hïgh"]
    assert found["classes"][0].raw() == b"\x05\x00\x00\x00h\xc3\xafgh"
    assert [(one.name, one.datatype) for one in found["number"]] == [
        ("prediction", "FP64"),
        ("version", "INT64"),
        ("prediction_id", "BYTES"),
    ]
    assert [about.name for about in tensors.outputs(of["number"])] == ["prediction", "version", "prediction_id"]
