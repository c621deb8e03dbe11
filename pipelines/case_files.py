"""Which cases there are, and where their files lie: in the tree, or outside of it.

Outside are the case folders in the folders that ``PERENNIAL_CASES`` names, and those that installed packages name in
the entry-point group ``perennial.cases``. Where the variable is not set, its folders are those that the stack of the
state folder was started with, else the folder ``cases`` where a command is typed: a second shell finds what the first
one did. Every case is known by its name alone, and every process finds it by that.
The environment is read here, and not with the other settings: those ask for a case's files themselves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISDIR

from pipelines import installation, places

CASES_ROOT = Path(__file__).parent / "cases"
CASE_FILES = ("params.yaml", "schema.py", "source.py", "model.py")
"""What a case's folder holds; see pipelines/cases/__init__.py."""
FOLDERS = "PERENNIAL_CASES"
"""The variable: folders with case folders in them, with ``:`` between them as in ``PATH``."""
GROUP = "perennial.cases"
"""The group of entry points: a name is a case, its value the dotted package that is the case's folder."""
HERE = Path("cases")
"""The folder of one's own cases unless ``PERENNIAL_CASES`` names others."""


@dataclass(frozen=True)
class Found:
    """Where a case lies. ``problem`` says why it cannot be used where it lies, and what to do; empty: it can."""

    folder: Path
    problem: str = ""


def case_names() -> list[str]:
    """The cases in alphabetical order: every folder that holds one of a case's files, whole or not.

    Whether each can be used says :func:`pipelines.cases.surveying.survey`. Names that begin with a dot or an underscore
    are no cases.
    """
    return sorted(found())


def found() -> dict[str, Found]:
    """Every case by its name, those that cannot be used where they lie among them."""
    names = {name for root in (CASES_ROOT, *roots()) for name in _names_in(root)} | {name for name, _ in _named()}
    return {name: place for name in sorted(names) if (place := place_of(name)) is not None}


def place_of(name: str) -> Found | None:
    """Where one case lies, None if there is none of this name.

    Only the folders of this name are looked at, and nothing is remembered: a lookup is cheap and always of now.
    """
    if not _is_name(name):
        return None
    place = _case_at(CASES_ROOT / name)
    others = [one for root in roots() if (one := _case_at(root / name))]
    others += [one for entry, one in _named() if entry == name]
    taken = place is None and any((CASES_ROOT / part).exists() for part in (name, f"{name}.py") if others)
    for one in others:
        if taken:
            place = Found(one.folder, f"{one.folder} has the name of a part of Perennial: give it another")
        elif place is None:
            place = one
        elif one.problem or place.folder.resolve() != one.folder.resolve():
            both = f"there are two cases of this name, {place.folder} and {one.folder}: rename one of them"
            place = Found(place.folder, place.problem or one.problem or both)
    return place


def roots() -> list[Path]:
    """The folders with cases of one's own, absolute, in their order."""
    return _listed(_named_folders()[0])


def for_new() -> Path:
    """The folder that a new case's folder is put into: the first of one's own, else that of a checkout."""
    return next(iter(roots()), CASES_ROOT if installation.CHECKOUT else HERE.absolute())


def _listed(folders: str) -> list[Path]:
    return [Path(folder).expanduser().absolute() for folder in folders.split(os.pathsep) if folder.strip()]


def _named_folders() -> tuple[str, str]:
    """The folders as ``PERENNIAL_CASES`` has them, and what names them, in words."""
    given = os.environ.get(FOLDERS)
    if given is not None or places.TAG in os.environ:  # a stack's own processes stand in another folder
        return given or "", FOLDERS
    home = Path(os.environ.get("PERENNIAL_HOME") or places.HOME).expanduser()
    kept = places.variables(home).get(FOLDERS, "")
    if HERE.is_dir() and not any(folder.is_dir() for folder in _listed(kept)):
        return str(HERE), FOLDERS
    return kept, f"{FOLDERS} in {home / places.ENV}"


def problems_of_roots() -> dict[str, str]:
    """What is wrong with folders of one's own cases, by their paths: no case's own mistake."""
    folders, by = _named_folders()
    found = {str(root): _problem_of_root(root, by) for root in _listed(folders)}
    return {root: problem for root, problem in found.items() if problem}


def outside(case: str) -> Path | None:
    """The folder of a case that lies outside of the tree; None for one in it, and for one that cannot be used."""
    place = place_of(case)
    if place is None or place.problem or place.folder.parent == CASES_ROOT:
        return None
    return place.folder


def folder_of(case: str) -> Path:
    """The folder of a case; of an unknown one, where it would lie in the tree."""
    place = place_of(case)
    return CASES_ROOT / case if place is None else place.folder


def shown(case: str, file: str = "") -> str:
    """A file of a case as messages name it."""
    folder = folder_of(case)
    return "/".join(filter(None, (f"pipelines/cases/{case}" if folder.parent == CASES_ROOT else str(folder), file)))


def own_profile(case: str) -> Path | None:
    """The profile.json that lies in a case's folder, if there is one."""
    path = folder_of(case) / "profile.json"
    return path if path.exists() else None


def _names_in(root: Path) -> list[str]:
    """What lies in ``root`` and may be a case; nothing if it cannot be read."""
    try:
        return [path.name for path in root.iterdir()]
    except OSError:
        return []


def _is_name(name: str) -> bool:
    return name[:1] not in ("", ".", "_") and not {"/", "\0"} & set(name)


def _case_at(folder: Path) -> Found | None:
    """A folder that holds one of a case's files, as a case; None for every other, and where nobody may look."""
    try:
        if not S_ISDIR(folder.stat().st_mode):
            return None
    except OSError:
        return None
    try:
        return Found(folder) if any((folder / file).exists() for file in CASE_FILES) else None
    except OSError as error:  # a folder of umask 077, to a service with a user of its own
        return Found(folder, f"{folder} cannot be read ({error.strerror}): let all read it (chmod -R go+rX)")


def _problem_of_root(root: Path, by: str) -> str:
    try:
        next(root.iterdir(), None)
        itself = any((root / file).exists() for file in CASE_FILES)
    except PermissionError as error:
        return f"{by} names {root}, which cannot be read ({error.strerror}): let all read it (chmod -R go+rX)"
    except OSError as error:
        return f"{by} names {root}, which cannot be read ({error.strerror}): make it, or set {FOLDERS} to others"
    if itself:
        return f"{by} names {root}, which is a case itself: name the folder that it lies in"
    return ""


@cache
def _named() -> tuple[tuple[str, Found], ...]:
    """The cases of entry points; read once in a process, as all installed packages are looked through for them."""
    return tuple((entry.name, _of_entry(entry)) for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name))


def _of_entry(entry: EntryPoint) -> Found:
    """The folder that an entry point names, found without importing the case: only the packages above it are run."""
    about = f"the entry point {entry.name} = {entry.value} in {GROUP}"
    try:
        spec = find_spec(entry.value)
    except Exception as error:  # noqa: BLE001 - whatever the packages above it do
        said = " ".join(str(error).split())
        return Found(Path(entry.value), f"{about} cannot be found ({type(error).__name__}: {said}): mend its package")
    if spec is None or not spec.submodule_search_locations:
        what = "no such package is installed" if spec is None else "it is a module and no package"
        return Found(Path(entry.value), f"{about} is no case's folder ({what}): name the package with schema.py in it")
    return Found(Path(next(iter(spec.submodule_search_locations))).absolute())
