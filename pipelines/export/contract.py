"""The contract of a bundle: what a row must look like, as a JSON Schema that anybody's tool can read."""

from __future__ import annotations

from typing import Any

from pipelines.fields import (
    FLOAT32_MAX,
    OTHER_CHARS,
    Attribute,
    Categorical,
    Field,
    Fields,
    Flag,
    Moment,
    Numeric,
    Vector,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def contract(fields: Fields) -> dict[str, Any]:
    """JSON Schema of one row's declared fields, all of them required; ``x-label`` says what is predicted.

    It allows what the gateway (pipelines/problems.py) finds nothing wrong with, except that JSON Schema cannot
    tell texts of which normalisation leaves nothing, such as one of format characters only.
    """
    label: dict[str, Any] = {"name": fields.label, "values": [0, 1]}
    if fields.classes:
        label = {"name": fields.label, "classes": list(fields.classes)}
    if fields.number is not None:
        low, high = fields.number.bounds
        label = {"name": fields.label, "unit": fields.number.unit, "minimum": low, "maximum": high}
    return {
        "$schema": DIALECT,
        "title": fields.case,
        "description": fields.about,
        "type": "object",
        "properties": {field.name: {**_values(field), "description": field.about} for field in fields.fields},
        "required": list(fields.names),
        "x-label": label,
        "x-fields-hash": fields.hash,
    }


def _values(field: Field) -> dict[str, Any]:
    values = _values_given(field)
    if field.missing:
        if "enum" in values:
            values["enum"].append(None)
        else:
            values["type"] = [values["type"], "null"]
    return values


def _values_given(field: Field) -> dict[str, Any]:
    if isinstance(field, Categorical):
        if field.other:
            return {"type": "string", "maxLength": OTHER_CHARS, "examples": list(field.values)}
        return {"enum": list(field.values)}
    if isinstance(field, Numeric):
        return _values_of_number(field)
    if isinstance(field, Flag):
        return {"type": "boolean"}
    if isinstance(field, Vector):
        number = {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
        return {"type": "array", "items": number, "minItems": field.size, "maxItems": field.size}
    if isinstance(field, Moment):
        return {"type": "string", "format": "date-time"}
    if isinstance(field, Attribute):
        return {"type": "string", "maxLength": field.max_chars}
    return {"type": "string", "maxLength": field.max_chars, "pattern": r"\S"}


def _values_of_number(field: Numeric) -> dict[str, Any]:
    values = {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
    if field.integer:
        values["type"] = "integer"
    if field.low is not None:
        values["minimum"] = field.low
    if field.high is not None:
        values["maximum"] = field.high
    return values
