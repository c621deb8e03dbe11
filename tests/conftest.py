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


BUDGET_SECONDS = 1200
"""What `make test` may take in all on two cores."""


def pytest_terminal_summary(terminalreporter):
    """Print where the time went, file by file, against the budget."""
    spent: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                name = report.nodeid.split("::")[0]
                spent[name] = spent.get(name, 0.0) + report.duration
    total = sum(spent.values())
    terminalreporter.write_line(f"test budget: {total:.0f} s of {BUDGET_SECONDS} s")
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:8]:
        terminalreporter.write_line(f"  {seconds:6.1f} s  {name}")
