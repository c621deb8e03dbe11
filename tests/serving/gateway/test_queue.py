"""What waits in the real Triton for its turn: a full queue, a late request, and what the gateway makes of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from embedded import triton as embedded
from embedded.ports import Ports
from pipelines.case_files import CASES_ROOT
from pipelines.channel import OPTIONS, credentials
from pipelines.deploy import repository, rollout, triton
from pipelines.errors import Crowded
from pipelines.params import Batching, Queue, ServingParams
from tests.serving.gateway.world import CASE, FIELDS, KEY, PREDICT, client, release, some_rows

pytestmark = pytest.mark.slow
BODY = {"rows": some_rows(1)}
SIDE = 1600
"""A row is answered by a product of two matrices of this side: some tenths of a second on one core."""
INPUTS = {
    "categorical": np.zeros((1, len(FIELDS.categorical)), np.int64),
    "numeric": np.ones((1, len(FIELDS.numeric)), np.float32),
}


def write_slow(path):
    """A model of loans whose score is .5 for every row, after a product of large matrices that hangs on the row."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "large": np.full((SIDE, SIDE), 1e-3, np.float32),
        "axes": np.array([0, 1], np.int64),
        "last": np.array([1], np.int64),
        "zero": np.array([0], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["categorical"], ["codes"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["codes", "numeric"], ["row"], axis=1),
        helper.make_node("ReduceSum", ["row", "axes"], ["number"], keepdims=0),
        helper.make_node("Add", ["large", "number"], ["one"]),
        *(
            helper.make_node("MatMul", [source, "large"], [made])
            for source, made in (("one", "two"), ("two", "three"), ("three", "four"))
        ),
        helper.make_node("ReduceSum", ["four", "axes"], ["product"], keepdims=0),
        helper.make_node("Mul", ["product", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["row", "last"], ["each"], keepdims=1),
        helper.make_node("Mul", ["each", "nothing"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [
            helper.make_tensor_value_info("categorical", TensorProto.INT64, ["batch", len(FIELDS.categorical)]),
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["batch", len(FIELDS.numeric)]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """``(settings, stub)``: version 1 of loans is released and slow, as :func:`served` configures it; Triton itself.

    One of its own: calls are cancelled here, of which Triton 2.51 may die (issue 8034 of its server).
    """
    home, ports = tmp_path_factory.mktemp("queue"), Ports.free()
    with embedded.triton(home, ports):
        settings = embedded.settings(home, ports)
        (home / "api_key").write_text(KEY + "\n")
        write_slow(settings.model_repository / CASE / "1" / "model.onnx")
        release(settings, 1)
        with grpc.secure_channel(settings.triton_grpc, credentials(settings.triton_client), OPTIONS) as channel:
            yield settings, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def served(settings, serving):
    """Have Triton serve version 1 so, and warm."""
    repository.configure(settings.model_repository, FIELDS, [1], serving)
    triton.load(settings, CASE)
    triton.infer(settings, CASE, 1, INPUTS)


def ask(stub, seconds=20.0):
    """One inference of another client than the gateway, as a future."""
    request = pb.ModelInferRequest(
        model_name=CASE,
        model_version="1",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=name, datatype="INT64" if value.dtype == np.int64 else "FP32", shape=value.shape
            )
            for name, value in INPUTS.items()
        ],
        raw_input_contents=[value.tobytes() for value in INPUTS.values()],
    )
    return stub.ModelInfer.future(request, timeout=seconds)


@contextmanager
def busy(stub):
    """Triton computes a request of somebody else's."""
    other = ask(stub)
    time.sleep(0.1)
    yield
    other.result()


@contextmanager
def full(stub):
    """Others have asked for so much that Triton turned one away."""
    others = [ask(stub)]
    while (refused := _soon(others[-1])) is None:
        others.append(ask(stub))
    assert "Exceeds maximum queue size" in refused.details()
    yield
    for other in others[:-1]:  # one of them may have been turned away, too, where that took longer to be told
        other.exception()


def _soon(call):
    """What a call fails of, if it does at once."""
    try:
        return call.exception(timeout=0.02)
    except grpc.FutureTimeoutError:
        return None


def statistics(stub):
    """What Triton counts of the version."""
    [found] = stub.ModelStatistics(pb.ModelStatisticsRequest(name=CASE, version="1")).model_stats
    return found.inference_stats


def answered(stub):
    """How many requests the version has answered."""
    return statistics(stub).success.count


def settled(stub):
    """The same once nothing is added any more: Triton counts a request after it has answered it."""
    before = -1
    while (now := answered(stub)) != before:
        before = now
        time.sleep(0.2)
    return now


def computed(stub):
    """For how long the version has computed, in seconds."""
    return statistics(stub).compute_infer.ns / 1e9


def test_a_full_queue_is_a_503_that_says_when_to_come_back(world):
    """A request that Triton's queue has no room for is 503 with Retry-After and the parameter, however often.

    The circuit breaker stays closed, /readyz ready, and the next request after the storm is answered.
    """
    settings, stub = world
    served(settings, ServingParams(device="cpu", batching=Batching(queue=Queue(size=1))))
    with client(settings) as http:
        assert http.post(PREDICT, json=BODY).status_code == 200
        with full(stub):
            for _ in range(6):
                refused = http.post(PREDICT, json=BODY)
                assert refused.status_code == 503
                assert refused.headers["Retry-After"] == "1"
                assert "serving.batching.queue.size" in refused.json()["error"]
            assert http.get("/readyz").status_code == 200
        assert http.post(PREDICT, json=BODY).status_code == 200


def test_a_declared_default_stands_in_for_a_full_queue(world, monkeypatch, tmp_path):
    """Where the case declares a default, who finds Triton's queue full has it, flagged; then the champion again."""
    settings, stub = world
    served(settings, ServingParams(device="cpu", batching=Batching(queue=Queue(size=1))))
    declared = yaml.safe_load((CASES_ROOT / CASE / "params.yaml").read_text()) | {"serving": {"default": 0.25}}
    (tmp_path / f"{CASE}.yaml").write_text(yaml.safe_dump(declared))
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    with client(settings.model_copy(update={"params_dir": tmp_path})) as http:
        with full(stub):
            [row] = http.post(PREDICT, json=BODY).json()["rows"]
        assert (row["score"], row["default"], row["version"]) == (0.25, True, 0)
        [row] = http.post(PREDICT, json=BODY).json()["rows"]
        assert (row["score"], row["version"]) == (0.5, 1)
        assert "default" not in row


def test_what_has_waited_too_long_is_a_503(world):
    """A request that waits longer in Triton's queue than the case allows is 503 with Retry-After, and not computed."""
    settings, stub = world
    served(settings, ServingParams(device="cpu", batching=Batching(queue=Queue(timeout_ms=20))))
    with client(settings) as http:
        assert http.post(PREDICT, json=BODY).status_code == 200
        before = settled(stub)
        with busy(stub):
            refused = http.post(PREDICT, json=BODY)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "serving.batching.queue.timeout_ms" in refused.json()["error"]
        assert settled(stub) == before + 1
        assert http.post(PREDICT, json=BODY).status_code == 200


@pytest.mark.parametrize("batching", [None, Batching()], ids=["alone", "batched"])
def test_what_nobody_waits_for_is_not_computed(world, batching):
    """Requests whose deadline passes while they wait in Triton are not run, with its batcher and without."""
    settings, stub = world
    served(settings, ServingParams(device="cpu", batching=batching))
    before = computed(stub)
    first = ask(stub)
    time.sleep(0.1)
    late = [ask(stub, seconds=0.05) for _ in range(7)]
    first.result()
    one = computed(stub) - before
    assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    ask(stub).result()
    assert computed(stub) - before < 5 * one  # of nine


def test_the_batcher_is_told_how_much_time_is_left(world):
    """The gateway's requests carry what is left of their deadline, which Triton's batcher holds them to.

    A case's own deadline is what counts.
    """
    settings, _ = world
    served(settings, ServingParams(device="cpu", batching=Batching()))
    told = []

    async def asked():
        from pipelines.parts import Part
        from serving.gateway.triton import Triton

        client = Triton(settings.triton_grpc, 5.0, client=settings.triton_client)
        infer = client._infer
        client._infer = lambda request, **call: told.append(request.parameters["timeout"]) or infer(request, **call)
        try:
            await client.score(FIELDS, 1, [Part(np.arange(1), INPUTS)], client.deadline(seconds=4.0))
        finally:
            await client.close()

    asyncio.run(asked())
    [timeout] = told
    assert timeout.WhichOneof("parameter_choice") == "int64_param"
    assert 3_000_000 < timeout.int64_param <= 4_000_000


def test_a_probe_that_finds_the_queue_full_loads_nothing_anew(world):
    """A version whose queue is full lives: what proves it is told so, and does not have it loaded anew."""
    settings, stub = world
    served(settings, ServingParams(device="cpu", batching=Batching(queue=Queue(size=1))))
    with full(stub):
        with pytest.raises(Crowded, match=r"serving\.batching\.queue\.size"):
            triton.infer(settings, CASE, 1, INPUTS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollout, "probe_tensors", lambda *_: INPUTS)
            patch.setattr(rollout.runtime, "score", lambda *_: np.array([0.5]))
            patch.setattr(rollout.triton, "load", lambda *_: pytest.fail("it was loaded anew"))
            with pytest.raises(Crowded):
                rollout._revive(settings, FIELDS, 1, settings.model_repository)
