"""Fingerprints of every step's behaviour: `make step-versions` writes them to versions.json.

A step stands for all modules that it can reach by its imports (pipelines/line/rooms.py). A module's fingerprint is that
of its syntax tree without docstrings (comments and layout are no part of a tree), so that wording may change freely.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.line.order import STEPS
from pipelines.line.rooms import rooms
from pipelines.line.step import Step

KEPT = Path(__file__).with_name("versions.json")


def found() -> dict[str, Any]:
    """``{"steps": {name: {version, modules}}, "modules": {name: fingerprint}}`` as the sources are now."""
    reached = {step.name: rooms(step) for step in STEPS}
    paths = {name: path for modules in reached.values() for name, path in modules.items()}
    return {
        "steps": {step.name: {"version": step.version, "modules": list(reached[step.name])} for step in STEPS},
        "modules": {name: fingerprint(path) for name, path in sorted(paths.items())},
    }


def changed(step: Step, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The modules of a step that are other than before, come anew or gone."""
    was, are = ({name: kept["modules"][name] for name in kept["steps"][step.name]["modules"]} for kept in (before, now))
    return sorted(name for name in {*was, *are} if was.get(name) != are.get(name))


@cache
def fingerprint(path: Path) -> str:
    """Of a source file."""
    return hashlib.sha256(normal(path.read_text()).encode()).hexdigest()[:16]


def normal(source: str) -> str:
    """The source's syntax tree as text, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A text that stands alone is a docstring, also below an attribute.
            node.body = [child for child in node.body if not _is_text(child)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def main() -> int:
    """Write versions.json anew."""
    KEPT.write_text(json.dumps(found(), indent=1) + "\n")
    sys.stdout.write(f"{len(STEPS)} steps written to {KEPT.relative_to(Path.cwd())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
