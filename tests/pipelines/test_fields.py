"""A case's declaration: texts and classes beside the tabular kinds."""

from dataclasses import replace

import pytest

from pipelines.errors import ConfigError
from pipelines.fields import Categorical, Fields, Text, from_json, problem, signature, to_json

REPORTS = Fields(case="reports", label="team", classes=("a", "b", "c"), fields=(Text("text", max_chars=20),))


def test_a_text_declaration_survives_its_json_form():
    """What a bundle's fields.json holds is the declaration again, classes and hash included."""
    again = from_json(to_json(REPORTS))
    assert again == REPORTS
    assert again.hash == REPORTS.hash


def test_the_hash_follows_the_classes_and_their_order():
    """A gateway with other classes, or the same in another order, must refuse the bundle."""
    hashes = {replace(REPORTS, classes=classes).hash for classes in (("a", "b", "c"), ("b", "a", "c"), ("a", "b", "c", "d"), ())}
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
    [("fine", None), ("", "empty"), (" \t\u200b\n", "empty"), ("x" * 21, "at most 20"), (7, "expected a string"), (None, "null")],
)
def test_a_text_is_refused_for_a_reason(value, word):
    """A text must be a string that is not empty once normalised and not too long; the answer never repeats it."""
    found = problem(REPORTS.fields[0], value)
    assert (found is None) if word is None else (word in found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fields": (Text("text"), Categorical("kind", ("x", "y")))},
        {"classes": ("a", "b")},
        {"classes": ("a", "a", "b")},
        {"classes": tuple(map(str, range(128)))},
    ],
)
def test_a_declaration_that_cannot_work_is_refused(wrong):
    """A text stands alone, and classes are three or more, different, and few enough for an int8."""
    with pytest.raises(ConfigError):
        replace(REPORTS, **wrong)
