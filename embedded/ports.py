"""The ports of one stack, all on 127.0.0.1."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields

from pipelines.errors import ConfigError, Unavailable

HOST = "127.0.0.1"
FULL_ONLY = ("postgres", "redis", "loop_metrics", "airflow_metrics", "prometheus", "alertmanager")
"""What only PROFILE=full starts."""
DRAWN = ("triton_grpc", "triton_metrics")
"""Ports that are drawn at each start unless a variable names them.

Only the stack's own processes and people who look need them.
"""


@dataclass(frozen=True)
class Ports:
    """One TCP port per service; the defaults are what `make up` uses, but for Triton's (:data:`DRAWN`).

    Each can be set by the environment variable that :func:`variable` names, e.g. ``PERENNIAL_PORT_AIRFLOW``.
    """

    airflow: int = 8080
    mlflow: int = 5000
    triton_grpc: int = 8001
    triton_metrics: int = 8002
    gateway: int = 8090
    gateway_grpc: int = 8091
    worker_log: int = 8793
    trigger_log: int = 8794
    postgres: int = 5433
    redis: int = 6380
    loop_metrics: int = 9109
    airflow_metrics: int = 9112
    prometheus: int = 9090
    alertmanager: int = 9093

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Ports:
        """The defaults and free ports for :data:`DRAWN`, overridden by ``PERENNIAL_PORT_<NAME>``.

        ConfigError for what is no port or is given twice.
        """
        if environment is None:
            environment = os.environ
        chosen = {
            name: _port(variable(name), environment[variable(name)])
            for name in names()
            if variable(name) in environment
        }
        free = asdict(cls.free())
        ports = cls(**{name: free[name] for name in DRAWN} | chosen)
        taken: dict[int, str] = {}
        for name, port in asdict(ports).items():
            if port in taken:
                raise ConfigError(
                    f"port {port} is given to both {taken[port]} and {name}: set {variable(name)} to another one"
                )
            taken[port] = name
        return ports

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody listens on now, all different: every socket stays open until the last one is drawn."""
        sockets = [socket.socket() for _ in names()]
        try:
            for one in sockets:
                one.bind((HOST, 0))
            return cls(*(one.getsockname()[1] for one in sockets))
        finally:
            for one in sockets:
                one.close()

    def require_free(self, but: Collection[str] = ()) -> None:
        """Raise Unavailable naming every busy port and the variable that moves it.

        Those of the services ``but`` are not looked at.
        """
        own = {name: port for name, port in asdict(self).items() if name not in but}
        busy = [
            f"{port} ({name}): set {variable(name)} to another one" for name, port in own.items() if not is_free(port)
        ]
        if busy:
            raise Unavailable(
                "these ports are taken by other programs: " + "; ".join(busy) + ", or stop what listens there"
            )


def names() -> list[str]:
    """The services' names, in the order of :class:`Ports`."""
    return [field.name for field in fields(Ports)]


def variable(name: str) -> str:
    """The environment variable that sets one service's port."""
    return f"PERENNIAL_PORT_{name.upper()}"


def is_free(port: int) -> bool:
    """Whether a server could bind 127.0.0.1:``port`` now (a port in TIME_WAIT counts as free, as servers reuse it)."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True


def _port(name: str, text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"{name} is {text!r}: give a port number from 1 to 65535")
    return int(text)
