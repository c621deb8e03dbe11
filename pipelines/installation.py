"""Where this code lies, a checkout or an installed package, and what people type there."""

from __future__ import annotations

import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""What holds our packages: the repository, or site-packages."""
CHECKOUT = (ROOT / "Makefile").is_file()
"""Whether that is the repository, with its Makefile, its locks and its documents."""
PROGRAM = "python -m pipelines" if CHECKOUT else "perennial"
"""What steps and commands of cases are typed behind."""


def search_path() -> list[str]:
    """What a process that starts in another folder needs in ``PYTHONPATH``: nothing where the package is installed."""
    installed = Path(sysconfig.get_path("purelib")).resolve() == ROOT
    return [] if installed else [str(ROOT)]


def typed(verb: str, home: Path | None = None) -> str:
    """How a command of the stack is typed: ``make up STATE=runs/demo``, or ``perennial up --home runs/demo``."""
    if CHECKOUT:
        return f"make {verb}" + (f" STATE={home}" if home else "")
    return f"perennial {verb}" + (f" --home {home}" if home else "")


def install(extra: str = "stack") -> str:
    """How what is missing is installed: ``make setup``, or ``pip install 'perennial[stack]'``."""
    return "make setup" if CHECKOUT else f"pip install 'perennial[{extra}]'"
