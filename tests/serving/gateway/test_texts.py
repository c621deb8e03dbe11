"""A case of texts with classes: the gateway in front of the real tritonserver, with the case's real fields."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from embedded import triton as embedded
from pipelines import runtime
from pipelines.cases import load_fields
from pipelines.deploy import repository, triton
from pipelines.text import TOKENIZER
from tests.serving.gateway.world import client, counted, lines, make_home, release, until
from tests.texts import some_texts, write_text_bundle

pytestmark = pytest.mark.slow
CASE = "triage"
FIELDS = load_fields(CASE)
PREDICT = f"/v1/cases/{CASE}/predict"
LABELS = f"/v1/cases/{CASE}/labels"


class World:
    """A state folder with one release after the other, the real Triton beside it, and the bundles by version."""

    def __init__(self, home, ports):
        self.settings = make_home(home, ports.triton_grpc, triton_client=embedded.settings(home, ports).triton_client)
        self.bundles = {}

    def release(self, version, *, action="promote"):
        """Append a release of a version; the first time its bundle is made."""
        fill = partial(write_text_bundle, outputs=len(FIELDS.classes), seed=version)
        self.bundles[version] = release(self.settings, version, case=CASE, action=action, fill=fill)

    def load(self, *versions):
        """Have exactly these versions answer in Triton."""
        for version in versions:
            repository.stage(self.settings.model_repository, CASE, version, self.bundles[version])
        repository.configure(self.settings.model_repository, FIELDS, versions)
        triton.load(self.settings, CASE)

    def expected(self, texts, version):
        """What ONNX Runtime gives for the version's bundle [B, K]."""
        return runtime.score_rows(self.bundles[version], FIELDS, {"text": texts})


@pytest.fixture(scope="module")
def world(triton_server):
    """The versions 1 and 2 loaded, version 1 then 2 released."""
    found = World(*triton_server)
    for version in (1, 2):
        found.release(version)
    found.load(1, 2)
    return found


@pytest.fixture
def http(world):
    """A gateway that serves version 2 before the test begins."""
    with client(world.settings) as http:
        until(lambda: counted(http, "champion_version", case=CASE) == 2)
        yield http


def ask(http, texts, prefix=""):
    """The answered rows of texts, with ids of our own if there is a ``prefix``."""
    answer = http.post(
        PREDICT,
        json={
            "rows": [
                {"text": text, **({"prediction_id": f"{prefix}-{at}"} if prefix else {})}
                for at, text in enumerate(texts)
            ]
        },
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def logged(world):
    """The lines of the log by id."""
    return {line["prediction_id"]: line for line in lines(world.settings, case=CASE)}


@pytest.mark.parametrize("count", [1, 120])
def test_answers_are_what_onnx_runtime_gives(world, http, count):
    """Texts of all lengths in one request are answered in their order, by the likeliest class's name.

    Scores are within 1e-5 of ONNX Runtime on the bundle; the log has the class's position, all scores and the raw text.
    """
    texts = some_texts(count, seed=count)
    expected = world.expected(texts, 2)
    said = ask(http, texts)
    log = logged(world)
    assert [row["prediction"] for row in said] == [FIELDS.classes[place] for place in expected.argmax(1)]
    np.testing.assert_allclose([row["score"] for row in said], expected.max(1), atol=1e-5)
    for text, row, scores in zip(texts, said, expected, strict=True):
        line = log[row["prediction_id"]]
        assert (line["version"], line["row"], line["score"]) == (2, {"text": text}, row["score"])
        assert FIELDS.classes[line["prediction"]] == row["prediction"]
        assert line["score"] == line["scores"][line["prediction"]]
        np.testing.assert_allclose(line["scores"], scores, atol=1e-5)


def test_ready_means_that_the_text_model_answers(http):
    """The readiness probe of a text case is a real inference."""
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()["cases"]) == (200, {CASE: {"champion": 2, "ready": True}})


