"""The real gateway process in front of the real tritonserver, with a real ledger.

Killed, restarted, promoted, rolled back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from embedded import http as plain
from embedded import triton as embedded
from embedded.ports import Ports
from embedded.processes import Started
from embedded.triton import start_triton, stop_triton
from pipelines import runtime
from pipelines.deploy import triton
from pipelines.encoding import encode
from pipelines.settings import Settings
from tests.models import CONFIG
from tests.serving.gateway.world import (
    FIELDS,
    KEY,
    LABELS,
    PREDICT,
    counted,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def write_version(repository, version):
    """A version of loans: ``score = sigmoid(sum(embedding[categorical]) + numeric @ w + bias)``.

    Every version has its own random numbers.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(version)
    constants = {
        "table": rng.normal(size=20).astype(np.float32),
        "w": (rng.normal(size=(len(FIELDS.numeric), 1)) * 1e-5).astype(np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "categorical"], ["looked"]),
        helper.make_node("ReduceSum", ["looked", "axes"], ["summed"], keepdims=1),
        helper.make_node("MatMul", ["numeric", "w"], ["dense"]),
        helper.make_node("Add", ["summed", "dense"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    inputs = [
        helper.make_tensor_value_info("categorical", TensorProto.INT64, ["batch", len(FIELDS.categorical)]),
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["batch", len(FIELDS.numeric)]),
    ]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])]
    graph = helper.make_graph(
        nodes, "loans", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    folder = repository / "loans" / str(version)
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx"
    )


def write_config(repository):
    """The model's configuration, all versions."""
    shaped = CONFIG.replace("TYPE_INT64 dims: [ 2 ]", f"TYPE_INT64 dims: [ {len(FIELDS.categorical)} ]")
    shaped = shaped.replace("TYPE_FP32 dims: [ 3 ]", f"TYPE_FP32 dims: [ {len(FIELDS.numeric)} ]")
    (repository / "loans" / "config.pbtxt").write_text(shaped.format(name="loans"))


@dataclass
class Stack:
    """A gateway's process and a client of it."""

    settings: Settings
    process: subprocess.Popen
    http: httpx.Client


@contextmanager
def gateway(world: World) -> Iterator[Stack]:
    """The gateway as `make up` starts it."""
    settings = world.settings
    ports = world.ports
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "serving.gateway.app:app",
        "--host=127.0.0.1",
        f"--port={ports.gateway}",
    ]
    options = [
        "--no-access-log",
        "--loop=serving.gateway.turns:Loop",
        "--http=serving.gateway.connections:Connection",
        "--ws=none",
        "--log-level=warning",
    ]
    env = {**os.environ, "PERENNIAL_HOME": str(settings.home), "PERENNIAL_TRITON_GRPC": settings.triton_grpc}
    env["PERENNIAL_TRITON_CLIENT_FILE"] = str(settings.root / "secrets" / "triton_client")
    process = subprocess.Popen([*command, *options], cwd=ROOT, env=env)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{ports.gateway}", headers={"X-API-Key": KEY}, timeout=30, trust_env=False
        ) as http:
            until(
                lambda: plain.status(f"http://127.0.0.1:{ports.gateway}/healthz") == 200 or process.poll() is not None,
                60,
            )
            assert process.poll() is None, "the gateway did not start"
            yield Stack(settings, process, http)
    finally:
        process.terminate()
        process.wait(20)


@dataclass
class World:
    """A state folder with a ledger, and the Triton that serves it."""

    settings: Settings
    ports: Ports
    triton: Started

    def load(self) -> None:
        """Load all versions of the model."""
        triton.load(self.settings, "loans")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The versions 1 and 2 of loans loaded in Triton, and version 1 released."""
    home = tmp_path_factory.mktemp("gateway")
    ports = Ports.free()
    started = start_triton(home, ports)
    settings = make_home(home, ports.triton_grpc, triton_client=embedded.settings(home, ports).triton_client)
    for version in (1, 2):
        write_version(home / "model_repository", version)
    write_config(home / "model_repository")
    release(settings, 1)
    found = World(settings, ports, started)
    try:
        found.load()
        yield found
    finally:
        stop_triton(home, found.triton)


@pytest.fixture
def stack(world):
    """A fresh gateway process on the module's Triton."""
    with gateway(world) as running:
        yield running


def onnx_scores(settings, rows, version):
    """What ONNX Runtime gives here for the file of a version."""
    tensors = encode(FIELDS, {name: [row[name] for row in rows] for name in FIELDS.names})
    return runtime.score(settings.model_repository / "loans" / str(version), tensors)


