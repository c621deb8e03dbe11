"""Where work came from. It stands beside a key, and never in one."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.files import file_sha256

CODE = ("perennial", "pipelines", "plugins", "dags", "serving", "embedded")
"""The repository's folders whose files do the work."""

_ROOT = Path(__file__).parent.parent


def wall_time() -> datetime:
    """The wall clock in UTC, for audit and provenance only: no key and no decision depends on it."""
    return datetime.now(UTC)  # noqa: TID251 - the one clock that provenance may read


@cache
def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def _lock_sha256() -> str:
    lock = _ROOT / "requirements.lock"
    if lock.exists():
        return file_sha256(lock)
    return ""


@cache
def _version() -> str | None:
    """The version of the installed package; None where the repository itself is run."""
    try:
        return version("perennial")
    except PackageNotFoundError:
        return None


def _dirty() -> bool:
    """Whether files that git knows have changed, or code lies beside them that it does not know, ignored or not."""
    unknown = ("ls-files", "--others", "--exclude=__pycache__", "--exclude=.*", "--", *CODE)
    return bool(_git("status", "--porcelain", "--untracked-files=no") or _git(*unknown))


def provenance() -> dict[str, Any]:
    """Where work came from: commit, uncommitted changes, lock hash, wall time. Beside the key, never in it.

    Without a repository ``commit`` and ``dirty`` are None: nobody knows. Of an installed package the version is known.
    """
    # Installed into an environment inside somebody's repository, the commit would be theirs.
    commit = (_git("rev-parse", "HEAD") or None) if (_ROOT / ".git").exists() else None
    return {
        "commit": commit,
        "dirty": None if commit is None else _dirty(),
        "lock": _lock_sha256(),
        "version": _version(),
        "written_at": wall_time().isoformat(),
    }