def test_a_repeated_id_keeps_its_class_also_for_a_new_gateway(world, http):
    """The same id gets the same class and score again, also after the index was lost and made anew from the log.

    Another text under it is a 409.
    """
    texts = some_texts(5, seed=3)
    first = ask(http, texts, "again")
    assert ask(http, texts, "again") == first
    before = len(logged(world))
    for path in (world.settings.root / "gateway").glob(f"{CASE}.ids.db*"):
        path.unlink()
    with client(world.settings) as other:
        until(lambda: counted(other, "champion_version", case=CASE) == 2)
        assert ask(other, texts, "again") == first
        answer = other.post(PREDICT, json={"rows": [{"text": "another " + texts[0], "prediction_id": "again-0"}]})
        assert (answer.status_code, answer.json()["field"]) == (409, "prediction_id")
    assert len(logged(world)) == before


def test_labels_are_class_names(world, http):
    """A label is posted by its class's name and logged as its position.

    Another word is a 422 that lists the classes and does not repeat it.
    """
    items = [{"prediction_id": f"labelled-{name}", "label": name} for name in FIELDS.classes]
    assert http.post(LABELS, json={"labels": items}).json() == {"accepted": len(items)}
    assert [line["label"] for line in lines(world.settings, "labels", CASE)] == list(range(len(items)))
    for wrong in ("s3cret", 1, None):
        answer = http.post(LABELS, json={"labels": [items[0], {**items[1], "label": wrong}]})
        assert (answer.status_code, answer.json()["field"], answer.json()["row"]) == (422, "label", 1)
        assert ", ".join(FIELDS.classes) in answer.json()["error"]
        assert "s3cret" not in answer.text
    assert len(lines(world.settings, "labels", CASE)) == len(items)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \u200b\n\x00", "empty"),
        ("", "empty"),
        ("\ud800 s3cret", "not_unicode"),
        ("s3cret" * 4000, "bounds"),
        (["s3cret"], "type"),
        (7, "type"),
    ],
)
def test_a_text_that_is_none_is_refused(world, http, text, reason):
    """Nothing but white space, a lone surrogate, too many characters, no string.

    A 422 that names the field, repeats nothing and logs nothing.
    """
    before = len(logged(world))
    answer = http.post(PREDICT, content=json.dumps({"rows": [{"text": "heap"}, {"text": text}]}))
    assert (answer.status_code, answer.json()["field"], answer.json()["row"]) == (422, "text", 1)
    assert "s3cret" not in answer.text
    assert len(logged(world)) == before
    assert counted(http, "refused_rows_total", case=CASE, reason=reason) == 2


def test_the_version_that_stands_in_uses_its_own_tokenizer(world, http):
    """While the champion is not loaded the previous release answers, with the ids of its own tokenizer.

    The champion answers again when it is back.
    """
    texts = some_texts(20, seed=5)
    world.load(1)
    try:
        until(lambda: ask(http, texts[:1])[0]["version"] == 1)
        said = ask(http, texts)
        assert {row["version"] for row in said} == {1}
        np.testing.assert_allclose([row["score"] for row in said], world.expected(texts, 1).max(1), atol=1e-5)
        assert http.get("/readyz").status_code == 503
    finally:
        world.load(1, 2)
    until(lambda: ask(http, texts[:1])[0]["version"] == 2)


def test_a_damaged_tokenizer_is_refused_until_it_is_restored(world):
    """A bundle whose tokenizer.json is not the one it names is not served: 503 with the reason.

    Restored, the same release serves.
    """
    path = world.bundles[2] / TOKENIZER
    kept = path.read_bytes()
    path.write_bytes((world.bundles[1] / TOKENIZER).read_bytes())
    try:
        with client(world.settings) as http:
            answer = http.post(PREDICT, json={"rows": [{"text": "heap"}]})
            assert (answer.status_code, TOKENIZER in answer.json()["error"]) == (503, True)
            path.write_bytes(kept)
            until(lambda: http.post(PREDICT, json={"rows": [{"text": "heap"}]}).status_code == 200)
    finally:
        path.write_bytes(kept)


def test_promotion_and_rollback_change_model_and_tokenizer_together(world, http):
    """After a rollback and a promotion every answer is that of the version it names.

    Its text was encoded by that version's tokenizer.
    """
    texts = some_texts(10, seed=6)
    for version, action in ((1, "rollback"), (2, "promote")):
        world.release(version, action=action)
        until(lambda version=version: ask(http, texts[:1])[0]["version"] == version)
        np.testing.assert_allclose(
            [row["score"] for row in ask(http, texts)], world.expected(texts, version).max(1), atol=1e-5
        )
