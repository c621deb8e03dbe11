"""What the interactive documentation says.

Every case's requests by name, made from its declared fields whenever somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

from pipelines.contracts import FIGURE_PATTERN, ID_PATTERN
from pipelines.fields import (
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
from pipelines.problems import allowed
from serving.gateway.refusal import JSON

if TYPE_CHECKING:
    from serving.gateway.state import Gateway

Json = dict[str, Any]

PREDICT, LABELS = "/v1/cases/{case}/predict", "/v1/cases/{case}/labels"
FIGURES = "/v1/cases/{case}/figures"
"""The routes that the document names once for every case."""
PARTIAL = "partial"
"""The parameter of a predict request whose rows are answered one by one."""
ASSETS = "docs/assets"
ABOUT = """\
Rows are scored by the case's champion, and every answered row is in the prediction log. Labels follow when they are
known.

1. **Authorize** (the button on the right) with the API key: the line in `api_key` of the state folder.
2. `predict`: every field of the case, in any order. Give each row a `prediction_id` of your own: sending it again is
   then safe, and its label finds it.
3. `labels`: the same `prediction_id` with what turned out to be true. `event_time` says when that became known
   (default: now). A correction has a higher `revision`.
4. `figures`: what a prediction came to in the business, where two versions are compared by that.

The same cases answer in the Open Inference Protocol, version 2: `/v2/models/{case}` says their inputs and outputs.

