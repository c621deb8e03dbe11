"""``.venv-bench``: the peers' environment.

It is made from requirements-bench.lock when a benchmark first wants it, never by `make setup`. A peer that needs an
environment of its own has another folder and lock.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from embedded import check_machine, install
from pipelines.errors import ConfigError

VENV = ".venv-bench"
LOCK = "requirements-bench.lock"


def interpreter(venv: str = VENV, lock: str = LOCK, root: Path = install.ROOT) -> Path:
    """The environment's Python, after making the environment or bringing it up to its lock.

    ConfigError without a Python 3.11.
    """
    python = root / venv / "bin" / "python"
    stamp = root / venv / "setup.sha256"
    wanted = fingerprint(lock, root)
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        own, _ = check_machine.find_python(os.environ.get("PYTHON", ""))
        if not own:
            raise ConfigError(
                "no Python 3.11 was found for the peers' environment: run make setup, it says what to install"
            )
        install.install(own, root / venv, root / lock)
        stamp.write_text(wanted)
    return python


def fingerprint(lock: str = LOCK, root: Path = install.ROOT) -> str:
    """sha256 of the lock."""
    return hashlib.sha256((root / lock).read_bytes()).hexdigest()
