"""``.venv-bench``: the peers' environment, made from requirements-bench.lock when a benchmark first wants it, never by `make setup`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from embedded import check_machine, install
from pipelines.errors import ConfigError

VENV, LOCK = ".venv-bench", "requirements-bench.lock"


def interpreter(root: Path = install.ROOT) -> Path:
    """The environment's Python, after making the environment or bringing it up to its lock. ConfigError without a Python 3.11."""
    python, stamp, wanted = root / VENV / "bin" / "python", root / VENV / "setup.sha256", fingerprint(root)
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        own, _ = check_machine.find_python(os.environ.get("PYTHON", ""))
        if not own:
            raise ConfigError("no Python 3.11 was found for the peers' environment: run make setup, it says what to install")
        install.install(own, root / VENV, root / LOCK)
        stamp.write_text(wanted)
    return python


def fingerprint(root: Path) -> str:
    """sha256 of the lock."""
    return hashlib.sha256((root / LOCK).read_bytes()).hexdigest()
