"""A case's declaration: texts and classes beside the tabular kinds, and what is refused when it is declared."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from pipelines.case_files import case_names
from pipelines.cases import load_fields
from pipelines.contracts import Window
from pipelines.data import contract
from pipelines.data import log as prediction_log
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.spec import Scale, Spec
from pipelines.encoding import encode, signature
from pipelines.errors import ConfigError, DataError
from pipelines.export import contract as bundle_contract
from pipelines.fields import (
    FLOAT32_MAX,
    Attribute,
    Categorical,
    Classes,
    Fields,
    Flag,
    Number,
    Numeric,
    Text,
    frame_schema,
    from_json,
    to_json,
)
from pipelines.problems import problem
from pipelines.settings import Settings
from pipelines.storage import canonical_json

REPORTS = Fields(case="reports", label="team", classes=("a", "b", "c"), fields=(Text("text", max_chars=20),))


def test_a_text_declaration_survives_its_json_form():
    """What a bundle's fields.json holds is the declaration again, classes and hash included."""
    again = from_json(to_json(REPORTS))
    assert again == REPORTS
    assert again.hash == REPORTS.hash


BEFORE = {
    "bank": (
        "6e52b00163ae51754629b3c0cf6edb8fd4c553e51a508ef418bc8146d4357bb7",
        "1da07a9252f85fb134fc8b94e09036c338b325a690b0f680b4a4e52f11d1b7fc",
        "b68edb04debdd3c40c5c9ae94d6572a9e7f33dbce087fb133eb0dd362ec57ab9",
    ),
    "loans": (
        "05d1784cb579c53c814fc033a0144c5126b66488fa1e65ebe00ae948dd009560",
        "678ff32e3ea36420aace3370467f5666d5e056bfb6a5692cca653f4b4605f098",
        "dbac2972ac6bbd272d107226c7ec9912109118f60d2c19b6f8536638e7fffb2f",
    ),
    "triage": (
        "a18ccfb14fa45da1d57cba885bdcf8763640531ba667a8135eb07e30b4727f27",
        "06a211f17719a29ae779705d50ace5941a809cb453802c6bcbb0d1b35c197a3d",
        "1a98ce05a969d6c86559688a2dc93d2af24a336f7ec38522995e41d5d89313f2",
    ),
}
"""Hash, sha256 of fields.json and of contract.json, as they were before fields had options."""


@pytest.mark.parametrize("case", BEFORE)
def test_a_declaration_without_options_is_what_it_was(case):
    """A running stack's champion, and the files of its bundle, are those of the release before."""
    fields = load_fields(case)
    files = (canonical_json(to_json(fields)), canonical_json(bundle_contract.contract(fields)))
    assert (fields.hash, *(hashlib.sha256(text.encode()).hexdigest() for text in files)) == BEFORE[case]


@pytest.mark.parametrize(
    "field",
    [
        Numeric("age", missing=True),
        Text("note", missing=True),
        Categorical("car", ("old", "new"), missing=True),
        Categorical("car", ("old", "new"), other=True),
    ],
)
def test_an_option_is_part_of_hash_and_file(field):
    """Other codes or NaN in a tensor are another declaration, and a bundle's file holds it."""
    plain = replace(field, missing=False, **({"other": False} if isinstance(field, Categorical) else {}))
    with_option, without = (Fields("mock", (one,), label="y") for one in (field, plain))
    assert with_option.hash != without.hash
    assert from_json(json.loads(json.dumps(to_json(with_option)))) == with_option


def test_an_attribute_rides_along():
    """It is a column of rows and cuts slices; no input, nothing that drift decides by, and no part of the hash."""
    key = Attribute("customer", missing=True)
    fields = replace(LOAN, fields=(key, *LOAN.fields))
    assert fields.hash == LOAN.hash
    assert (fields.inputs, fields.measured, signature(fields)) == (LOAN.names, LOAN.measured, signature(LOAN))
    assert frame_schema(fields)["customer"] == pl.String
    assert set(fields.groups) == {*LOAN.groups, "customer"}
    assert from_json(json.loads(json.dumps(to_json(fields)))) == fields
    row = {"car": ["old"], "age": [30]}
    assert encode(fields, row)["numeric"].tolist() == encode(LOAN, row)["numeric"].tolist()


