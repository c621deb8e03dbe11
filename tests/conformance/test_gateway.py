"""A table with every kind of field and a text beside it behind the real gateway: over HTTP, logged, after a restart.

A frame of the same rows that MLflow's copy is given is answered in the same way.
"""

from __future__ import annotations

import json
import shutil

import grpc
import numpy as np
import pandas as pd
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pipelines import runtime
from pipelines.cases.receiving import receive
from pipelines.encoding import signature
from pipelines.params_file import load_params
from serving.gateway.versions import READ
from tests.conformance.table import (
    CASE,
    EVERYTHING,
    TEXT,
    WINDOW,
    bundle_of,
    declare,
    delivered,
    installed,
    own_answers,
)
from tests.pipelines.registry.packed import packed
from tests.serving.gateway.world import client, fake_triton, lines, make_home, release

PREDICT = f"/v1/cases/{CASE}/predict"
FIELDS = declare(*EVERYTHING, TEXT, derived=True)


class OnnxTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers like Triton, by ONNX Runtime on one bundle."""

    def __init__(self, fields, bundle):
        self.fields, self.bundle = fields, bundle

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        tensors = {
            given.name: np.frombuffer(raw, declared["dtype"]).reshape(list(given.shape))
            for given, raw, declared in zip(
                request.inputs, request.raw_input_contents, signature(self.fields)[0], strict=True
            )
        }
        try:
            scores = runtime.score(self.bundle, tensors)
        except Exception as error:  # noqa: BLE001 - as Triton says it
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        return pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version,
            raw_output_contents=[scores.astype(np.float32).tobytes()],
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A state folder whose champion was made of canonical rows: ``(rows, own answers, settings)``; a Triton beside."""
    home = tmp_path_factory.mktemp("served")
    with installed(home, FIELDS):
        rows = receive(delivered(FIELDS, rows=60), FIELDS, WINDOW, load_params(CASE)).rows
        bundle = home / "bundle"
        model = bundle_of(FIELDS, rows, bundle)
        with fake_triton(servicer=OnnxTriton(FIELDS, bundle)) as (_, port):
            settings = make_home(home, port)
            read = [bundle / name for name in READ]
            release(settings, 1, case=CASE, fill=lambda work: [shutil.copy(file, work) for file in read])
            yield rows, own_answers(model, FIELDS, rows, bundle), settings


def _requests(rows):
    sent = rows.select("event_time", *FIELDS.names, prediction_id="id").to_dicts()
    times = ("event_time", *(moment.name for moment in FIELDS.moments))
    return [
        {
            name: value.isoformat().replace("+00:00", "Z") if name in times and value is not None else value
            for name, value in row.items()
        }
        for row in sent
    ]


def test_rows_are_answered_logged_and_known_again(served):
    """Null, undeclared and extreme values get the model's own answer, lie in the log as sent, and repeat as they were.

    Also after a restart whose index of ids is made anew from the log.
    """
    rows, own, settings = served
    sent = _requests(rows)
    with client(settings) as http:
        answers = http.post(PREDICT, json={"rows": sent})
        assert answers.status_code == 200, answers.text
        first = answers.json()["rows"]
        assert np.abs(np.array([row["score"] for row in first]) - own[:, 0]).max() <= 1e-5
        assert http.post(PREDICT, json={"rows": sent}).json()["rows"] == first
    logged = {line["prediction_id"]: line["row"] for line in lines(settings, case=CASE)}
    assert logged == {row["prediction_id"]: {name: row[name] for name in FIELDS.names} for row in sent}
    (settings.root / "gateway" / f"{CASE}.ids.db").unlink()
    with client(settings) as http:
        assert http.post(PREDICT, json={"rows": sent}).json()["rows"] == first
        gone = next(row for row in sent if row["holes"] is None)
        assert http.post(PREDICT, json={"rows": [{**gone, "holes": 1.0}]}).status_code == 409
    assert len(lines(settings, case=CASE)) == len(sent)


