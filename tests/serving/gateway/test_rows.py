"""The two readers of a declaration: msgspec's fast one and the one that explains."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.fields import FLOAT32_MAX, Categorical, Fields, Numeric, Text
from pipelines.text import normalise
from serving.gateway.refusal import Refused
from serving.gateway.rows import explain, label_shape, read, row_shape

FIELDS = Fields(
    "tiny",
    (
        Categorical("colour", ("red", "grün")),
        Numeric("open"),
        Numeric("low", low=0),
        Numeric("high", high=10.5),
        Numeric("whole", -3, 3, integer=True),
    ),
    label="y",
)
SHAPE = row_shape(FIELDS, 10)
GOOD = {"colour": "grün", "open": 0.5, "low": 1, "high": -7, "whole": 3.0}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["red", "grün"]),
    st.lists(st.none()),
)


def outcome(body, shape=SHAPE):
    """The items of a body, or why it was refused."""
    try:
        return read(shape, body)
    except Refused as refused:
        return refused


@settings(max_examples=400, deadline=None)
@given(field=st.sampled_from(FIELDS.names), value=VALUES)
@example(field="open", value=1e300)
@example(field="open", value=FLOAT32_MAX)
@example(field="open", value=10**400)
@example(field="low", value=-0.0)
@example(field="high", value=10.5)
@example(field="whole", value=-3)
def test_what_one_reader_turns_away_the_other_explains(field, value):
    """A value is decoded exactly when the explaining reader finds nothing wrong with it.

    What is decoded is a finite float32 or a declared word.
    """
    body = json.dumps({"rows": [GOOD, {**GOOD, field: value}]}).encode()
    found = outcome(body)
    if isinstance(found, Refused):
        assert (found.status, found.field, found.row) == (422, field, 1)
        return
    assert "must be {" in str(explain(SHAPE, body)), "the explaining reader finds a mistake in a good body"
    kept = getattr(found[1], field)
    assert kept == (value if isinstance(value, str) else float(value))
    assert (
        kept in FIELDS.categorical[0].values if field == "colour" else math.isfinite(kept) and abs(kept) <= FLOAT32_MAX
    )


def test_a_case_may_not_use_the_gateways_own_names():
    """A field named event_time is a ConfigError that names it."""
    with pytest.raises(ConfigError, match="event_time"):
        row_shape(Fields("tiny", (Numeric("event_time"),), label="y"), 10)


def test_a_label_is_decoded_with_its_defaults():
    """Revision 0 and no event time are what a bare label means."""
    (label,) = read(label_shape(FIELDS, 10), b'{"labels": [{"prediction_id": "a", "label": 1}]}')
    assert (label.prediction_id, label.label, label.revision) == ("a", 1, 0)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(
        st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \t\u200b\u00ad\u2028\x1c\x85\x00a")), max_size=6
    )
)
def test_a_text_is_refused_exactly_if_nothing_is_left_of_it(text):
    """The quick look for a visible character agrees with normalising, and both readers with each other."""
    fields = Fields("tiny", (Text("text", 5),), label="y")
    shape = row_shape(fields, 10)
    good = bool(normalise(text)) and len(text) <= 5
    body = json.dumps({"rows": [{"text": text}]}).encode()
    found = outcome(body, shape)
    explained = explain(shape, body)
    if good:
        assert found[0].text == text
        assert "must be {" in str(explained)
    else:
        assert (found.field, found.row) == (explained.field, explained.row) == ("text", 0)
        assert str(found) == str(explained)


def test_a_label_of_a_case_with_classes_is_one_of_them():
    """A class's name is decoded, with the same defaults; a number or another word is refused with the classes."""
    shape = label_shape(Fields("tiny", (Text("text"),), label="y", classes=("a", "b", "c")), 10)
    (label,) = read(shape, b'{"labels": [{"prediction_id": "x", "label": "b"}]}')
    assert (label.prediction_id, label.label, label.revision) == ("x", "b", 0)
    for wrong in (b"1", b'"d"'):
        with pytest.raises(Refused, match="label: unknown class, use one of a, b, c"):
            read(shape, b'{"labels": [{"prediction_id": "x", "label": %s}]}' % wrong)
