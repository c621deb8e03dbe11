"""What the tests of the library share."""

from __future__ import annotations

import multiprocessing
import socket
from multiprocessing.context import ForkServerContext


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def fresh_processes() -> ForkServerContext:
    """Processes with nothing of the tests' own, as gRPC does not survive a fork; their imports are done once for all.

    Their environment is that of the first one's start: a test that changes a variable hands it over itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipelines.releases", "pipelines.steps.rollback"])
    return context
