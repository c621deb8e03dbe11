"""The Open Inference Protocol on the gateway, REST and gRPC, spoken by tritonclient as any tool would."""

from __future__ import annotations

import asyncio
import socket
import tomllib
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from pipelines.errors import ConfigError
from serving.gateway import inference, tensors
from serving.gateway.app import create_app
from serving.gateway.settings import Bounds
from tests.serving.gateway import protocol
from tests.serving.gateway.world import (
    CASE,
    FIELDS,
    KEY,
    PREDICT,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

ROWS = some_rows(7)


@contextmanager
def gateway(folder, **bounds):
    """A gateway whose champion is 1: its HTTP client, tritonclient's two, and its settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with fake_triton() as (triton, port):
        settings = make_home(folder, port)
        release(settings, 1)
        with (
            client(settings, grpc=address, **bounds) as http,
            by_http.InferenceServerClient(http.base_url.netloc.decode()) as rest,
            by_grpc.InferenceServerClient(address) as rpc,
        ):
            yield http, rest, rpc, settings, triton


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A gateway for the tests that do not disturb it."""
    with gateway(tmp_path_factory.mktemp("v2")) as found:
        yield found


def inputs(module, rows, **more):
    """The rows as tritonclient's inputs, and columns of more, which are texts."""
    about = [one._asdict() for one in tensors.inputs(FIELDS)]
    about += [{"name": name, "datatype": "BYTES"} for name in more if name not in {one["name"] for one in about}]
    every = [{**row, **{name: values[number] for name, values in more.items()}} for number, row in enumerate(rows)]
    return protocol.inputs(module, about, every)


def ask(world, module, rows, *, case=CASE, version="", key=KEY, more=None, **options):
    """Infer by one of the two clients."""
    caller = world[1] if module is by_http else world[2]
    return caller.infer(
        case, inputs(module, rows, **(more or {})), model_version=version, headers={"x-api-key": key}, **options
    )


def said(world, rows):
    """What /v1 answers."""
    answer = world[0].post(PREDICT, json={"rows": rows})
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


@pytest.mark.parametrize("module", [by_http, by_grpc])
def test_both_clients_are_answered_as_v1_answers_and_the_rows_are_logged(world, module):
    """Prediction and score are those of /v1 to the bit, and every row is in the log as a row of /v1 is."""
    before = len(lines(world[3]))
    timed = counted(world[0], "answer_seconds_count", case=CASE, version="1")
    name = module.__name__.rpartition(".")[2]
    ids = [f"{name}-{number}" for number in range(len(ROWS))]

    found = ask(world, module, ROWS, more={"prediction_id": ids})

    assert until(lambda: counted(world[0], "answer_seconds_count", case=CASE, version="1") == timed + 1)
    logged = lines(world[3])[before:]
    assert [line["prediction_id"] for line in logged] == ids
    assert found.as_numpy("prediction_id").tolist() == [one.encode() for one in ids]
    assert [line["score"] for line in logged] == found.as_numpy("score").tolist()
    expected = said(world, ROWS)
    assert found.as_numpy("score").tolist() == [row["score"] for row in expected]
    assert found.as_numpy("prediction").tolist() == [row["prediction"] for row in expected]
    assert found.as_numpy("version").tolist() == [1] * len(ROWS)
    assert [line["row"] for line in logged] == [line["row"] for line in lines(world[3])[-len(ROWS) :]]
    assert counted(world[0], "requests_total", case=CASE, route="infer", status="200") >= 1


@pytest.mark.parametrize("module", [by_http, by_grpc])
def test_health_and_metadata_name_the_declared_fields(world, module):
    """Both clients find the server live and ready, the champion as the model's version, and an input for each field."""
    caller = world[1] if module is by_http else world[2]
    as_json = {} if module is by_http else {"as_json": True}

    assert caller.is_server_live()
    assert caller.is_server_ready()
    assert caller.is_model_ready(CASE)
    assert caller.is_model_ready(CASE, "1")
    assert not caller.is_model_ready(CASE, "2")
    assert caller.get_server_metadata(**as_json)["name"] == "perennial"
    about = caller.get_model_metadata(CASE, **as_json)
    assert about["versions"] == ["1"]
    assert [one["name"] for one in about["inputs"]] == [*FIELDS.names, "prediction_id", "event_time"]
    assert {one["datatype"] for one in about["inputs"]} == {"BYTES", "FP64", "INT64"}
    assert [one["name"] for one in about["outputs"]] == ["prediction", "score", "version", "prediction_id"]
    with pytest.raises(InferenceServerException, match="unknown case"):
        caller.get_model_metadata("nobody")
    with pytest.raises(InferenceServerException, match="version 2 does not serve: version 1 does"):
        caller.get_model_metadata(CASE, "2")


@pytest.mark.parametrize("module", [by_http, by_grpc])
def test_what_is_wrong_is_the_clients_exception_and_nothing_is_logged(world, module):
    """A wrong key, an unknown case or version, a bad row and an unknown output reach the client in our words."""
    before = len(lines(world[3]))
    bad = [{**ROWS[0], "age": -1.0}]
    output = [module.InferRequestedOutput("probability")]

    for text, options in {
        "wrong API key": {"rows": ROWS, "key": "wrong"},
        "unknown case": {"rows": ROWS, "case": "nobody"},
        "version 2 does not serve": {"rows": ROWS, "version": "2"},
        "the version must be a number": {"rows": ROWS, "version": "latest"},
        "row 0: age: must be at least": {"rows": bad},
        "outputs: unknown name": {"rows": ROWS, "outputs": output},
        "mood: unknown field": {"rows": ROWS, "more": {"mood": ["x"] * len(ROWS)}},
    }.items():
        with pytest.raises(InferenceServerException, match=text):
            ask(world, module, **options)

    assert len(lines(world[3])) == before
    assert counted(world[0], "refused_rows_total", case=CASE, field="age") >= 1


def test_the_status_of_a_call_tells_what_kind_of_fault_it_is(world):
    """GRPC's codes stand for the gateway's: a wrong key is UNAUTHENTICATED, a bad row INVALID_ARGUMENT."""
    for code, options in {"UNAUTHENTICATED": {"key": ""}, "NOT_FOUND": {"version": "9"}}.items():
        with pytest.raises(InferenceServerException) as refused:
            ask(world, by_grpc, ROWS, **options)
        assert code in refused.value.status()


def test_a_champion_that_is_named_is_answered_by_nobody_else(tmp_path):
    """While the champion is away the release before it stands in, but not for a request that names the version."""
    with gateway(tmp_path) as world:
        release(world[3], 2)
        while world[1].get_model_metadata(CASE)["versions"] != ["2"]:
            pass
        world[4].loaded = {1}

        assert ask(world, by_http, ROWS).as_numpy("version").tolist() == [1] * len(ROWS)
        assert ask(world, by_http, ROWS).get_response()["model_version"] == "1"
        for module in (by_http, by_grpc):
            with pytest.raises(InferenceServerException, match="version 2"):
                ask(world, module, ROWS, version="2")


def test_plain_json_is_read_and_answered(world):
    """Without any client: tensors as JSON, with nested data and a request id, are answered as JSON."""
    given = [
        {
            "name": name,
            "datatype": "BYTES" if isinstance(ROWS[0][name], str) else "FP64",
            "shape": [2, 1],
            "data": [[row[name]] for row in ROWS[:2]],
        }
        for name in FIELDS.names
    ]

    answer = world[0].post(f"/v2/models/{CASE}/versions/1/infer", json={"id": "mine", "inputs": given})

    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["model_name"], found["model_version"], found["id"]) == (CASE, "1", "mine")
    by_name = {output["name"]: output for output in found["outputs"]}
    assert by_name["score"]["data"] == [row["score"] for row in said(world, ROWS[:2])]
    assert by_name["score"]["shape"] == [2]


