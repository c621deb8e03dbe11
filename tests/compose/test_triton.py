"""compose/triton/start.sh with the real server: what it loads, whom it obeys, what it exports."""

import json
import os
import re
import time
import urllib.request

import numpy as np
import pytest
from pydantic import SecretStr

from embedded import triton as embedded
from embedded.ports import HOST, Ports
from embedded.processes import end, last_lines, launch
from pipelines.deploy import triton
from pipelines.errors import IntegrityError
from tests.compose.stackfile import ROOT
from tests.compose.test_monitoring import QUERIES, TRITON_SERIES, names

KEY = "a-key"
GPU_ONLY = {"nv_gpu_utilization"}
CONFIG = 'name: "toy"\nbackend: "onnxruntime"\nmax_batch_size: 8\ninstance_group [{ count: 1 kind: KIND_CPU }]\n'
STUB = """#!/bin/sh
# The embedded server in place of the container's: the script's own options, other paths and ports.
for option; do
    case $option in --model-repository=* | --*-port=*) ;; *) set -- "$@" "$option" ;; esac
    shift
done
exec {server} "$@" {own}
"""


def _toy(path):
    import onnx
    from onnx import TensorProto, helper

    tensor = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "toy", tensor[:1], tensor[1:])
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """``(address, ports)`` of a server that start.sh started on a repository with one good model and one that cannot be loaded."""
    home, ports = tmp_path_factory.mktemp("start"), Ports.free()
    embedded.prepare(home)
    repository = home / "model_repository"
    _toy(repository / "toy" / "1" / "model.onnx")
    (repository / "toy" / "config.pbtxt").write_text(CONFIG)
    (repository / "torn" / "1").mkdir(parents=True)
    (repository / "torn" / "config.pbtxt").write_text("backend: {")
    real, *options = embedded.command(home, ports)
    taken = ("--model-repository=", "--backend-", "--http-", "--grpc-", "--metrics-", "--allow-gpu")
    (home / "bin").mkdir()
    stub = home / "bin" / "tritonserver"
    stub.write_text(STUB.format(server=real, own=" ".join(option for option in options if option.startswith(taken))))
    stub.chmod(0o755)
    (home / "secrets").mkdir()
    (home / "secrets" / "triton_admin_key").write_text(f"{KEY}\n")
    env = embedded.environment(home)
    env |= {"PATH": f"{stub.parent}:{env['PATH']}", "SECRETS": str(home / "secrets")}
    process = launch("triton", ["/bin/sh", str(ROOT / "compose/triton/start.sh")], env, home / "log")
    address = f"{HOST}:{ports.triton_http}"
    try:
        deadline = time.monotonic() + 60
        while not (embedded.ready(ports) and triton.loaded(address, "toy", 1)):
            assert time.monotonic() < deadline, last_lines(home / "log", 60)
            time.sleep(0.1)
        yield address, ports
    finally:
        end([process], embedded.stack_tag(home))
        embedded.sweep(home)


def infer(address, value):
    """The toy's answer to a number, asked without any key."""
    return triton.infer(address, "toy", 1, {"x": np.array([[value]], np.float32)}).tolist()


def test_what_the_repository_holds_serves_after_a_start(server):
    """A server that was restarted answers for the models in its repository by itself, and a broken one does not keep the others down."""
    assert infer(server[0], 3.0) == [3.0]


def test_models_are_changed_by_key_only(server):
    """Loading and unloading need the key; a wrong one, or none, changes nothing."""
    address, _ports = server
    for key in (None, SecretStr("another")):
        with pytest.raises(IntegrityError, match="refuses to unload"):
            triton.unload(address, "toy", key)
        with pytest.raises(IntegrityError, match="refuses to load"):
            triton.load(address, "toy", key)
    assert infer(address, 4.0) == [4.0]
    triton.unload(address, "toy", SecretStr(KEY))
    assert not triton.loaded(address, "toy", 1)
    triton.load(address, "toy", SecretStr(KEY))
    assert infer(address, 5.0) == [5.0]


def test_grpc_is_restricted_too(server):
    """The same holds over gRPC: no model is loaded, no log setting changed, without the key."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    with InferenceServerClient(f"{HOST}:{server[1].triton_grpc}") as client:
        for call in (lambda: client.unload_model("toy"), lambda: client.update_log_settings({"log_verbose_level": 1})):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
        client.load_model("toy", headers={"triton-grpc-protocol-admin-key": KEY})
        assert client.is_model_ready("toy", "1")


def test_what_the_dashboards_ask_of_triton_is_exported(server):
    """Every nv_ series in a panel is one that the running server exports (a GPU's only where there is one)."""
    infer(server[0], 1.0)
    with urllib.request.urlopen(f"http://{HOST}:{server[1].triton_metrics}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    exported = {name: set(re.findall(r'(\w+)="', labels or "")) for name, labels in re.findall(r"^(nv_\w+)(\{.*\})? ", text, re.MULTILINE)}
    asked = {name for _place, query, _legend in QUERIES for name in names(query) if name.startswith("nv_")}
    assert asked == set(TRITON_SERIES)
    for name in asked - GPU_ONLY:
        assert TRITON_SERIES[name] <= exported[name], name


def test_an_empty_key_starts_nothing(tmp_path):
    """Without a key the script ends with a sentence that says how to make one: an empty one would be known to all."""
    import subprocess

    (tmp_path / "triton_admin_key").write_text("")
    env = {**os.environ, "SECRETS": str(tmp_path)}
    done = subprocess.run([ROOT / "compose/triton/start.sh"], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, json.dumps(done.stderr)) == (1, '"start.sh: the secret triton_admin_key is empty: run make secrets\\n"')