def test_null_and_absence_are_told_apart(served):
    """Null is a value of a field that may be missing and a refusal of others; a key that is absent always is one."""
    rows, _, settings = served
    row = {name: value for name, value in _requests(rows)[0].items() if name != "prediction_id"}
    with client(settings) as http:
        body = http.get("/openapi.json").json()["paths"][PREDICT]["post"]["requestBody"]["content"]["application/json"]
        declared = body["schema"]["properties"]["rows"]["items"]["properties"]
        assert http.post(PREDICT, json=body["example"]).status_code == 200
        for field in FIELDS.fields:
            null = http.post(PREDICT, json={"rows": [{**row, field.name: None}]})
            absent = http.post(PREDICT, json={"rows": [{name: own for name, own in row.items() if name != field.name}]})
            assert null.status_code == (200 if field.missing else 422)
            assert ("null" in declared[field.name]["type"]) == field.missing
            assert (absent.status_code, absent.json()["field"]) == (422, field.name)


def test_a_frame_is_answered_as_the_gateway_answers(served, tmp_path):
    """To the bit, with nulls, times as texts or as times, categories as such, and its own index.

    Other columns and their order do not matter.
    """
    rows, _, settings = served
    requests = _requests(rows)
    frame = pd.DataFrame(requests, index=range(100, 100 + len(requests)))[::-1]
    with client(settings) as http:
        answers = {row["prediction_id"]: row for row in http.post(PREDICT, json={"rows": requests}).json()["rows"]}
    times = {name: pd.to_datetime(frame[name], format="ISO8601") for name in ("event_time", "due", "seen")}
    other = frame.assign(**times, plain=frame["plain"].astype("category"))
    with packed(tmp_path, settings.root / "bundle") as model:
        for given in (frame, other):
            found = model.predict(given)
            assert found.index.equals(frame.index)
            assert found["problem"].isna().all()
            told = zip(frame["prediction_id"], found["prediction"], found["score"], strict=True)
            assert [(answers[own]["prediction"], answers[own]["score"]) for own, _, _ in told] == list(
                found[["prediction", "score"]].itertuples(index=False, name=None)
            )


BAD = {
    "number": [None, True, "1", 1e7, float("inf")],
    "whole": [0.5, 10],
    "plain": [None, "z", 1, "\ud800"],
    "new": ["x" * 201, 1],
    "flag": [None, 1, "true"],
    "embedding": [None, [1.0], [1.0] * 4 + [None], "text"],
    "due": [None, "2024-05-01", "2024-05-01T12:00:00", "1800-01-01T00:00:00Z", 5],
    "note": [1, "", "\u200b", "x" * 20_001],
    "customer": [None, 1, "x" * 201],
    "event_time": ["yesterday", "1800-01-01T00:00:00Z"],
}


def test_a_row_that_the_gateway_refuses_has_its_words_and_no_answer(served, tmp_path):
    """Each kind of bad value is told as the gateway tells it, and the rows beside it are answered as without it."""
    rows, _, settings = served
    good = _requests(rows)[10:13]
    bad = [{**good[0], name: value} for name, values in BAD.items() for value in values]
    with client(settings) as http, packed(tmp_path, settings.root / "bundle") as model:
        alone = model.predict(pd.DataFrame(good))
        mixed = model.predict(pd.DataFrame([*good, *bad]))
        for row, found in zip(bad, mixed.iloc[len(good) :].to_dict("records"), strict=True):
            sent = json.dumps({"rows": [row]}).replace("Infinity", "1e999")
            answer = http.post(PREDICT, content=sent, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]) == (422, f"row 0: {found['problem']}"), row
            assert (found["prediction"], found["score"]) == (None, None)
        assert mixed.iloc[: len(good)].to_dict("records") == alone.to_dict("records")


def test_a_frame_without_a_field_is_refused_as_a_whole(served, tmp_path):
    """The missing columns are named, and nothing that the frame holds."""
    rows, _, settings = served
    frame = pd.DataFrame(_requests(rows)).drop(columns=["number", "region"])
    told = r"column\(s\) number, region missing: send customer, number, open"
    with packed(tmp_path, settings.root / "bundle") as model, pytest.raises(Exception, match=told):
        model.predict(frame)
