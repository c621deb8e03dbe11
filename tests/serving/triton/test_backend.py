"""The Python-based backend in the real tritonserver."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from embedded.triton import settings
from pipelines import runtime
from pipelines.channel import credentials
from pipelines.encoding import encoder
from pipelines.fields import Fields, Text
from tests.models import tiny_rows, write_model
from tests.texts import some_texts, write_text_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(triton_server):
    """``(client, home)`` with the model ``tiny`` loaded in the versions 1 and 2."""
    home, ports = triton_server
    write_model(home / "model_repository", "tiny", 0.0, 1.0)
    own = settings(home, ports)
    client = triton_grpc.InferenceServerClient(own.triton_grpc, creds=credentials(own.triton_client))
    client.load_model("tiny")
    return client, home


def answer(client, rows, version, model="tiny"):
    """The scores [B, 1] that Triton gives for ``rows``."""
    inputs = []
    for name, array in rows.items():
        tensor = triton_grpc.InferInput(name, array.shape, "INT64" if array.dtype == np.int64 else "FP32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(model, inputs, model_version=str(version)).as_numpy("score")


def expected(home, rows, version):
    """The scores [B, 1] that ONNX Runtime gives here for the same file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(home / "model_repository" / "tiny" / str(version) / "model.onnx", options).run(
        ["score"], rows
    )[0]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("rows", [1, 7])
def test_every_version_answers_what_onnx_runtime_answers(served, version, rows):
    """Both versions answer at the same time, bit for bit what ONNX Runtime gives for the same file."""
    client, home = served
    sent = tiny_rows(rows)
    np.testing.assert_array_equal(answer(client, sent, version), expected(home, sent, version))


def test_concurrent_requests_get_their_own_rows(served):
    """Requests of different lengths that Triton puts into one batch each get the scores of their own rows.

    A failing one fails alone.
    """
    client, home = served

    def one(seed):
        sent = tiny_rows(1 + seed % 5, seed)
        if seed % 10 == 3:
            with pytest.raises(InferenceServerException):
                answer(client, {**sent, "categorical": sent["categorical"] + 99}, 1)
        else:
            np.testing.assert_allclose(answer(client, sent, 1), expected(home, sent, 1), rtol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(100)))
    statistics = client.get_inference_statistics("tiny", "1").model_stats[0]
    assert (
        statistics.execution_count < statistics.inference_stats.success.count + statistics.inference_stats.fail.count
    ), "nothing was batched"


TEXTS = """name: "texts"
backend: "onnxruntime"
max_batch_size: 64
input [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true }
]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 4 ] } ]
dynamic_batching { max_queue_delay_microseconds: 20000 }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


def test_texts_of_different_lengths_in_one_batch_do_not_fail(served):
    """Concurrent requests of 1 to 3 texts each get what ONNX Runtime gives for their rows alone.

    Their lengths differ, and Triton is allowed to batch them.
    """
    client, home = served
    folder = home / "model_repository" / "texts" / "1"
    folder.mkdir(parents=True)
    write_text_bundle(folder, outputs=4, seed=0)
    (folder.parent / "config.pbtxt").write_text(TEXTS)
    client.load_model("texts")
    encode = encoder(Fields("texts", (Text("text"),), label="team", classes=("a", "b", "c", "d")), folder)

    def one(seed):
        sent = encode({"text": some_texts(1 + seed % 3, seed, longest=1 + seed % 7)})
        np.testing.assert_allclose(answer(client, sent, 1, "texts"), runtime.score(folder, sent), atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(100)))
    statistics = client.get_inference_statistics("texts", "1").model_stats[0]
    assert statistics.execution_count < statistics.inference_stats.success.count == 100, "nothing was batched"


def test_a_failing_request_gets_an_error_and_the_model_goes_on(served):
    """A code outside the graph's table is answered with ONNX Runtime's message, the next request is served."""
    client, home = served
    sent = tiny_rows(2)
    with pytest.raises(InferenceServerException, match=r"(?i)out of.*bounds|indices"):
        answer(client, {**sent, "categorical": np.full((2, 2), 99)}, 1)
    np.testing.assert_array_equal(answer(client, sent, 1), expected(home, sent, 1))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text.replace('name: "score"', 'name: "scores"'), "no output 'scores'"),
        (lambda text: text.replace("dims: [ 3 ]", "dims: [ 4 ]"), "numeric"),
        (lambda text: text.replace("TYPE_FP32 dims: [ 3 ]", "TYPE_FP64 dims: [ 3 ]"), "numeric"),
    ],
)
def test_a_config_that_is_not_the_graph_is_refused(served, damage, says):
    """A config.pbtxt with another name, shape or type than the graph's is refused, naming the tensor."""
    client, home = served
    write_model(home / "model_repository", "wrong", 0.0)
    config = home / "model_repository" / "wrong" / "config.pbtxt"
    config.write_text(damage(config.read_text()))
    with pytest.raises(InferenceServerException, match=says):
        client.load_model("wrong")


def test_a_corrupt_new_version_keeps_the_old_one_serving(served):
    """Loading a repository whose newest file is no model fails with the path.

    The loaded versions go on answering.
    """
    client, home = served
    bad = home / "model_repository" / "tiny" / "3"
    bad.mkdir()
    (bad / "model.onnx").write_bytes(b"no model")
    try:
        with pytest.raises(InferenceServerException, match=r"model\.onnx"):
            client.load_model("tiny")
        sent = tiny_rows(2)
        np.testing.assert_array_equal(answer(client, sent, 2), expected(home, sent, 2))
    finally:
        (bad / "model.onnx").unlink()
        bad.rmdir()


def test_a_killed_stub_is_mended_by_unload_and_load(served):
    """After SIGKILL of the model's stubs only unload and load bring the model back (a load alone is a no-op)."""
    client, home = served
    write_model(home / "model_repository", "fragile", 0.0)
    client.load_model("fragile")
    sent = tiny_rows(1)
    before = answer(client, sent, 1, "fragile")
    for folder in Path("/proc").iterdir():
        if (
            folder.name.isdigit()
            and b"triton_python_backend_stub" in (line := _command_line(folder))
            and str(home / "model_repository" / "fragile").encode() in line
        ):
            os.kill(int(folder.name), signal.SIGKILL)
    with pytest.raises(InferenceServerException):
        answer(client, sent, 1, "fragile")
    client.unload_model("fragile")
    deadline = time.monotonic() + 20
    while client.is_model_ready("fragile") and time.monotonic() < deadline:
        time.sleep(0.1)
    client.load_model("fragile")
    np.testing.assert_array_equal(answer(client, sent, 1, "fragile"), before)


def _command_line(folder):
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""
