"""A container engine and images to run docker-compose.yaml with.

Those that are there, else an engine of our own and stand-ins. What answers is taken: a running engine, and the official
images where a registry answers. Otherwise `dockerd` is started on a folder of its own, and the base images are built
from tests/compose/standins/. All that was made here is gone afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from benchmarks.full.faults import until
from pipelines.errors import ConfigError, Unavailable

ROOT = Path(__file__).resolve().parents[2]
STANDINS = ROOT / "tests" / "compose" / "standins"
IMAGES = {
    "python:3.11.13-slim-bookworm": "python",
    "apache/airflow:3.3.2-python3.11": "airflow",
    "postgres:15.14-bookworm": "postgres",
    "redis:7.2.11-bookworm": "redis",
    "nvcr.io/nvidia/tritonserver:26.07-py3": "triton",
    "prom/prometheus:v3.5.0": "prometheus",
    "prom/alertmanager:v0.28.1": "alertmanager",
    "grafana/grafana:12.1.1": "grafana",
}
"""An image of docker-compose.yaml or of a Dockerfile -> the folder of its stand-in.

They stand in the order in which they are built.
"""
COPIED = {
    "triton": (ROOT / "requirements-triton.lock", ROOT / "serving" / "triton" / "backends" / "onnxruntime" / "model.py")
}
"""Files of the project that a stand-in takes in."""
BRIDGE = "172.17.0.1"
"""Our own engine's side of its bridge, by which a build reaches this machine."""
PACKAGES = {"dockerd": "docker.io", "debootstrap": "debootstrap", "ip": "iproute2", "iptables-save": "iptables"}
PULL_SECONDS = 3600.0
NO_FILTERS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
"""
"""Both tables that an engine writes into, as a machine without a rule has them.

`iptables-save` says nothing of them there.
"""


def said(
    *command: str | Path, env: Mapping[str, str] | None = None, seconds: float | None = None, given: str | None = None
) -> str:
    """What a command printed; Unavailable with its last lines if it failed or took longer than ``seconds``."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=seconds, check=False, input=given)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(words[:6])} did not end within {seconds:g} s") from error
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise Unavailable(f"{' '.join(words[:6])} ended with {done.returncode}:\n{last}")
    return done.stdout


@contextmanager
def engine(folder: Path) -> Iterator[tuple[dict[str, str], bool]]:
    """The environment in which `docker` reaches an engine.

    And whether that is one of our own, which lives in ``folder`` and is gone afterwards.
    """
    env = dict(os.environ)
    if shutil.which("docker") is None:
        raise ConfigError(
            "there is no `docker`: install Docker, or the packages docker.io, docker-compose and docker-buildx "
            "(docs/compose.md)"
        )
    for plugin in ("compose", "buildx"):
        said("docker", plugin, "version")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        yield env, False
        return
    missing = sorted(package for program, package in PACKAGES.items() if shutil.which(program) is None)
    if missing or os.geteuid() != 0:
        raise ConfigError(
            "no container engine answers: start one, or run this as root with the packages "
            f"{', '.join(missing or PACKAGES.values())}"
        )
    with _own(folder) as socket:
        yield {**env, "DOCKER_HOST": socket}, True


@contextmanager
def _own(folder: Path) -> Iterator[str]:
    """`dockerd` on a socket and a folder of its own; then links and packet filters are as they were."""
    folder.mkdir(parents=True)
    filters = said("iptables-save")
    links = _links()
    socket = f"unix://{folder}/docker.sock"
    pid = folder / "pid"
    options = [
        "--data-root",
        folder / "data",
        "--exec-root",
        folder / "exec",
        "--pidfile",
        pid,
        "--host",
        socket,
        "--bip",
        f"{BRIDGE}/16",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["dockerd", *map(str, options)], stdout=log, stderr=log, start_new_session=True)
    try:
        until(
            lambda: (
                subprocess.run(["docker", "--host", socket, "info"], capture_output=True, check=False).returncode == 0
            ),
            "an engine of our own",
            60,
        )
        yield socket
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        for link in _links() - links:  # its own bridge, and those of networks that it kept
            subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
        said("iptables-restore", given=NO_FILTERS + filters)
        shutil.rmtree(folder)


def _links() -> set[str]:
    """The names of this machine's network links."""
    return {line.split()[0].partition("@")[0] for line in said("ip", "-brief", "link").splitlines()}