@pytest.mark.parametrize(
    ("field", "values", "codes"),
    [
        (Categorical("f", ("x", "y")), ["y", "x"], [1, 0]),
        (Categorical("f", ("x", "y"), missing=True), [None, "x"], [2, 0]),
        (Categorical("f", ("x", "y"), other=True), ["new", ""], [2, 2]),
        (Categorical("f", ("x", "y"), missing=True, other=True), [None, "new"], [2, 3]),
        (Flag("f"), [True, False], [1, 0]),
        (Flag("f", missing=True), [None, True], [2, 1]),
    ],
)
def test_null_and_other_values_have_codes_of_their_own(field, values, codes):
    """Behind the vocabulary null comes first, then all undeclared values together; the field's size counts them."""
    assert encode(Fields("mock", (field,), "y"), {"f": values})["categorical"][:, 0].tolist() == codes
    assert field.size > max(codes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (Categorical("f", ("x", "y")), None),
        (Categorical("f", ("x", "y"), missing=True), "new"),
        (Categorical("f", ("x", "y"), other=True), None),
        (Categorical("f", ("x", "y"), other=True), 7),
        (Flag("f"), None),
        (Flag("f"), "true"),
        (Numeric("f"), None),
        (Numeric("f", missing=True), math.inf),
    ],
)
def test_what_was_not_declared_is_refused(field, value):
    """An option admits what it names and nothing else, in encoding as in the gateway's explanation."""
    assert problem(field, value) is not None
    with pytest.raises(DataError):
        encode(Fields("mock", (field,), "y"), {"f": [value]})


def test_the_hash_follows_the_classes_and_their_order():
    """A gateway with other classes, or the same in another order, must refuse the bundle."""
    hashes = {
        Fields("reports", REPORTS.fields, "team", classes=classes).hash
        for classes in (("a", "b", "c"), ("b", "a", "c"), ("a", "b", "c", "d"), ())
    }
    assert len(hashes) == 4


def test_signature_of_a_text_case():
    """Token ids and mask with free batch and length go in, one probability per class comes out."""
    inputs, output = signature(REPORTS)
    assert [(tensor["name"], tensor["dtype"], tensor["shape"]) for tensor in inputs] == [
        ("input_ids", "int64", [-1, -1]),
        ("attention_mask", "int64", [-1, -1]),
    ]
    assert output["shape"] == [-1, 3]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("fine", None),
        ("", "empty"),
        (" \t\u200b\n", "empty"),
        ("x" * 21, "at most 20"),
        (7, "expected a string"),
        (None, "null"),
    ],
)
def test_a_text_is_refused_for_a_reason(value, word):
    """A text must be a string that is not empty once normalised and not too long; the answer never repeats it."""
    found = problem(REPORTS.fields[0], value)
    assert (found is None) if word is None else (word in str(found))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (FLOAT32_MAX, None),
        (-FLOAT32_MAX, None),
        (3.5e38, "fit a 32-bit float"),
        (-1e300, "fit a 32-bit float"),
        (10**400, "fit a 32-bit float"),
        (float("inf"), "finite"),
        (float("nan"), "finite"),
    ],
)
def test_a_number_without_bounds_ends_where_float32_does(value, word):
    """An open side reaches as far as the model's own numbers; what is beyond is refused, by encoding, too."""
    fields = Fields(case="made", label="y", fields=(Numeric("open"),))
    found = problem(fields.fields[0], value)
    assert (found is None) if word is None else (word in str(found))
    if word is None:
        assert float(encode(fields, {"open": [1.0, value]})["numeric"][1, 0]) == value
    else:
        with pytest.raises(DataError, match="made: open: must be finite and fit a 32-bit float"):
            encode(fields, {"open": [1.0, float(value) if value != 10**400 else float("inf")]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"fields": (Text("text"), Categorical("kind", ("x", "y")), Text("note"))},
        {"target": Classes(("a",))},
        {"target": Classes(("a", "a", "b"))},
        {"target": Classes(tuple(map(str, range(1_001))))},
    ],
)
def test_a_declaration_that_cannot_work_is_refused(wrong):
    """A case has one text, and classes are two or more, different, and a thousand at most."""
    with pytest.raises(ConfigError):
        replace(REPORTS, **wrong)


