"""The real tritonserver of the nvidia-pytriton wheel, serving a state folder's model repository on 127.0.0.1.

It speaks gRPC under mutual TLS and nothing else (metrics apart): its admin calls run code, and any user of the machine,
or a page in a browser, reaches its port. The client's key lies in ``<home>/secrets/triton_client``, for its owner
alone.

It runs from an environment of its own (numpy 1): ``.venv-triton`` in a checkout, where `make setup` makes it, else
``triton`` in the environment that the package is installed in, where the first start makes it. Triton 2.51 misses later
security fixes: it is for development on one machine, and this module binds nothing but the loopback address.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embedded import check_machine, install, keys
from embedded.ports import HOST, Ports
from embedded.processes import Started, alive, end, last_lines, launch
from pipelines.deploy import triton as triton_calls
from pipelines.errors import ConfigError, ConflictError, Unavailable
from pipelines.files import file_sha256, write_atomic
from pipelines.installation import CHECKOUT, ROOT, typed
from pipelines.locks import alone
from pipelines.places import TAG
from pipelines.settings import Settings, read_settings

VENV = ROOT / ".venv-triton" if CHECKOUT else Path(sys.prefix) / "triton"
LOCK = ROOT / "requirements-triton.lock" if CHECKOUT else Path(__file__).with_name("requirements-triton.lock")
STAMP = "lock.sha256"
"""The lock that an installed package's environment was made from, written when it was complete."""
SITE = VENV / "lib" / "python3.11" / "site-packages"
WHEEL = SITE / "pytriton" / "tritonserver"
BACKENDS = ROOT / "serving" / "triton" / "backends"


def stack_tag(home: Path) -> str:
    """The tag of all processes and shared memory of the state folder ``home``: the same at every start."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]


def bring(say: Callable[[str], None]) -> None:
    """Install Triton's environment where the package is installed and it is missing, or another version's.

    In a checkout `make setup` does. ``say`` is told of it. Raises ConfigError if this machine cannot run it or it
    cannot be had, ConflictError while somebody else installs it.
    """
    if CHECKOUT or _is_current():
        return
    found = check_machine.problems(Path(sys.prefix), sys.executable)
    if found:
        remedy = check_machine.remedy(found)
        said = "; ".join(problem for problem, _ in found)
        raise ConfigError(f"Triton cannot run here: {said}: {f'`{remedy}` mends it' if remedy else 'mend it'}")

    def refusal(pid: str) -> ConflictError:
        return ConflictError(f"somebody else (process {pid}) is installing Triton in {VENV}: wait, and start again")

    try:
        with alone(VENV.with_name(".triton.lock"), refusal):
            say(f"installing Triton into {VENV}: once, a minute or two")
            install.install(sys.executable, VENV, LOCK)
            write_atomic(VENV / STAMP, file_sha256(LOCK).encode())
    except OSError as error:
        raise ConfigError(
            f"Triton cannot be installed into {VENV} ({error}): run `{typed('up')}` once as the owner of that folder"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"Triton was not installed: `{' '.join(error.cmd)}` ended with {error.returncode}, what it said stands "
            "above: mend that, and start again"
        ) from error


def _is_current() -> bool:
    try:
        return (VENV / STAMP).read_text() == file_sha256(LOCK)
    except OSError:
        return False


def require() -> None:
    """Raise ConfigError if Triton's environment or libpython is missing: it would hang in "loading" for minutes."""
    if not (WHEEL / "bin" / "tritonserver").exists():
        raise ConfigError(f"{VENV} has no tritonserver: run `{'make setup' if CHECKOUT else typed('up')}`")
    if not check_machine.find_libpython(_prefix()):
        raise ConfigError(
            f"{check_machine.LIBPYTHON} is missing, Triton cannot start a model without it: "
            f"`{check_machine.remedy([('', 'libpython3.11')])}` mends it"
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
    """The folder of the Python that Triton's environment was made from."""
    try:
        lines = (VENV / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return ""
    home = next((line.partition("=")[2].strip() for line in lines if line.split("=")[0].strip() == "home"), "")
    return str(Path(home).parent)
