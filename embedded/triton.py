"""The real tritonserver of the nvidia-pytriton wheel, serving a state folder's model repository on 127.0.0.1.

It speaks gRPC under mutual TLS and nothing else (metrics apart): its admin calls run code, and any user of the machine,
or a page in a browser, reaches its port. The client's key lies in ``<home>/secrets/triton_client``, for its owner
alone.

It runs from ``.venv-triton`` (numpy 1). Triton 2.51 misses later security fixes: it is for development
on one machine, and this module binds nothing but the loopback address.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedded import check_machine, keys
from embedded.ports import HOST, Ports
from embedded.processes import ROOT, Started, alive, end, last_lines, launch
from pipelines.deploy import triton as triton_calls
from pipelines.errors import ConfigError, Unavailable
from pipelines.places import TAG
from pipelines.settings import Settings, read_settings

VENV = ROOT / ".venv-triton"
SITE = VENV / "lib" / "python3.11" / "site-packages"
WHEEL = SITE / "pytriton" / "tritonserver"
BACKENDS = ROOT / "serving" / "triton" / "backends"


def stack_tag(home: Path) -> str:
    """The tag of all processes and shared memory of the state folder ``home``: the same at every start."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]


def require() -> None:
    """Raise ConfigError if Triton's environment or libpython is missing: it would hang in "loading" for minutes."""
    if not (WHEEL / "bin" / "tritonserver").exists():
        raise ConfigError(f"{VENV} has no tritonserver: run `make setup`")
    if not check_machine.find_libpython(_prefix()):
        raise ConfigError(
            f"{check_machine.LIBPYTHON} is missing, Triton cannot start a model without it: run `make setup`, "
            "it prints the command that mends it"
        )


def command(home: Path, ports: Ports) -> list[str]:
    """The server's argument list; models are loaded by request only."""
    return [
        str(WHEEL / "bin" / "tritonserver"),
        f"--model-repository={home.resolve() / 'model_repository'}",
        f"--backend-directory={home.resolve() / 'triton' / 'backends'}",
        "--model-control-mode=explicit",
        "--exit-timeout-secs=5",
        "--allow-gpu-metrics=false",
        "--allow-http=false",
        f"--grpc-address={HOST}",
        f"--grpc-port={ports.triton_grpc}",
        f"--metrics-address={HOST}",
        f"--metrics-port={ports.triton_metrics}",
        f"--backend-config=python,shm-region-prefix-name={_shm_prefix(home)}",
        *doors(home.resolve() / "secrets"),
    ]


def doors(secrets: Path) -> list[str]:
    """The options that keep everybody out who has no client's key.

    They name files and hold no secret (as compose/triton/start.sh).
    """
    return [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={secrets / 'triton_server_certificate'}",
        f"--grpc-server-key={secrets / 'triton_server_key'}",
        f"--grpc-root-cert={secrets / 'triton_authority'}",
        # Nobody needs these: what they ask for is a header that no client can send, as its name has a space.
        "--grpc-restricted-protocol=shared-memory,trace,logging:no one=ever",
    ]


def settings(home: Path, ports: Ports) -> Settings:
    """The settings of whoever asks the Triton of ``home`` at ``ports``."""
    client = (home / "secrets" / "triton_client").read_text()
    return read_settings(home=home, triton_grpc=f"{HOST}:{ports.triton_grpc}", triton_client=client)


def environment(home: Path) -> dict[str, str]:
    """The server's environment: Triton's own virtual environment.

    It has nothing of ours that would reach Triton's Python stubs.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"
    }
    libpython = check_machine.find_libpython(_prefix())
    folders = [str(SITE / "nvidia_pytriton.libs"), *([libpython] if libpython not in ("", "loader") else [])]
    return {
        **inherited,
        TAG: stack_tag(home),
        "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join(folders),
    }


def prepare(home: Path) -> None:
    """Make certificates where there are none, and lay out the backends' folder.

    Shared memory that a killed server of this state left behind is deleted.
    """
    keys.make_triton(home / "secrets")
    (home / "model_repository").mkdir(parents=True, exist_ok=True)
    backends = home / "triton" / "backends"
    parts = {
        "python/libtriton_python.so": WHEEL / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": WHEEL / "backends" / "python" / "triton_python_backend_utils.py",
        "python/triton_python_backend_stub": WHEEL / "python_backend_stubs" / "3.11" / "triton_python_backend_stub",
        "onnxruntime/model.py": BACKENDS / "onnxruntime" / "model.py",
    }
    for name, source in parts.items():
        target = backends / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a stub that still runs is not written over
        shutil.copyfile(source, target)  # Triton refuses links that lead out of the backend's folder
        target.chmod(0o700)
    sweep(home)


def sweep(home: Path) -> None:
    """Delete the shared-memory segments of this state folder; only while no server of it runs."""
    for segment in Path("/dev/shm").glob(f"{_shm_prefix(home)}*"):
        segment.unlink(missing_ok=True)


def start_triton(home: Path, ports: Ports, *, deadline: float = 60.0) -> Started:
    """Start Triton on ``home``/model_repository and wait until it is ready; no model is loaded yet.

    Raises ConfigError if it is not installed, Unavailable if a port is taken or it is not ready within ``deadline``
    seconds.
    """
    require()
    prepare(home)
    log = home / "logs" / "triton.log"
    process = launch("triton", command(home, ports), environment(home), log)
    end_of_wait = time.monotonic() + deadline
    while not ready(home, ports):
        if not alive(process) or time.monotonic() > end_of_wait:
            stop_triton(home, process)
            raise Unavailable(
                f"triton did not become ready within {deadline:g} s; the end of {log}:\n{last_lines(log)}"
            )
        time.sleep(0.1)
    return process


def stop_triton(home: Path, process: Started) -> int:
    """Stop what :func:`start_triton` started, its stubs and its shared memory.

    Returns the number of processes left (0).
    """
    left = end([process], stack_tag(home))
    sweep(home)
    return left


@contextmanager
def triton(home: Path, ports: Ports) -> Iterator[Started]:
    """Triton for the length of a ``with`` block."""
    process = start_triton(home, ports)
    try:
        yield process
    finally:
        stop_triton(home, process)


def ready(home: Path, ports: Ports) -> bool:
    """Whether the server answers "ready" (which says nothing about a model: see probe.py)."""
    return triton_calls.ready(settings(home, ports))


def _shm_prefix(home: Path) -> str:
    return f"perennial_{stack_tag(home)}_"


def _prefix() -> str:
    """The folder of the Python that .venv-triton was made from."""
    try:
        lines = (VENV / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return ""
    home = next((line.partition("=")[2].strip() for line in lines if line.split("=")[0].strip() == "home"), "")
    return str(Path(home).parent)