def test_a_text_stands_beside_other_fields():
    """The model is given the text's tensors, then the table's; a row is known again by its text and all inputs.

    A text alone has no table.
    """
    mixed = replace(REPORTS, fields=(Categorical("kind", ("x", "y"), missing=True), *REPORTS.fields, Numeric("age")))
    inputs, _ = signature(mixed)
    assert [(tensor["name"], tensor["shape"]) for tensor in inputs] == [
        ("input_ids", [-1, -1]),
        ("attention_mask", [-1, -1]),
        ("categorical", [-1, 1]),
        ("numeric", [-1, 1]),
    ]
    assert mixed.measured == ("kind", "text.words", "age", "kind.missing", "score", "prediction")
    assert mixed.repeats == ("text", "kind", "age")
    assert from_json(json.loads(json.dumps(to_json(mixed)))) == mixed
    assert mixed.hash != REPORTS.hash
    assert [tensor["name"] for tensor in signature(REPORTS)[0]] == ["input_ids", "attention_mask"]
    assert (REPORTS.has_table, REPORTS.repeats, LOAN.repeats) == (False, ("text",), ())


LOAN = Fields(
    case="mock", label="granted", fields=(Categorical("car", ("old", "new")), Numeric("age", 0, 120, integer=True))
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "age"}, ("label age", "remove the field")),
        ({"fields": ()}, ("no fields", "declare at least one")),
        ({"fields": [Numeric("age")]}, ("the fields", "tuple")),
        ({"fields": (Categorical("car", ["old", "new"]),)}, ("car", "tuple")),
        ({"fields": ("age",)}, ("'age'", "declare it as")),
        ({"fields": (Numeric("age"), Categorical("age", ("a", "b")))}, ("age", "twice")),
        *(
            ({"fields": (Numeric(name),)}, (repr(name), "letter"))
            for name in ("house-value", "", "1st", "a b", "a.words", "score@1", "_hour", "x" * 65, None)
        ),
        *(({"label": name}, ("the label", repr(name), "letter")) for name in ("is-fraud", "", None)),
        ({"case": "my case"}, ("the case", "letter")),
        ({"fields": (Categorical("car", ()),)}, ("car", "empty")),
        ({"fields": (Categorical("car", ("old", "new", "old")),)}, ("car", "'old'", "twice")),
        ({"fields": (Categorical("car", ("old", "")),)}, ("car", "''", "not empty")),
        ({"fields": (Categorical("car", (1, 2)),)}, ("car", "strings")),
        ({"fields": (Categorical("car", (["old"], "new")),)}, ("car", "strings")),
        ({"fields": (Categorical("car", "old"),)}, ("car", "'old'", "tuple")),
        ({"fields": (Categorical("car", ("\ud800", "b")),)}, ("car", "Unicode")),
        ({"fields": (Numeric("age", 120, 0),)}, ("age", "reversed", "120", "exchange")),
        *(
            ({"fields": (Numeric("age", low=bound),)}, ("age", "float32"))
            for bound in (math.nan, math.inf, -math.inf, -1e39, "0", True)
        ),
        *(
            ({"fields": (Numeric("age", high=bound),)}, ("age", "float32"))
            for bound in (math.nan, math.inf, 4e38, 10**400)
        ),
        ({"fields": (Numeric("age", 0.2, 0.8, integer=True),)}, ("age", "whole number")),
        ({"fields": (Attribute("key"),)}, ("no fields", "declare at least one")),
        ({"fields": (Numeric("age"), Attribute("key", max_chars=0))}, ("key", "max_chars")),
        ({"fields": (Numeric("age", missing="yes"),)}, ("age", "missing is 'yes'", "True or False")),
        ({"fields": (Categorical("car", ("old", "new"), other=1),)}, ("car", "other is 1", "True or False")),
        *(({"fields": (Text("note", max_chars=most),)}, ("note", "max_chars")) for most in (0, -1, 2.5)),
        ({"target": Classes(("a", "b", "b"))}, ("granted", "'b'", "twice")),
        ({"target": Classes(("a", "b", ""))}, ("granted", "not empty")),
        ({"target": Classes("abc")}, ("granted", "tuple")),
        ({"target": Number("")}, ("granted", "''", "unit")),
        ({"target": Number("EUR", 10, 0)}, ("granted", "reversed")),
        ({"target": Number("EUR", 5, 5)}, ("granted", "one number")),
        ({"target": Number("EUR", 2**24, 2**24 + 1)}, ("granted", "one number")),
        ({"target": Number("EUR", low=math.inf)}, ("granted", "float32")),
        ({"target": "EUR"}, ("granted", "'EUR'", "no target")),
        ({"classes": ("a", "b"), "target": Number("EUR")}, ("granted", "different things")),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(change, words):
    """A declaration that no step could work with is one sentence that names the case, the field and what to do."""
    with pytest.raises(ConfigError) as caught:
        replace(LOAN, **change)
    said = str(caught.value)
    assert said.startswith(f"{change.get('case', 'mock')}: ")
    assert not [word for word in words if word not in said], said
    assert "\n" not in said


