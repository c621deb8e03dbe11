"""Fingerprints of every step's behaviour: `make step-versions` writes them to versions.json.

A fingerprint covers the step's own source and that of the rooms it names in ROOMS, as syntax trees without
docstrings (comments and layout are no part of a tree), so that wording may change freely.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
STEPS = REPOSITORY / "pipelines" / "steps"
KEPT = Path(__file__).with_name("versions.json")


def step_files(folder: Path = STEPS) -> list[Path]:
    """The files of all steps that leave a folder: every module in pipelines/steps whose ``run`` takes a ``run_dir``."""
    return [path for path in sorted(folder.glob("*.py")) if _leaves_a_folder(ast.parse(path.read_text()))]


def describe(path: Path) -> dict[str, Any]:
    """A step as ``{version, sha256}``, read from its source without importing it.

    Raises ValueError if the step declares no STEP_VERSION or a room that is no module.
    """
    tree = ast.parse(path.read_text())
    version, rooms = (_named(tree, name) for name in ("STEP_VERSION", "ROOMS"))
    if version is None or rooms is None:
        raise ValueError(f"{path.name}: a step declares STEP_VERSION and ROOMS")
    text = normal(path.read_text()) + "".join(
        f"\n{room}\n{normal(file.read_text())}" for room in rooms for file in room_files(room)
    )
    return {"version": version, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def room_files(room: str) -> list[Path]:
    """The source files of a dotted module, or all modules of a dotted package."""
    spec = find_spec(room)
    if spec is None or spec.origin is None:
        raise ValueError(f"ROOMS names {room}, which is no module")
    path = Path(spec.origin)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def normal(source: str) -> str:
    """The source's syntax tree as text, without docstrings and the version itself."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A text that stands alone is a docstring, also below an attribute.
            node.body = [child for child in node.body if not _is_text(child) and not _assigns(child, "STEP_VERSION")]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _leaves_a_folder(tree: ast.Module) -> bool:
    runs = [node.args.args for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    return any(argument.arg == "run_dir" for arguments in runs for argument in arguments)


def _named(tree: ast.Module, name: str) -> Any:
    """The constant that a module assigns to ``name``, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and _assigns(node, name) and node.value is not None:
            return ast.literal_eval(node.value)
    return None


def main() -> None:
    """Write versions.json for the steps as they are now."""
    found = {path.stem: describe(path) for path in step_files()}
    KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(found)} steps written to {KEPT.relative_to(REPOSITORY)}\n")


if __name__ == "__main__":
    main()
