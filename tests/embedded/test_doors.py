"""Another user of the machine, and by its form any page in a browser, finds no way into the stack."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from embedded import certificates, triton
from embedded.processes import ROOT, tagged
from pipelines.channel import credentials
from pipelines.deploy import triton as calls
from tests.models import tiny_rows, write_model

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

ATTACK = """
import base64, grpc, http.client, json, os, sys, urllib.request
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc

# What is loaded late must be there before: the stranger cannot read the interpreter's folder.
import encodings.idna, encodings.latin_1

given = json.loads(sys.argv[1])
os.setgroups([])
os.setgid(given["user"])
os.setuid(given["user"])
code = f"open({given['marker']!r}, 'w').close()\\n"
code += "class TritonPythonModel:\\n    def execute(self, requests): return []\\n"
tensor = '"name": "%s", "data_type": "TYPE_FP32", "dims": [1]'
config = '{"backend": "python", "input": [{%s}], "output": [{%s}]}' % (tensor % "x", tensor % "y")

def page(port, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/{path}", json.dumps(body).encode())
    for name, value in (("Content-Type", "text/plain"), ("Origin", "https://elsewhere.example.org")):
        request.add_header(name, value)
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).status == 200

def rpc(channel, method, request):
    with channel:
        getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(request, timeout=20)
    return True

brought = pb.RepositoryModelLoadRequest(model_name="evil", parameters={
    "config": pb.ModelRepositoryParameter(string_param=config),
    "file:1/model.py": pb.ModelRepositoryParameter(bytes_param=code.encode())})
asked = pb.ModelInferRequest(model_name="tiny", model_version="1", inputs=[
    pb.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=[1, size])
    for name, kind, size in (("categorical", "INT64", 2), ("numeric", "FP32", 3))],
    raw_input_contents=[bytes(16), bytes(12)])
body = {"parameters": {"config": config, "file:1/model.py": base64.b64encode(code.encode()).decode()}}
row = {"inputs": [{"name": "categorical", "shape": [1, 2], "datatype": "INT64", "data": [0, 0]},
    {"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}]}
foreign = grpc.ssl_channel_credentials(*(text.encode() for text in given["foreign"]))
nameless = grpc.ssl_channel_credentials(given["foreign"][0].encode())
done = []

def attempt(what, call):
    try:
        if call():
            done.append(what)
    except (OSError, http.client.HTTPException, grpc.RpcError):
        pass

for port in given["ports"]:
    attempt(f"page loads code at {port}", lambda: page(port, "repository/models/evil/load", body))
    attempt(f"page infers at {port}", lambda: page(port, "models/tiny/infer", row))
    attempt(f"page unloads at {port}", lambda: page(port, "repository/models/tiny/unload", {}))
    for how, make in (
        ("plain", lambda: grpc.insecure_channel(f"127.0.0.1:{port}")),
        ("nameless", lambda: grpc.secure_channel(f"127.0.0.1:{port}", nameless)),
        ("foreign", lambda: grpc.secure_channel(f"127.0.0.1:{port}", foreign)),
    ):
        attempt(f"{how} client loads code at {port}", lambda: rpc(make(), "RepositoryModelLoad", brought))
        attempt(f"{how} client infers at {port}", lambda: rpc(make(), "ModelInfer", asked))
        attempt(f"{how} client unloads at {port}", lambda: rpc(
            make(), "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="tiny")))
for path in given["files"]:
    attempt(f"reads {path}", lambda: open(path).read())
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def served(triton_server):
    """``(home, ports)`` of a Triton with the model ``tiny`` loaded."""
    home, ports = triton_server
    write_model(home / "model_repository", "tiny", 0.0)
    calls.load(triton.settings(home, ports), "tiny")
    return home, ports


@pytest.mark.slow
@as_root
def test_another_user_loads_infers_and_reads_nothing(served, tmp_path):
    """At every port that Triton listens on, another user's load of brought code, unload and inference are refused.

    As a page's form, over plain gRPC, over TLS without a certificate, and with one of a foreign authority.
    """
    home, ports = served
    server = next(
        psutil.Process(pid) for pid in tagged(triton.stack_tag(home)) if psutil.Process(pid).name() == "tritonserver"
    )
    listening = sorted(
        {connection.laddr.port for connection in server.net_connections() if connection.status == psutil.CONN_LISTEN}
    )
    assert ports.triton_grpc in listening
    secrets = home / "secrets"
    alien = certificates.issue()
    files = [*map(str, secrets.iterdir()), f"/proc/{server.pid}/environ"]
    key, certificate = _split(alien.client)
    foreign = ((secrets / "triton_authority").read_text(), key, certificate)
    given = {"user": STRANGER, "marker": str(tmp_path / "ran"), "ports": listening, "foreign": foreign, "files": files}
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, json.dumps(given)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert not (tmp_path / "ran").exists()
    own = triton.settings(home, ports)
    assert calls.infer(own, "tiny", 1, tiny_rows(2)).shape == (2,)


@pytest.mark.slow
def test_no_secret_stands_in_a_command_line(served):
    """What every user reads in /proc/<pid>/cmdline of Triton and its stubs holds no line of a secret.

    The secrets are their owner's alone.
    """
    home, _ = served
    secrets = list((home / "secrets").iterdir())
    lines = {
        line
        for path in secrets
        for line in path.read_text().splitlines()
        if len(line) > 20 and not line.startswith("-")
    }
    assert lines
    said = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in tagged(triton.stack_tag(home)))
    assert "tritonserver" in said
    assert [line for line in lines if line in said] == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert stat.S_IMODE((home / "secrets").stat().st_mode) == 0o700


@pytest.mark.slow
def test_a_page_and_a_client_with_the_key_are_told_apart(served):
    """Who has the key asks for everything but what nobody needs.

    Shared memory, trace and log settings are closed to all; no HTTP is spoken.
    """
    import grpc
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc

    home, ports = served
    own = triton.settings(home, ports)
    with grpc.secure_channel(own.triton_grpc, credentials(own.triton_client)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(pb.ModelReadyRequest(name="tiny", version="1"), timeout=5).ready
        for call, request in (
            (stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest()),
            (stub.TraceSetting, pb.TraceSettingRequest()),
            (stub.LogSettings, pb.LogSettingsRequest()),
        ):
            with pytest.raises(grpc.RpcError, match="restricted"):
                call(request, timeout=5)


def _split(pem: str) -> tuple[str, str]:
    """The key and the first certificate of a client's file."""
    key, _, rest = pem.partition("-----BEGIN CERTIFICATE")
    return key, "-----BEGIN CERTIFICATE" + rest.partition("-----END CERTIFICATE-----")[
        0
    ] + "-----END CERTIFICATE-----\n"
