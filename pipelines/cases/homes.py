"""State folders in which a case's history is played apart: what each of them sees of the state beside it."""

from __future__ import annotations

from pathlib import Path

from pipelines.params import Params, SqlSource
from pipelines.settings import Settings

SHARED = ("data", "cache")
"""Folders of the state that such a folder sees: downloads, and embeddings."""


def share(params: Params, settings: Settings, home: Path) -> None:
    """Link from ``home`` what reading the case's rows needs of the state: data, embeddings, a database's address."""
    home.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        (settings.root / name).mkdir(parents=True, exist_ok=True)
        _link(home / name, settings.root / name)
    declared = params.declared_source
    told = declared.url_from.file if isinstance(declared, SqlSource) else None
    if told is not None and not Path(told).expanduser().is_absolute() and not (home / told).exists():
        (home / told).parent.mkdir(parents=True, exist_ok=True)
        _link(home / told, settings.root / told)


def _link(path: Path, target: Path) -> None:
    if not path.is_symlink():
        path.symlink_to(target, target_is_directory=target.is_dir())
