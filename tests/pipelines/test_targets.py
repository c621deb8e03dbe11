"""What a case predicts: a binary label, classes or a number, from the declaration to its rows and labels."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipelines.cases import load_fields
from pipelines.cases.receiving import receive
from pipelines.contracts import Window
from pipelines.data import contract, log
from pipelines.data.dataset import Split, balance
from pipelines.encoding import signature
from pipelines.errors import DataError
from pipelines.export.contract import contract as row_contract
from pipelines.fields import Binary, Categorical, Classes, Fields, Number, Numeric, frame_schema, from_json, to_json
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.data import loglines

AT = datetime(2015, 1, 1, tzinfo=UTC)
WAIT = Fields(
    "wait", (Categorical("desk", ("a", "b")), Numeric("ahead", 0, 50)), "minutes", target=Number("min", 0, 90)
)
MANY = Fields("many", WAIT.fields, "shelf", target=Classes(tuple(f"shelf {at}" for at in range(1_000))))
CASE = "loans"
"""Whose parameters say which times its log takes."""
NUMBERS = "flights"
"""A case whose log takes numbers."""


@pytest.mark.parametrize("target", [Binary(), Classes(("a", "b")), Classes(("a", "b", "c")), Number("min", 0, None)])
def test_a_target_survives_its_json_form(target):
    """What a bundle's fields.json holds is the declaration again, target and hash included."""
    fields = replace(WAIT, target=target)
    again = from_json(json.loads(json.dumps(to_json(fields))))
    assert again == fields
    assert again.hash == fields.hash


def test_the_older_form_is_the_same_declaration():
    """Classes in the older form are the target, equal and with one hash; fields.json of before says the same."""
    older = Fields("wait", WAIT.fields, "minutes", classes=("a", "b", "c"))
    assert older == replace(WAIT, target=Classes(("a", "b", "c")))
    assert Fields("wait", WAIT.fields, "minutes").target == Binary()
    told = to_json(older)
    assert told["classes"] == ("a", "b", "c")
    assert "number" not in told


@pytest.mark.parametrize(
    ("case", "known"),
    [
        ("bank", "6e52b00163ae51754629b3c0cf6edb8fd4c553e51a508ef418bc8146d4357bb7"),
        ("loans", "05d1784cb579c53c814fc033a0144c5126b66488fa1e65ebe00ae948dd009560"),
        ("triage", "a18ccfb14fa45da1d57cba885bdcf8763640531ba667a8135eb07e30b4727f27"),
    ],
)
def test_a_case_without_a_number_keeps_its_hash(case, known):
    """A running stack does not refuse the champion that it serves: the hash is that of before there were targets."""
    assert load_fields(case).hash == known


def test_every_part_of_a_number_is_in_the_hash():
    """Another unit or other bounds are another label: a gateway with them refuses the bundle."""
    targets = (Binary(), Number("min", 0, 90), Number("h", 0, 90), Number("min", 1, 90), Number("min", 0))
    assert len({replace(WAIT, target=target).hash for target in targets}) == len(targets)


def test_labels_have_the_type_of_what_is_predicted():
    """Positions are int8 as long as they fit, int16 beyond; a number is float64; one output, or one per class."""
    kinds = [frame_schema(fields)[fields.label] for fields in (replace(WAIT, target=Binary()), MANY, WAIT)]
    assert kinds == [pl.Int8, pl.Int16, pl.Float64]
    assert [signature(fields)[1]["shape"] for fields in (WAIT, MANY)] == [[-1, 1], [-1, 1000]]
    assert row_contract(WAIT)["x-label"] == {"name": "minutes", "unit": "min", "minimum": 0.0, "maximum": 90.0}


def delivered(minutes: list) -> pl.DataFrame:
    """A row for each label."""
    rows = [
        {"id": f"r{number}", "event_time": AT + timedelta(minutes=number), "desk": "a", "ahead": 1.0, "minutes": label}
        for number, label in enumerate(minutes)
    ]
    return pl.DataFrame(rows, strict=False)


def received(rows: pl.DataFrame):
    """What becomes of them."""
    return receive(rows, WAIT, Window(start=AT, end=AT + timedelta(days=1)), load_params(CASE), within_period=False)


