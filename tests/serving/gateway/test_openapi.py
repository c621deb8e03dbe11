"""What `/docs` and `/openapi.json` say.

Every case as it is declared, with examples that work, and nothing from another host.
"""

import copy
import re
import shutil
import subprocess
from itertools import chain

import pytest

from pipelines.case_files import case_names
from pipelines.cases import load_fields
from pipelines.fields import OTHER_CHARS, Categorical, Fields, Moment, Numeric, Text
from serving.gateway.app import create_app
from serving.gateway.openapi import FIGURES, LABELS, PREDICT, document
from serving.gateway.refusal import Refused
from serving.gateway.rows import figure_shape, label_shape, read, row_shape
from tests import shop
from tests.serving.gateway.world import CASE, client, fake_triton, lines, make_home, until


@pytest.fixture
def spec(world):
    """The document of a running gateway."""
    return world.http.get("/openapi.json").json()


def body(spec, path, case):
    """The JSON body of a case's request."""
    return spec["paths"][path.format(case=case)]["post"]["requestBody"]["content"]["application/json"]


def items(spec, path, case):
    """The schema of one row, or of one label, of a case's request."""
    [rows] = body(spec, path, case)["schema"]["properties"].values()
    return rows["items"]


def test_every_case_has_its_own_requests(spec):
    """The document names the requests of every case instead of a placeholder, all of them behind the key."""
    wanted = {path.format(case=case) for path in (PREDICT, LABELS, FIGURES) for case in case_names()}
    assert {path for path in spec["paths"] if path.startswith("/v1/")} == wanted
    assert all(spec["paths"][path]["post"]["security"] == [{"key": []}] for path in wanted)
    assert spec["components"]["securitySchemes"]["key"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    names = [operation["operationId"] for path in spec["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", case_names())
def test_fields_are_named_with_kind_vocabulary_and_bounds(spec, case):
    """A row's schema is the declaration.

    All fields and no others, vocabularies, whole numbers, bounds, lengths, what may be null and what each means; a
    label's has the classes, or a number's bounds.
    """
    fields = load_fields(case)
    row = items(spec, PREDICT, case)
    assert row["required"] == list(fields.names)
    assert set(row["properties"]) == {*fields.names, "prediction_id", "event_time"}
    assert row["additionalProperties"] is False
    for field in fields.fields:
        said = row["properties"][field.name]
        assert said.get("description", "") == field.about
        kind = "integer" if isinstance(field, Numeric) and field.integer else "number"
        if not isinstance(field, Numeric):
            kind = "string"
        assert said["type"] == ([kind, "null"] if field.missing else kind)
        if isinstance(field, Numeric):
            assert (said.get("minimum"), said.get("maximum")) == (field.low, field.high)
        elif isinstance(field, Text):
            assert said["maxLength"] == field.max_chars
        elif isinstance(field, Moment):
            assert said["format"] == "date-time"
        elif field.other:
            assert (said["maxLength"], said["examples"]) == (OTHER_CHARS, list(field.values))
        else:
            assert said["enum"] == [*field.values, *([None] if field.missing else [])]
    label = items(spec, LABELS, case)["properties"]["label"]
    if fields.number is None:
        assert label["enum"] == (list(fields.classes) or [0, 1])
    else:
        assert (label["minimum"], label["maximum"]) == fields.number.bounds


@pytest.mark.parametrize("case", case_names())
def test_the_examples_work(world, spec, case):
    """The example row is one that the gateway takes, and the example label is that of this very row."""
    row = body(spec, PREDICT, case)["example"]
    label = body(spec, LABELS, case)["example"]
    answer = world.http.post(PREDICT.format(case=case), json=row)
    assert answer.status_code == (200 if case == CASE else 503), answer.text
    assert "no champion" in answer.text or answer.json()["rows"][0]["prediction_id"] == row["rows"][0]["prediction_id"]
    assert world.http.post(LABELS.format(case=case), json=label).json() == {"accepted": 1}
    assert label["labels"][0]["prediction_id"] == row["rows"][0]["prediction_id"]
    assert lines(world.settings, "labels", case)[-1]["prediction_id"] == row["rows"][0]["prediction_id"]
    figure = body(spec, FIGURES, case)["example"]
    assert world.http.post(FIGURES.format(case=case), json=figure).json() == {"accepted": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"prediction_id": " "},
        {"salary": -1},
        {"salary": "x"},
        {"age": 18.5},
        {"car": "make_0"},
        {"more": 1},
        {"age": None},
    ],
)
def test_what_the_document_forbids_is_refused(spec, change):
    """What the document's schema does not allow, the gateway does not take either."""
    import jsonschema
    import msgspec

    allowed = body(spec, PREDICT, CASE)
    wrong = copy.deepcopy(allowed["example"])
    wrong["rows"][0] |= change
    jsonschema.validate(allowed["example"], allowed["schema"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, allowed["schema"])
    with pytest.raises(Refused):
        read(row_shape(load_fields(CASE), 10), msgspec.json.encode(wrong))


def test_any_declaration_has_examples_that_work():
    """Open, reversed-sign and tight bounds, with and without whole numbers: the example lies within them."""
    import msgspec

    bounds = [(None, None), (5, None), (None, -3), (None, 4), (-3, -2), (0.25, 0.5), (7, 7)]
    numbers = [Numeric(f"n{at}", low, high) for at, (low, high) in enumerate(bounds)]
    whole = [Numeric(f"w{at}", low, high, integer=True) for at, (low, high) in enumerate(bounds) if low != 0.25]
    fields = Fields("odd", (*numbers, *whole, Categorical("c", ("only",))), "y", classes=("a", "b", "c"))
    spec = document(create_app().openapi(), [fields], 10, {"other": "params.yaml has 1 mistake"})
    assert len(read(row_shape(fields, 10), msgspec.json.encode(body(spec, PREDICT, "odd")["example"]))) == 1
    assert len(read(label_shape(fields, 10), msgspec.json.encode(body(spec, LABELS, "odd")["example"]))) == 1
    assert len(read(figure_shape(10), msgspec.json.encode(body(spec, FIGURES, "odd")["example"]))) == 1
    assert "other cannot be used now.** params.yaml has 1 mistake" in spec["info"]["description"]
    assert {path for path in spec["paths"] if path.startswith("/v1/")} == {
        "/v1/cases/odd/predict",
        "/v1/cases/odd/labels",
        FIGURES.format(case="odd"),
    }


def test_the_document_follows_the_cases(tmp_path):
    """A broken case has no requests and its mistake is told.

    Mended it has them, an added case too, a removed one no more; one that breaks in service keeps them.
    """
    with shop.installed(tmp_path / "cases") as root, fake_triton() as (_, port):
        for name in ("shop", "desk"):
            shop.write(root, name)
        schema = root / "shop" / "schema.py"
        shop.edit(schema, ("Fields(\n", "Fields((\n"))
        with client(make_home(tmp_path / "home", port), cases_seconds=0.05) as http:

            def told():
                found = http.get("/openapi.json").json()
                return {path.split("/")[3] for path in found["paths"] if path.startswith("/v1/")}, found["info"][
                    "description"
                ]

            cases, text = told()
            assert cases == {"desk"}
            assert "**shop cannot be used now.** " in text
            assert "SyntaxError" in text
            shop.edit(schema, ("Fields((\n", "Fields(\n"))
            until(lambda: told()[0] == {"desk", "shop"})
            assert "cannot be used" not in told()[1]
            shop.write(root.parent / "aside", "lamp").rename(root / "lamp")
            until(lambda: told()[0] == {"desk", "lamp", "shop"})
            shutil.rmtree(root / "desk")
            until(lambda: told()[0] == {"lamp", "shop"})
            shop.edit(schema, ("Fields(\n", "Fields((\n"))
            until(lambda: "**shop goes on as it was declared before.** " in told()[1])
            assert told()[0] == {"lamp", "shop"}


def test_the_page_needs_no_other_host(world):
    """`/docs` and everything that it loads come from the gateway itself."""
    page = world.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page.text)
    loaded = re.findall(r"(?:src|href)=[\"']([^\"']+)", page.text)
    assert len(loaded) == 3
    for address in loaded:
        answer = world.http.get(f"/{address}")
        assert answer.status_code == 200
        assert len(answer.content) > 1000
    assert world.http.get("/redoc").status_code == 404


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="wants a browser: apt-get install chromium")
def test_a_browser_shows_every_case(world, tmp_path):
    """In a browser without a network the page lists the requests of every case."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path}",
    ]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"{world.http.base_url}/docs",
    ]
    wanted = set(chain(*([PREDICT.format(case=case), LABELS.format(case=case)] for case in case_names())))

    def shown():
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
        return {path for path in wanted if path in page.replace("\u200b", "")}

    # A browser that has hardly any of the processor gives up before the page is drawn.
    until(lambda: shown() == wanted, 100)
