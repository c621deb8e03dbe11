"""compose/triton/start.sh with the real server: what it loads, whom it obeys, what it exports."""

import os
import re
import time
import urllib.request
from functools import partial

import numpy as np
import pytest
from pydantic import SecretStr

from embedded import certificates, keys
from embedded import triton as embedded
from embedded.ports import HOST, Ports
from embedded.processes import end, last_lines, launch
from pipelines.channel import credentials
from pipelines.deploy import triton
from pipelines.errors import Unavailable
from tests.compose.stackfile import ROOT
from tests.compose.test_monitoring import QUERIES, TRITON_SERIES, names

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
    """``(settings, ports)`` of a server that start.sh started.

    Its repository has one good model and one that cannot be loaded.
    """
    home = tmp_path_factory.mktemp("start")
    ports = Ports.free()
    embedded.prepare(home)
    repository = home / "model_repository"
    _toy(repository / "toy" / "1" / "model.onnx")
    (repository / "toy" / "config.pbtxt").write_text(CONFIG)
    (repository / "torn" / "1").mkdir(parents=True)
    (repository / "torn" / "config.pbtxt").write_text("backend: {")
    real, *options = embedded.command(home, ports)
    taken = ("--model-repository=", "--backend-config=", "--grpc-address=", "--grpc-port=", "--metrics-", "--allow-gpu")
    (home / "bin").mkdir()
    stub = home / "bin" / "tritonserver"
    stub.write_text(STUB.format(server=real, own=" ".join(option for option in options if option.startswith(taken))))
    stub.chmod(0o755)
    # The wheel's backend of this name is run by the one for Python, which the container's needs not.
    (home / "chosen" / "backends").mkdir(parents=True)
    (home / "chosen" / "backends" / "python").symlink_to(home / "triton" / "backends" / "python")
    env = embedded.environment(home)
    places = {"SECRETS": "secrets", "BACKENDS": "triton/backends", "CHOSEN": "chosen"}
    env |= {"PATH": f"{stub.parent}:{env['PATH']}", **{name: str(home / folder) for name, folder in places.items()}}
    process = launch("triton", ["/bin/sh", str(ROOT / "compose/triton/start.sh")], env, home / "log")
    settings = embedded.settings(home, ports)
    try:
        deadline = time.monotonic() + 60
        while not (embedded.ready(home, ports) and triton.loaded(settings, "toy", 1)):
            assert time.monotonic() < deadline, last_lines(home / "log", 60)
            time.sleep(0.1)
        yield settings, ports
    finally:
        end([process], embedded.stack_tag(home))
        embedded.sweep(home)


def infer(settings, value):
    """The toy's answer to a number."""
    return triton.infer(settings, "toy", 1, {"x": np.array([[value]], np.float32)}).tolist()


def test_what_the_repository_holds_serves_after_a_start(server):
    """A server that was restarted answers for the models in its repository by itself.

    A broken one does not keep the others down.
    """
    assert infer(server[0], 3.0) == [3.0]


def test_only_who_has_the_clients_key_is_answered(server):
    """Without the key, or with one of another authority, nothing is loaded, unloaded or inferred.

    With it all of that works.
    """
    settings, _ports = server
    for client in (None, SecretStr(certificates.issue().client)):
        stranger = settings.model_copy(update={"triton_client": client})
        for call in (
            partial(triton.unload, stranger, "toy"),
            partial(triton.load, stranger, "toy"),
            partial(infer, stranger, 1.0),
        ):
            with pytest.raises(Unavailable, match="does not answer"):
                call()
    assert infer(settings, 4.0) == [4.0]
    triton.unload(settings, "toy")
    assert not triton.loaded(settings, "toy", 1)
    triton.load(settings, "toy")
    assert infer(settings, 5.0) == [5.0]


def test_what_nobody_needs_is_closed(server):
    """Shared memory, trace and log settings are closed to all.

    Of the image's backends the one for Python is not there to be asked for.
    """
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    settings, _ports = server
    with InferenceServerClient(settings.triton_grpc, creds=credentials(settings.triton_client)) as client:
        for call in (client.get_log_settings, client.get_trace_settings, client.get_system_shared_memory_status):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
    chosen = settings.root / "chosen" / "backends"
    assert {path.name for path in chosen.iterdir()} - {"python"} == {"onnxruntime"}  # python: this test's own
    assert (chosen / "onnxruntime").samefile(settings.root / "triton" / "backends" / "onnxruntime")


def test_what_the_dashboards_ask_of_triton_is_exported(server):
    """Every nv_ series in a panel is one that the running server exports (a GPU's only where there is one)."""
    infer(server[0], 1.0)
    with urllib.request.urlopen(f"http://{HOST}:{server[1].triton_metrics}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    exported = {
        name: set(re.findall(r'(\w+)="', labels or ""))
        for name, labels in re.findall(r"^(nv_\w+)(\{.*\})? ", text, re.MULTILINE)
    }
    asked = {name for _place, query, _legend in QUERIES for name in names(query) if name.startswith("nv_")}
    assert asked == set(TRITON_SERIES)
    for name in asked - GPU_ONLY:
        assert TRITON_SERIES[name] <= exported[name], name


@pytest.mark.parametrize("name", ["triton_authority", "triton_server_certificate", "triton_server_key"])
def test_an_empty_key_starts_nothing(tmp_path, name):
    """Without a key or a certificate the script ends with a sentence that says how to make one."""
    import subprocess

    keys.make_triton(tmp_path)
    (tmp_path / name).write_text("")
    env = {**os.environ, "SECRETS": str(tmp_path)}
    done = subprocess.run([ROOT / "compose/triton/start.sh"], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (1, f"start.sh: the secret {name} is missing or empty: run make secrets\n")