def layers(tmp_path) -> dict[str, set[str]]:
    """The columns that each layer makes of a row beside the declared fields and the label."""
    fields, at = LOAN, datetime(2020, 1, 1, tzinfo=UTC)
    own = {*fields.names, fields.label}
    row = {"id": "a", "event_time": at, "car": "old", "age": 400.0, "granted": 1, "label_time": at}
    rows = pl.DataFrame([row], schema=frame_schema(fields))
    logged = rows.with_columns(version=pl.lit(1, pl.Int64), score=pl.lit(0.5), prediction=pl.lit(1))
    profiled = profile_frame(
        logged.drop("version"), fields, Spec("s", {"age": Scale(0, 1), "score": Scale(0, 1)})
    ).columns
    line = {
        "prediction_id": "a",
        "request_id": "r",
        "event_time": at.isoformat(),
        "received_at": at.isoformat(),
        "version": 1,
        "score": 0.5,
    }
    line |= {"prediction": 1, "row": {"car": "old", "age": 4}, "scores": [0.5]}
    return {
        "canonical rows": set(rows.columns) - own,
        "quarantine": {*contract.split(rows, fields)[1].columns} - own,
        "profiles": set(profiled) - own,
        "prediction log": {*line, *_read_back(tmp_path, line)} - own,
    }


def _read_back(tmp_path, line) -> set[str]:
    """The columns of predictions and of labels as they are read from the log."""
    settings = Settings(home=tmp_path)
    label = {name: line[name] for name in ("prediction_id", "event_time", "received_at")} | {"label": 1, "revision": 0}
    for kind, one in (("predictions", line), ("labels", label)):
        folder = settings.prediction_log / "loans" / kind
        folder.mkdir(parents=True)
        (folder / "s.jsonl").write_text(json.dumps(one) + "\n")
    prediction_log.compact(settings, "loans")
    at = datetime.fromisoformat(line["event_time"])
    window = Window(start=at, end=at.replace(year=2021))
    found = {
        *prediction_log.read_predictions(settings, "loans", window).columns,
        *prediction_log.read_labels(settings, "loans", window.end).columns,
    }
    assert found >= {"id", "version", "label", "revision"}
    return found


def test_the_columns_of_every_layer_are_taken(tmp_path):
    """No field or label is named as a column of the log, validation, canonical rows or profiles: it would be lost."""
    seen = layers(tmp_path)
    assert all(seen.values())
    for name in sorted(set.union(*seen.values())):
        with pytest.raises(ConfigError, match=f"a field is named {name}"):
            replace(LOAN, fields=(Numeric(name),))
        if name != "label":  # a label may be called what it is
            with pytest.raises(ConfigError, match=f"the label is named {name}"):
                replace(LOAN, label=name)


def test_scores_of_a_holdout_can_be_cut_by_every_field():
    """The columns that evaluation puts beside a slice's field are no field's name."""
    for name in ("challenger", "champion", "label"):
        with pytest.raises(ConfigError, match=f"a field is named {name}"):
            replace(LOAN, fields=(Categorical(name, ("a", "b")),))


def test_what_works_is_declared():
    """Equal, open and float32-sized bounds, names with digits, one category and a label called label are all right."""
    largest = float(np.finfo(np.float32).max)
    good = (
        Categorical("a1", ("only",)),
        Numeric("b_2", 1, 1, integer=True),
        Numeric("C", -largest, largest),
        Numeric("class"),
    )
    assert replace(LOAN, label="label", fields=good).names == ("a1", "b_2", "C", "class")
    assert from_json(to_json(replace(LOAN, fields=good))).fields == good
    assert [load_fields(case).case for case in case_names()] == case_names()