@pytest.mark.parametrize(
    ("content", "headers", "text"),
    [
        (b"{", {}, "not JSON"),
        (b"{}", {}, "the body must be"),
        (b'{"inputs": []}', {}, "at least one tensor"),
        (b'{"inputs": [{"name": "age", "datatype": "FP64", "shape": [2], "data": [1]}]}', {}, "data has 1 elements"),
        (b'{"inputs": []}', {"Inference-Header-Content-Length": "999"}, "first bytes that are JSON"),
        (b'{"inputs": []}', {"Inference-Header-Content-Length": "0" * 5000}, "first bytes that are JSON"),
        (b'{"inputs": []}xx', {"Inference-Header-Content-Length": "14"}, "bytes follow"),
        (
            b'{"inputs": [{"name": "age", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 9}}]}',
            {},
            "beyond the bytes",
        ),
        (b"x", {"Content-Encoding": "gzip"}, "compressed"),
    ],
)
def test_a_body_that_is_no_request_is_refused(world, content, headers, text):
    """What is no request of the protocol is a client's error, said in words that the client's library shows."""
    answer = world[0].post(f"/v2/models/{CASE}/infer", content=content, headers=headers)

    assert 400 <= answer.status_code < 500
    assert text in answer.json()["error"]


def test_lists_in_lists_are_counted_however_deep_they_are(world):
    """Data that nests as deep as JSON is read is one element, and what is deeper is a client's error."""
    head = b'{"inputs": [{"name": "age", "datatype": "FP64", "shape": [2], "data": '

    said = [
        world[0].post(f"/v2/models/{CASE}/infer", content=head + b"[" * deep + b"1" + b"]" * deep + b"}]}")
        for deep in range(800, 1000)
    ]

    assert {answer.status_code for answer in said} == {400}
    assert {answer.json()["error"] for answer in said} == {
        "inputs: data has 1 elements, the shape says 2",
        "the body is not JSON",
    }