Each example can be sent as it stands. What is wrong with a request is said in `error`, with `field` and `row`.
"""
SHOWN = 40
"""Values of a vocabulary in the table of fields; the schema has all."""
FIRST = "example-1"
"""The row whose label the example of a labels request posts."""
_ID = {
    "type": "string",
    "pattern": ID_PATTERN,
    "description": "the row's name, yours; of two different rows with one name the second is refused",
}
_TIME = {"type": "string", "format": "date-time"}
_COUNT = {"type": "integer", "minimum": 0}
_REVISION = {
    **_COUNT,
    "maximum": 2**31 - 1,
    "default": 0,
    "description": "of several of one row the highest counts; at most the present time in seconds since 1970",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "what is wrong and what to do; never what was sent"},
        "field": {"type": "string"},
        "row": {**_COUNT, "description": "position of the row in the request"},
    },
}
_MUST_CHANGE = """\
the request must change: 401 API key, 403 a page of another address, 404 case, 408 not sent in time,
409 a `prediction_id` that another row has, 410 the case is retired (labels
of its predictions are taken still), 413 too large, 421 a host that is not this server's,
422 not as declared, 429 too many rows, 431 a head that is too long"""
_ONE_BY_ONE = """\
`true`: rows are answered one by one. In the place of one that is refused stand `row`, `status` (422 not as declared,
409 a `prediction_id` that another row has), `error` and `field`; `refused` counts them, and the others are scored and
logged. The request as a whole is refused only for its key, its rate, its length, or a body that is no list of rows."""
_FIGURES = "`name` is yours, and says in every case what the figure is, like `revenue`; `value` is a finite number."
_LATER = """\
try again later: 503 no champion yet, Triton does not answer, the case cannot be used now, or as many requests or rows
as fit, or as can be answered in time, are being answered (`Retry-After` says when); 507 the disk of the prediction log
is full"""
_REFUSALS = {
    "4XX": (_MUST_CHANGE, {"error": "row 0: age: must be at least 18", "field": "age", "row": 0}),
    "5XX": (_LATER, {"error": "loans: no champion yet: run its training"}),
}
_LOOK = {
    "/healthz": "Does the process run?",
    "/readyz": "Do champions answer?",
    "/metrics": "Figures for Prometheus",
}


def install(app: FastAPI) -> None:
    """Give the application ``/openapi.json`` with the cases of the moment.

    And ``/docs`` with Swagger UI from an installed package: no page needs a network.
    """
    make = app.openapi

    def now() -> Json:
        gateway: Gateway | None = getattr(app.state, "gateway", None)
        if gateway is None:
            return make()
        return document(
            make(), [case.fields for case in gateway.cases.values()], gateway.bounds.max_rows, gateway.broken
        )

    app.openapi = now  # type: ignore[method-assign]
    app.mount(f"/{ASSETS}", StaticFiles(directory=str(files("fastapi_offline") / "static")))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        # Relative addresses: they hold behind a proxy that adds a prefix.
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
            swagger_ui_parameters={
                "defaultModelsExpandDepth": -1,
                "persistAuthorization": True,
                "tryItOutEnabled": True,
            },
        )


def document(base: Json, cases: Iterable[Fields], most: int, broken: Mapping[str, str]) -> Json:
    """FastAPI's document ``base`` with the paths of each case in the place of the generic ones.

    ``most`` is the largest number of rows of one request, ``broken`` says why cases that are there cannot be used.
    """
    found = deepcopy(base)
    served = sorted(cases, key=lambda fields: fields.case)
    names = {fields.case for fields in served}
    found["info"]["description"] = ABOUT + "".join(
        f"\n**{name} {'goes on as it was declared before' if name in names else 'cannot be used now'}.** {reason}\n"
        for name, reason in sorted(broken.items())
    )
    about = {path: found["paths"].pop(path)["post"].get("description", "") for path in (PREDICT, LABELS, FIGURES)}
    paths: Json = {}
    found["tags"] = []
    for fields in served:
        found["tags"].append({"name": fields.case, "description": fields.about})
        for path, summary, more, body, answer in (
            (PREDICT, "Score rows", _fields(fields), _predict(fields, most), _reply(fields)),
            (LABELS, "Post labels", _label(fields), _labels(fields, most), _accepted()),
            (FIGURES, "Post business figures", _FIGURES, _figures(most), _accepted()),
        ):
            text = f"{about[path]}\n\n{more}"
            operation = {
                "tags": [fields.case],
                "summary": f"{summary} of {fields.case}",
                "description": text,
                **_operation(body, answer),
            }
            if path == PREDICT:
                operation["parameters"] = [
                    {
                        "name": PARTIAL,
                        "in": "query",
                        "description": _ONE_BY_ONE,
                        "schema": {"type": "boolean", "default": False},
                    }
                ]
            paths[path.format(case=fields.case)] = {
                "post": {**operation, "operationId": f"{fields.case}_{path.rpartition('/')[2]}"}
            }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation |= {"tags": ["gateway"], "summary": _LOOK[path]}
    found["paths"] = {**paths, **found["paths"]}
    found["tags"].append({"name": "gateway", "description": "is it up, and how does it do"})
    found["components"] = {
        "schemas": {"Error": _ERROR},
        "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
    }
    return found


def _operation(body: Json, answer: Json) -> Json:
    error = {"$ref": "#/components/schemas/Error"}
    refusals = {
        code: {"description": about, "content": {JSON: {"schema": error, "example": example}}}
        for code, (about, example) in _REFUSALS.items()
    }
    return {
        "requestBody": {"required": True, "content": {JSON: body}},
        "responses": {"200": {"description": "done", "content": {JSON: answer}}, **refusals},
        "security": [{"key": []}],
    }


def _fields(fields: Fields) -> str:
    """The declared fields as a table."""
    rows = [f"| `{field.name}` | {_kind(field)} | {field.about} |" for field in fields.fields]
    return "\n".join(("| field | what it may be | |", "|---|---|---|", *rows))


def _kind(field: Field) -> str:
    if field.missing:
        return f"{_kind_of_value(field)}, or `null`"
    return _kind_of_value(field)


def _kind_of_value(field: Field) -> str:
    if isinstance(field, Categorical):
        more = ""
        if len(field.values) > SHOWN:
            more = f" and {len(field.values) - SHOWN:,} more (see Schema)"
        if field.other:
            more += f", or any other text of at most {OTHER_CHARS} characters"
        return ("one of " + ", ".join(f"`{value}`" for value in field.values[:SHOWN]) + more).replace("|", "\\|")
    if isinstance(field, Numeric):
        bounds = [
            f"{word} {bound:,.15g}" for word, bound in (("from", field.low), ("to", field.high)) if bound is not None
        ]
        return " ".join(("a whole number" if field.integer else "a number", *bounds))
    if isinstance(field, Flag):
        return "`true` or `false`"
    if isinstance(field, Vector):
        return f"a list of {field.size:,} numbers"
    if isinstance(field, Moment):
        return "a time, ISO 8601 with seconds and a time zone"
    if isinstance(field, Attribute):
        return f"a text of at most {field.max_chars:,} characters, kept with the row; nothing is predicted from it"
    return f"a text of at most {field.max_chars:,} characters"


def _label(fields: Fields) -> str:
    names = ", ".join(f"`{name}`" for name in fields.classes) or "`1` (yes) or `0` (no)"
    if fields.number is not None:
        number = fields.number
        names = f"{_kind(Numeric(fields.label, number.low, number.high))} ({number.unit})"
    return f"`label` answers *{fields.about or fields.label}*: {names}."


def _list_of(name: str, item: Json, most: int) -> Json:
    rows = {"type": "array", "minItems": 1, "maxItems": most, "items": item}
    return {"type": "object", "required": [name], "properties": {name: rows}, "additionalProperties": False}


def _predict(fields: Fields, most: int) -> Json:
    properties = {
        **{field.name: _schema(field) for field in fields.fields},
        "prediction_id": _ID,
        "event_time": {**_TIME, "description": "when the row happened (default: now)"},
    }
    row = {"type": "object", "required": list(fields.names), "properties": properties, "additionalProperties": False}
    example = {"prediction_id": FIRST, **{field.name: allowed(field) for field in fields.fields}}
    return {"schema": _list_of("rows", row, most), "example": {"rows": [example]}}


def _outcome(fields: Fields) -> Json:
    """What can be predicted, and turn out to be true."""
    if fields.classes:
        return {"type": "string", "enum": list(fields.classes)}
    if fields.number is not None:
        return _schema(Numeric(fields.label, fields.number.low, fields.number.high))
    return {"type": "integer", "enum": [0, 1]}


def _labels(fields: Fields, most: int) -> Json:
    label = _outcome(fields)
    properties = {
        "prediction_id": {**_ID, "description": "the row's, as it was sent or answered"},
        "label": {**label, "description": f"what turned out to be true: {fields.label}"},
        "event_time": {**_TIME, "description": "when the label became known (default: now)"},
        "revision": _REVISION,
    }
    item = {
        "type": "object",
        "required": ["prediction_id", "label"],
        "properties": properties,
        "additionalProperties": False,
    }
    return {
        "schema": _list_of("labels", item, most),
        "example": {"labels": [{"prediction_id": FIRST, "label": _example_of(fields, -1)}]},
    }


def _figures(most: int) -> Json:
    properties = {
        "prediction_id": {**_ID, "description": "the row's, as it was sent or answered"},
        "name": {"type": "string", "pattern": FIGURE_PATTERN},
        "value": {"type": "number", "format": "float"},
        "event_time": {**_TIME, "description": "when the figure became known (default: now)"},
        "revision": _REVISION,
    }
    required = ["prediction_id", "name", "value"]
    item = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    example = {"prediction_id": FIRST, "name": "revenue", "value": 12.5}
    return {"schema": _list_of("figures", item, most), "example": {"figures": [example]}}


def _example_of(fields: Fields, place: int) -> Any:
    """What is predicted or true of the row of the examples: the class at ``place``, or a number."""
    if fields.number is not None:
        return allowed(Numeric(fields.label, fields.number.low, fields.number.high))
    return _outcome(fields)["enum"][place]


def _reply(fields: Fields) -> Json:
    prediction = _outcome(fields)
    about = "probability of 1"
    score = 0.25
    if fields.classes:
        about = "probability of that class"
        score = 0.9
    properties: Json = {
        "prediction_id": {"type": "string"},
        "version": {"type": "integer", "description": "the model version that answered, as MLflow numbers it"},
        "prediction": prediction,
        "default": {
            "type": "boolean",
            "description": (
                "only where it is true: no version could answer, this is what the case declares for then, and the "
                "version is 0"
            ),
        },
        "arm": {
            "type": "string",
            "enum": ["champion", "challenger"],
            "description": "only while a rollout is under way: whose answers the row's key gets, see docs/rollouts.md",
        },
    }
    answer: Json = {"prediction_id": FIRST, "version": 1, "prediction": _example_of(fields, 0)}
    if fields.number is None:
        properties["score"] = {"type": "number", "minimum": 0, "maximum": 1, "description": about}
        answer["score"] = score
    else:
        prediction["description"] = f"the predicted number ({fields.number.unit})"
    row = {"type": "object", "properties": properties}
    schema = {
        "type": "object",
        "properties": {"request_id": {"type": "string"}, "rows": {"type": "array", "items": row}},
    }
    return {"schema": schema, "example": {"request_id": "5f0c6a4b4b9b4f0f8d2f6a1c3e7d9b21", "rows": [answer]}}


def _accepted() -> Json:
    return {"schema": {"type": "object", "properties": {"accepted": _COUNT}}, "example": {"accepted": 1}}


def _schema(field: Field) -> Json:
    schema = _schema_of_value(field)
    if field.missing:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    return schema


def _schema_of_value(field: Field) -> Json:
    about = {"description": field.about} if field.about else {}
    if isinstance(field, Categorical):
        if field.other:
            return {"type": "string", "maxLength": OTHER_CHARS, "examples": list(field.values), **about}
        return {"type": "string", "enum": list(field.values), **about}
    if isinstance(field, Numeric):
        bounds = {name: bound for name, bound in (("minimum", field.low), ("maximum", field.high)) if bound is not None}
        if field.integer:
            return {"type": "integer", **bounds, **about}
        return {"type": "number", "format": "float", **bounds, **about}
    if isinstance(field, Flag):
        return {"type": "boolean", **about}
    if isinstance(field, Vector):
        number = {"type": "number", "format": "float"}
        return {"type": "array", "items": number, "minItems": field.size, "maxItems": field.size, **about}
    if isinstance(field, Moment):
        return {"type": "string", "format": "date-time", **about}
    if isinstance(field, Attribute):
        return {"type": "string", "maxLength": field.max_chars, **about}
    return {"type": "string", "minLength": 1, "maxLength": field.max_chars, **about}
