"""Fixtures for the tests that need real services; nothing starts unless a test asks for it."""

from __future__ import annotations

import os

import pytest

from embedded.ports import Ports
from embedded.triton import triton

# Some machines export it; a child that may not write byte-code starts twice as slowly.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="module")
def triton_server(tmp_path_factory):
    """A real Triton on free ports: ``(home, ports)``, its model repository (empty at first) in ``home / "model_repository"``."""
    home = tmp_path_factory.mktemp("triton")
    ports = Ports.free()
    with triton(home, ports):
        yield home, ports
