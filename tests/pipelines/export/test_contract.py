"""contract.json allows what the case's own validation allows."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cases import load_fields
from pipelines.export.contract import contract
from pipelines.fields import Categorical, Fields, Numeric, Text
from pipelines.problems import problem
from tests.pipelines.export.texts import FIELDS as REPORTS

FIELDS = Fields(
    case="made",
    label="yes",
    fields=(
        Categorical("colour", ("red", "green")),
        Numeric("size", 0, 10),
        Numeric("count", integer=True),
        Numeric("open", low=-1.5),
    ),
)
VALUES = st.one_of(
    st.sampled_from(["red", "blue", "", None, True, 10, 0, -1.5]),
    st.integers(-20, 20),
    st.floats(-20, 20),
    st.text(max_size=3),
)


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(FIELDS.names, VALUES)))
def test_the_schema_and_the_fields_agree(row):
    """For any JSON values the schema allows a row exactly if no declared field finds a problem in it."""
    schema = jsonschema.Draft202012Validator(contract(FIELDS))
    assert schema.is_valid(row) == all(problem(field, row[field.name]) is None for field in FIELDS.fields)


@settings(deadline=None)
@given(st.one_of(st.text(st.characters(exclude_categories=["Cf", "Cc"]), max_size=12), st.integers(), st.none()))
def test_texts_are_bounded_and_not_blank(value):
    """A text passes if it is no longer than declared and not only white space, as in the gateway."""
    fields = Fields(case="made", label="yes", fields=(Text("report", 8),))
    assert jsonschema.Draft202012Validator(contract(fields)).is_valid({"report": value}) == (
        problem(fields.fields[0], value) is None
    )


@pytest.mark.parametrize("fields", [load_fields("bank"), load_fields("loans"), REPORTS], ids=lambda fields: fields.case)
def test_contracts_of_cases_are_schemas(fields):
    """Every case's contract is a valid JSON Schema, requires all fields and names the label."""
    found = json.loads(json.dumps(contract(fields)))
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["required"] == list(fields.names)
    assert found["x-label"]["name"] == fields.label
    assert not jsonschema.Draft202012Validator(found).is_valid({})
