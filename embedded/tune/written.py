"""The block ``serving:`` of a params.yaml, changed in its place: everything else, comments too, stays as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError
from pipelines.files import write_atomic
from pipelines.params import Params, ServingParams
from pipelines.params_file import load_params

TUNED = ("instances", "batching", "deadline_seconds", "slo")
"""What is written; a key that the new block does not have is taken out."""


def write(path: Path, params: Params, serving: ServingParams, block: Mapping[str, Any]) -> None:
    """Have a case's file say ``serving``, of which ``block`` holds what was tuned.

    Raises ConfigError, and leaves the file alone, if it would then say anything else or cannot be written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        changed = rewritten(text, block)
        with tempfile.TemporaryDirectory(prefix="perennial-params-") as folder:
            trial = Path(folder) / "params.yaml"
            trial.write_text(changed, encoding="utf-8")
            if load_params(params.case, trial) != params.model_copy(update={"serving": serving}):
                raise ConfigError(f"{path} cannot be changed in its place: put the block above into it by hand")
        write_atomic(path, changed.encode(), mode=path.stat().st_mode & 0o777)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): put the block above into it by hand") from error


def rewritten(text: str, block: Mapping[str, Any]) -> str:
    """The text of a params.yaml with the tuned keys of ``serving:`` as ``block`` has them."""
    lines = text.splitlines()
    entry = next((pair for pair in _pairs(yaml.compose(text)) if pair[0].value == "serving"), None)
    if entry is None:
        return "\n".join([*lines, "", "serving:", *_lines(block, 2)]) + "\n"
    key, value = entry
    first, last = key.start_mark.line, _last_line(value)
    inner = lines[first + 1 : last + 1]
    head, indent = lines[first], 2
    if isinstance(value, yaml.MappingNode) and not value.flow_style:
        indent = value.start_mark.column
        gone = {
            number
            for own, its in _pairs(value)
            if own.value in TUNED
            for number in range(own.start_mark.line, _last_line(its) + 1)
        }
        inner = [line for number, line in enumerate(inner, start=first + 1) if number not in gone]
    else:  # on one line, or empty
        kept = {own.value: yaml.safe_load(yaml.serialize(its)) for own, its in _pairs(value) if own.value not in TUNED}
        behind = lines[last][value.end_mark.column :] if value.end_mark.line == last else ""
        head, inner = f"serving:{behind}".rstrip(), _lines(kept, indent)
    return "\n".join([*lines[:first], head, *inner, *_lines(block, indent), *lines[last + 1 :]]) + "\n"


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _last_line(node: yaml.Node) -> int:
    """The last line that a value stands on; the parser counts the comments after a block to it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        inner = node.value[-1]
        return _last_line(inner[1] if isinstance(inner, tuple) else inner)
    return int(node.end_mark.line)


def _lines(block: Mapping[str, Any], indent: int) -> list[str]:
    return [f"{' ' * indent}{name}: {_flow(value)}" for name, value in block.items()]


def _flow(value: Any) -> str:
    text = str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True))
    return text.removesuffix("...\n").strip()
