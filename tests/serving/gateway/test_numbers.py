"""A case that predicts a number behind the gateway: answers, labels, log, index and document."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from pipelines.cases import load_fields
from serving.gateway.app import create_app
from serving.gateway.openapi import document
from serving.gateway.rows import label_shape, read
from tests import shop, trips
from tests.serving.gateway.world import Scores, client, fake_triton, lines, make_home, release

PREDICT, LABELS = (f"/v1/cases/{trips.CASE}/{what}" for what in ("predict", "labels"))
ROWS = [
    {"prediction_id": "a", "road": "town", "km": 10.0, "rain": 0},
    {"prediction_id": "b", "road": "country", "km": 2.5, "rain": 1},
    {"road": "town", "km": 7, "rain": 2},
]


class Minutes(Scores):
    """A Triton that answers two minutes a kilometre."""

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        numeric = np.frombuffer(request.raw_input_contents[1], np.float32).reshape(-1, 2)
        return pb.ModelInferResponse(raw_output_contents=[(2 * numeric[:, :1]).tobytes()])


@pytest.fixture
def settings(tmp_path):
    """A state folder with version 1 of the case, and its Triton."""
    with shop.installed(tmp_path / "cases") as root, fake_triton(servicer=Minutes()) as (_, port):
        trips.write(root)
        own = make_home(tmp_path / "home", port)
        release(own, 1, case=trips.CASE)
        yield own


def test_the_answer_is_the_number(settings):
    """The prediction is the number, a float even where it is whole, with no score; log and index say the same again."""
    with client(settings) as http:
        first = http.post(PREDICT, json={"rows": ROWS})
        assert first.status_code == 200, first.text
        answers = first.json()["rows"]
        assert [answer["prediction"] for answer in answers] == [20.0, 5.0, 14.0]
        assert all(answer.keys() == {"prediction_id", "version", "prediction"} for answer in answers)
        assert '"prediction":20.0' in first.text
        logged = lines(settings, case=trips.CASE)
        assert [(line["prediction"], line["score"]) for line in logged] == [(20.0, 20.0), (5.0, 5.0), (14.0, 14.0)]
        again = http.post(PREDICT, json={"rows": ROWS[:2]}).json()["rows"]
        assert again == answers[:2]
        assert http.get("/readyz").json()["cases"][trips.CASE]["ready"]
    assert len(lines(settings, case=trips.CASE)) == 3
    for path in settings.home.rglob("*.ids.db*"):
        path.unlink()
    with client(settings) as http:
        assert http.post(PREDICT, json={"rows": ROWS[:2]}).json()["rows"] == answers[:2]


def test_a_label_is_a_number_within_its_bounds(settings):
    """Whole numbers and fractions are logged as they are; beyond the bounds, as text or as null they are refused."""
    with client(settings) as http:
        labels = [{"prediction_id": "a", "label": 31}, {"prediction_id": "b", "label": 4.25}]
        assert http.post(LABELS, json={"labels": labels}).json() == {"accepted": 2}
        assert [line["label"] for line in lines(settings, "labels", trips.CASE)] == [31.0, 4.25]
        for wrong, words in ((-1, "at least 0"), (601, "at most 600"), ("4", "expected a number"), (None, "null")):
            refused = http.post(LABELS, json={"labels": [{"prediction_id": "a", "label": wrong}]})
            assert (refused.status_code, refused.json()["field"]) == (422, "label")
            assert words in refused.json()["error"]


def test_the_document_says_what_is_predicted(settings):
    """The reply has a number in its unit and no score; the examples are ones that the gateway takes."""
    fields = load_fields(trips.CASE)
    spec = document(create_app(settings).openapi(), [fields], 10, {})
    reply = spec["paths"][PREDICT]["post"]["responses"]["200"]["content"]["application/json"]
    answer = reply["schema"]["properties"]["rows"]["items"]["properties"]
    assert answer.keys() == {"prediction_id", "version", "prediction", "default", "arm"}
    assert (answer["prediction"]["type"], answer["prediction"]["maximum"]) == ("number", 600)
    assert "min" in answer["prediction"]["description"]
    labels = spec["paths"][LABELS]["post"]
    assert "a number from 0 to 600 (min)" in labels["description"]
    example = labels["requestBody"]["content"]["application/json"]["example"]
    assert len(read(label_shape(fields, 10), msgspec.json.encode(example))) == 1