@contextmanager
def images(env: Mapping[str, str], folder: Path, environment: Path, *, own: bool) -> Iterator[dict[str, str]]:
    """What each base image is: ``official`` or ``stand-in``.

    Stand-ins carry the official names, so they go again where the engine stays. ``environment`` is what `make setup`
    made: the Airflow stand-in gets its packages, as torch's index may be out of reach.
    """
    found = dict[str, str]()
    silent = set[str]()
    settings = ""
    with ExitStack() as served:
        for image, name in IMAGES.items():
            registry = image.partition("/")[0] if "." in image.partition("/")[0] else "docker.io"
            if registry not in silent and _pulled(env, image):
                found[image] = "official"
                continue
            silent.add(registry)
            if not own:
                raise Unavailable(
                    f"{registry} does not answer: stand-ins for its images are built on an engine of our own only; "
                    "stop yours first"
                )
            if not settings:
                print("no registry answers: a base image from Debian's packages", flush=True)
                said("bash", STANDINS / "base.sh", env=env, seconds=900)
                settings = served.enter_context(pip_settings())
            _build(env, folder / name, image, name, settings)
            if name == "airflow":
                said("bash", STANDINS / "prefill.sh", environment, image, env=env, seconds=900)
            found[image] = "stand-in"
        yield found


def _pulled(env: Mapping[str, str], image: str) -> bool:
    done = subprocess.run(
        ["docker", "pull", "--quiet", image], env=env, capture_output=True, timeout=PULL_SECONDS, check=False
    )
    return done.returncode == 0


def _build(env: Mapping[str, str], context: Path, image: str, name: str, settings: str) -> None:
    """Build a stand-in under the official name, from its folder and the project's files that it takes in."""
    print(f"  {image}: a stand-in", flush=True)
    shutil.copytree(STANDINS / name, context)
    for path in COPIED.get(name, ()):
        shutil.copy(path, context)
    if name == "python":
        (context / "pip.conf").write_text(settings)
    said("docker", "build", "--tag", image, context, env=env, seconds=1800)


@contextmanager
def pip_settings() -> Iterator[str]:
    """A pip.conf with what pip is told on this machine; its local folders are served to builds by HTTP meanwhile."""
    with ExitStack() as served:
        found = {
            name: " ".join(served.enter_context(_reachable(place)) for place in text.split())
            for name, text in _configured().items()
        }
        yield "\n".join(
            ["[global]", *(f"{name} = {places}" for name, places in found.items()), f"trusted-host = {BRIDGE}", ""]
        )


@contextmanager
def _reachable(place: str) -> Iterator[str]:
    """A place of packages as builds reach it: a folder of this machine by HTTP, anything else as it stands."""
    if not place.startswith(("file:", "/")):
        yield place
        return
    path = Path(urlsplit(place).path)
    folder, below = (
        (path.parent, path.name) if place.startswith("file:") else (path, "")
    )  # an index refers to files beside it
    server = ThreadingHTTPServer((BRIDGE, 0), partial(_Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{BRIDGE}:{server.server_port}/{below}"
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    """Files without a line for each."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _configured() -> dict[str, str]:
    """Where pip looks for packages on this machine, by option."""
    lines = re.findall(
        r"^\S*?[.:](?:env:\.)?((?:extra-)?index-url|find-links)='(.*)'$",
        said("python3", "-m", "pip", "config", "list"),
        re.MULTILINE,
    )
    return dict(lines)


@contextmanager
def world() -> Iterator[str]:
    """An address outside of every network of the engine that answers on port 80.

    It knows no way back to private addresses; root only. A network namespace beside this machine's, joined by one link
    (addresses of RFC 5737).
    """
    name = "perennial-world"
    ours = "198.51.100.1"
    theirs = "198.51.100.2"
    inside = ("ip", "netns", "exec", name)
    said("ip", "netns", "add", name)
    try:
        said("ip", "link", "add", "perennial-out", "type", "veth", "peer", "name", "eth0", "netns", name)
        said("ip", "address", "add", f"{ours}/24", "dev", "perennial-out")
        said("ip", "link", "set", "perennial-out", "up")
        said(*inside, "ip", "address", "add", f"{theirs}/24", "dev", "eth0")
        said(*inside, "ip", "link", "set", "eth0", "up")
        server = subprocess.Popen(
            [*inside, "python3", "-m", "http.server", "80", "--bind", theirs],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield theirs
        finally:
            server.terminate()
            server.wait(10)
    finally:
        said("ip", "netns", "delete", name)
