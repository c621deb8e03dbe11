"""The project's own code in a model that goes elsewhere: a module with all that it imports, as one package.

The package's name holds the hash of its sources. Two versions that are loaded in one process have either the same code
or packages of their own: Python keeps a module by its name, and of two with one name the first would answer for both.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pipelines import imports
from pipelines.errors import IntegrityError

OWN = "pipelines"
_IMPORT = re.compile(rf"^(\s*from ){OWN}(?=[. ])", re.MULTILINE)
_LEFT = re.compile(rf"^\s*import {OWN}\b", re.MULTILINE)


def package(module: str) -> str:
    """The name of the package that :func:`write` makes of a module of ``pipelines``."""
    found = hashlib.sha256()
    for name, path in imports.reachable(module).items():
        found.update(f"{name} {len(source := path.read_bytes())}\n".encode() + source)
    return f"perennial_{found.hexdigest()[:16]}"


def write(module: str, folder: Path) -> str:
    """Write the package of a module and all that it imports below ``folder``; returns the module's name in it.

    Raises IntegrityError if a module imports by a form that is not rewritten.
    """
    name = package(module)
    for own, path in imports.reachable(module).items():
        source = path.read_text()
        if _LEFT.search(source):
            raise IntegrityError(f"{path} has 'import {OWN}...': write 'from {OWN} import ...', which can be moved")
        place = folder.joinpath(name, *own.split(".")[1:])
        place = place / "__init__.py" if path.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_IMPORT.sub(rf"\g<1>{name}", source))
    return f"{name}{module.removeprefix(OWN)}"
