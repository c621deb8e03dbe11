"""What a step is: a declaration, what one run gives it, and the work that it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.contracts import Manifest, Trigger
from pipelines.line.facts import Facts
from pipelines.params import Params
from pipelines.settings import Settings

Read = Mapping[str, Manifest]
"""The manifests that a step reads, by the name of the step that left them."""


@dataclass(frozen=True, eq=False)
class Step:
    """A verb of the loop that leaves a folder: everything that anybody but its own file must know of it.

    Its code is ``work`` in ``pipelines/steps/<name>.py``, imported only when it runs: help and DAGs are drawn without
    it.

    ``version`` is raised when the step does something else than before. The keys of the steps in ``reads`` enter its
    key, and so do the ``params`` (dotted names) and, where it runs the case's own code (``runs_case``), that code.
    ``looks_at`` are steps whose manifests it reads beside. Of steps that ``files`` names it opens those files only; of
    the others all are checked.
    """

    name: str
    version: int
    about: str
    facts: type[Facts]
    reads: tuple[Step, ...] = ()
    looks_at: tuple[Step, ...] = ()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    runs_case: bool = False
    takes: tuple[str, ...] = ()
    """What a person may say of a run, beside its ``as_of``: fields of :class:`Run`."""
    makes: str = ""
    uses: str = ""
    """The asset of the case that it makes, and the one that it goes on from, for Airflow's graph."""
    buttons: tuple[str, ...] = ()
    """Names of the links beside its task (perennial/airflow/links.py)."""
    event: str = ""
    """The name under which its task hands on what its facts ask for (:meth:`Facts.asks`)."""


@dataclass(frozen=True, eq=False)
class Action:
    """A verb of the loop that changes what serves and leaves no folder: ``run`` in ``pipelines/steps/<name>.py``.

    ``needs`` and ``takes`` name arguments of ``run`` that a person must and may give, ``told`` those that the caller
    knows.
    """

    name: str
    about: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    makes: str = ""
    uses: str = ""
    buttons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run of a case: what a step works on.

    Its folder is the identity of (case, ``as_of``); a repetition has its own.
    """

    params: Params
    settings: Settings
    as_of: datetime
    folder: Path | None = None
    trigger: Trigger = "manual"
    actor: str | None = None
    reason: str | None = None

    @property
    def case(self) -> str:
        """The case's name."""
        return self.params.case

    @property
    def dir(self) -> Path:
        """Where the run's steps leave their folders."""
        return self.folder or self.settings.run_dir(self.case, self.as_of)


@dataclass(frozen=True)
class Work:
    """What a step answers for one run: what its key holds, how its folder is filled, and what follows.

    ``build`` gets an empty folder and the key, and gives the facts. ``declared`` holds what the key needs beside inputs
    and parameters; ``inputs`` keys beyond those that the step reads. ``follow`` runs once the folder is there, on a
    no-op too, so that a crash between the folder and what hangs on it is mended by running again; what it gives is told
    and not kept. ``instead`` waits for the manifest of the node that does the work.
    """

    build: Callable[[Path, str], Facts]
    declared: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    runs_case: bool = True
    """False where this run uses nothing of the case's code."""
    follow: Callable[[Manifest], Mapping[str, Any] | None] | None = None
    instead: Callable[[str], Manifest] | None = None