def test_bounds_hold_over_grpc_too(tmp_path):
    """A message beyond the body's bound is refused, and so is one beyond what a worker holds or answers at a time."""
    with gateway(tmp_path, max_body_bytes=4000, max_pending_bytes=1200) as world:
        with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED|larger than max"):
            ask(world, by_grpc, ROWS * 20)
        with pytest.raises(InferenceServerException, match="as many bytes as fit"):
            ask(world, by_grpc, ROWS * 4)
        assert ask(world, by_grpc, ROWS[:1]).as_numpy("version").tolist() == [1]


def test_methods_beyond_the_protocol_are_not_implemented(world):
    """Triton's own methods, as loading models from outside, are not there: only the ledger says what is served."""
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        world[2].unload_model(CASE)


def test_an_address_that_is_taken_stops_the_start_with_what_to_do(tmp_path):
    """A gRPC address that cannot be had is a clear error at the start, not a gateway without it."""
    app = create_app(make_home(tmp_path), Bounds(grpc="256.0.0.1:1"))

    async def start():
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(ConfigError, match=r"PERENNIAL_GATEWAY_GRPC=256.0.0.1:1 cannot be listened at.*another"):
        asyncio.run(start())


def test_the_version_is_the_packages(world):
    """The server's metadata and its documentation name the version that pyproject.toml does."""
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == inference.VERSION
    assert world[0].get("/v2").json()["version"] == inference.VERSION
    assert world[0].get("/openapi.json").json()["info"]["version"] == inference.VERSION


def test_a_stub_without_a_client_library_works(world):
    """The protocol's own messages, with elements in contents instead of bytes, are read too, and told their time."""
    from tritonclient.grpc import service_pb2 as pb

    request = pb.ModelInferRequest(model_name=CASE)
    for name in FIELDS.names:
        text = isinstance(ROWS[0][name], str)
        one = request.inputs.add(name=name, datatype="BYTES" if text else "FP64", shape=[1])
        if text:
            one.contents.bytes_contents.append(ROWS[0][name].encode())
        else:
            one.contents.fp64_contents.append(ROWS[0][name])

    address = world[2]._channel._channel.target().decode()
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found, call = stub.ModelInfer.with_call(request, metadata=[("x-api-key", KEY)])

    score = np.frombuffer(found.raw_output_contents[1], np.float64).tolist()
    assert score == [row["score"] for row in said(world, ROWS[:1])]
    timing = dict(call.trailing_metadata())["server-timing"]
    phases = [one.partition(";")[0] for one in timing.split(", ")]
    assert phases == ["read", "queue", "encode", "triton", "log", "total"]


@pytest.mark.parametrize("module", [by_http, by_grpc])
def test_limits_count_rows_here_too(tmp_path, module):
    """Tensors of more rows than the rate lets in, or lets in at all, are refused before they are scored."""
    with gateway(tmp_path, rate="10/day") as found:
        with pytest.raises(InferenceServerException, match="11 rows are more than the rate of 10 per 1 day"):
            ask(found, module, some_rows(11))
        ask(found, module, ROWS)
        with pytest.raises(InferenceServerException, match="more rows than 10 per 1 day: wait a moment"):
            ask(found, module, ROWS)
        assert len(lines(found[3])) == len(ROWS)