def test_a_label_that_is_a_number_is_kept_as_it_is():
    """Fractions and missing labels stay; what is not finite is refused, what lies beyond the bounds quarantined."""
    found = received(delivered([2.5, None, math.nan, math.inf, -1.0, 90.0, 91.0]))
    assert found.refused["reasons"].to_list() == ["minutes: not a finite number"] * 2
    good, bad = contract.split(found.rows, WAIT)
    assert good["minutes"].to_list() == [2.5, None, 90.0]
    assert bad["reasons"].to_list() == ["minutes: below 0", "minutes: above 90"]


def test_words_are_no_numbers():
    """A label delivered as text is one error that names the unit, and nothing is guessed."""
    with pytest.raises(DataError, match=r"wait: minutes holds String .*a number \(min\)"):
        received(delivered(["2.5"]))


def test_the_balance_of_a_number_is_its_mean():
    """The base rate is the training rows' mean, and equal labels are told as such."""
    train, holdout = (delivered(labels) for labels in ([1.0, 2.0, 6.0], [4.0, 4.0]))
    found = balance(Split(train, holdout, 0, 0, holdout.clear()), WAIT)
    assert (found["base_rate"], found["positives"], found["holdout_positives"]) == (3.0, 2, 0)
    assert found["label_sd"] == pytest.approx(math.sqrt(14 / 3))


@pytest.mark.parametrize(
    ("case", "labels", "kind"),
    [
        (CASE, [0, 1, None], pl.Int8),
        (CASE, [0, 999], pl.Int16),
        (NUMBERS, [2.5, 3], pl.Float64),
        (NUMBERS, [70_000, 3], pl.Float64),
    ],
)
def test_the_log_takes_every_target(tmp_path, case, labels, kind):
    """Labels come back as they were logged, narrow where they may be; beside the int8 of an older partition, too."""
    settings = Settings(home=tmp_path)
    rows = delivered(labels).with_columns(label_time=pl.col("event_time"))
    for number, row in enumerate(rows.iter_slices(1)):
        if row["minutes"][0] is not None:
            line = loglines.labels(row, WAIT)[0] | {"label": labels[number]}
            loglines.write(settings, case, "labels", f"s{number}", [line])
    log.compact(settings, case)
    found = log.read_labels(settings, case, AT + timedelta(days=1))
    assert found["label"].dtype == kind
    assert found["label"].to_list() == [label for label in labels if label is not None]


def test_a_fraction_is_no_class(tmp_path):
    """Where classes are predicted a line with a fractional answer or label is set aside."""
    settings = Settings(home=tmp_path)
    rows = delivered([2.5, 3.0]).with_columns(label_time=pl.col("event_time"))
    answers = [line | {"prediction": 0.5} for line in loglines.predictions(rows, WAIT)]
    loglines.write(settings, CASE, "predictions", "s", answers)
    loglines.write(settings, CASE, "labels", "s", [line | {"label": 0.5} for line in loglines.labels(rows, WAIT)])
    log.compact(settings, CASE)
    assert [found["malformed"] for found in log.fate(settings, CASE).values()] == [2, 2]


def test_the_log_takes_predicted_numbers(tmp_path):
    """Prediction and score are the number; a line whose label is not finite is set aside."""
    settings = Settings(home=tmp_path)
    rows = delivered([2.5, 3.0]).with_columns(label_time=pl.col("event_time"))
    lines = loglines.predictions(rows, WAIT)
    loglines.write(settings, NUMBERS, "predictions", "s", [line | {"score": 7.5, "prediction": 7.5} for line in lines])
    broken = [line | {"label": 1e300} for line in loglines.labels(rows, WAIT)]
    loglines.write(settings, NUMBERS, "labels", "s", broken)
    log.compact(settings, NUMBERS)
    window = Window(start=AT, end=AT + timedelta(days=1))
    assert log.read_predictions(settings, NUMBERS, window)["prediction"].to_list() == [7.5, 7.5]
    assert log.read_labels(settings, NUMBERS, window.end).is_empty()
    assert log.fate(settings, NUMBERS)["labels"]["malformed"] == 2