@dataclass
class Load:
    """Threads that ask as fast as they get answers, every other request with ids of their own."""

    stack: Stack
    acknowledged: dict[str, tuple[int, float]] = field(default_factory=dict)
    failures: list[tuple[int, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def one(self, name: str) -> None:
        """One thread; ends by itself when the gateway is gone."""
        rows = some_rows(3)
        with httpx.Client(
            base_url=self.stack.http.base_url, headers={"X-API-Key": KEY}, timeout=30, trust_env=False
        ) as http:
            number = 0
            while not self.stop.is_set():
                number += 1
                sent = (
                    [{**row, "prediction_id": f"{name}-{number}-{at}"} for at, row in enumerate(rows)]
                    if number % 2
                    else rows
                )
                try:
                    answer = http.post(PREDICT, json={"rows": sent})
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    self.acknowledged.update(
                        {row["prediction_id"]: (row["version"], row["score"]) for row in answer.json()["rows"]}
                    )
                else:
                    self.failures.append((answer.status_code, answer.text))

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Four threads for the length of a ``with`` block."""
        threads = [threading.Thread(target=self.one, args=(f"{name}{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


def test_answers_are_what_onnx_runtime_gives(stack):
    """Every score of one row and of 1,500 rows is ONNX Runtime's for the version that the answer names.

    It stands so in the log.
    """
    for count in (1, 1500):
        rows = some_rows(count)
        said = stack.http.post(PREDICT, json={"rows": rows}).json()
        assert {row["version"] for row in said["rows"]} == {1}
        np.testing.assert_allclose(
            [row["score"] for row in said["rows"]], onnx_scores(stack.settings, rows, 1), rtol=1e-6
        )
        logged = {
            line["prediction_id"]: line["score"]
            for line in lines(stack.settings)
            if line["request_id"] == said["request_id"]
        }
        assert logged == {row["prediction_id"]: row["score"] for row in said["rows"]}
    ready = stack.http.get("/readyz")
    assert (ready.status_code, ready.json()["cases"]["loans"]) == (200, {"champion": 1, "ready": True})


def test_promotion_and_rollback_are_answered_within_five_seconds(stack):
    """Under load, a row in the ledger changes the version that answers within 5 s, there and back.

    Not one request fails.
    """
    load = Load(stack)
    with load.running("move"):
        for version, action in ((2, "promote"), (1, "rollback")):
            release(stack.settings, version, action=action)
            rows = some_rows(2)
            said = until(lambda rows=rows, version=version: _answered_by(stack, rows, version), 5)
            np.testing.assert_allclose(said, onnx_scores(stack.settings, rows, version), rtol=1e-6)
    assert load.failures == []
    assert {version for version, _ in load.acknowledged.values()} == {1, 2}


def _answered_by(stack, rows, version):
    said = stack.http.post(PREDICT, json={"rows": rows}).json()["rows"]
    return [row["score"] for row in said] if said[0]["version"] == version else None


def test_every_acknowledged_row_survives_a_kill(world):
    """SIGKILL under load: each acknowledged row is in the log once, with its version and score.

    The next start closes the segments and knows the ids.
    """
    settings = world.settings
    with gateway(world) as stack:
        load = Load(stack)
        with load.running("kill"):
            until(lambda: len(load.acknowledged) > 600)
            assert (
                stack.http.post(LABELS, json={"labels": [{"prediction_id": "kill0-1-0", "label": 1}]}).status_code
                == 200
            )
            stack.process.kill()
            stack.process.wait()
    assert load.failures == []
    logged = lines(settings)
    by_id = {line["prediction_id"]: (line["version"], line["score"]) for line in logged}
    assert len(by_id) == len(logged)
    assert {name: by_id.get(name) for name in load.acknowledged} == load.acknowledged
    assert [line["prediction_id"] for line in lines(settings, "labels")][-1:] == ["kill0-1-0"]
    assert list(settings.prediction_log.rglob("*.jsonl.open"))
    with gateway(world) as stack:
        assert not list(settings.prediction_log.rglob("*.jsonl.open"))
        again = [{**row, "prediction_id": f"kill0-1-{at}"} for at, row in enumerate(some_rows(3))]
        said = stack.http.post(PREDICT, json={"rows": again}).json()["rows"]
        assert [(row["version"], row["score"]) for row in said] == [
            load.acknowledged[row["prediction_id"]] for row in again
        ]
        assert len(lines(settings)) == len(logged)


def test_a_killed_triton_is_a_clear_503_without_a_gap_in_the_log(world):
    """Triton killed under load: every request is answered, by rows that are in the log or a 503 that names Triton.

    Service resumes once it is back.
    """
    settings = world.settings
    with gateway(world) as stack:
        before = {line["prediction_id"] for line in lines(settings)}
        load = Load(stack)
        with load.running("down"):
            until(lambda: len(load.acknowledged) > 100)
            os.kill(world.triton.pid, signal.SIGKILL)
            stop_triton(settings.root, world.triton)  # its stubs and shared memory
            until(lambda: len(load.failures) > 20)
            answered = len(load.acknowledged)
            world.triton = start_triton(settings.root, world.ports)
            world.load()
            back = time.monotonic()
            until(lambda: len(load.acknowledged) > answered + 100)
            assert time.monotonic() - back < 10
        assert {status for status, _ in load.failures} == {503}
        assert all("Triton" in text for _, text in load.failures)
        assert {line["prediction_id"] for line in lines(settings)} - before == set(load.acknowledged)
        assert counted(stack.http, "log_errors_total") == 0
