"""What a training depends on, layer by layer, and where two trainings differ first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LAYERS = ("code", "data", "environment", "execution", "evaluation")
"""In the order of cause: what differs in an earlier layer may explain every later one."""
IDENTITY = ("source", "sources")
"""Parts of the code layer that say what was run. Where both trainings have one of them, commits do not matter:
another commit may have the same source."""


@dataclass(frozen=True)
class Training:
    """One training as a mapping per layer, and its loss ``curve`` as ``(step, loss)``, steps ascending."""

    layers: Mapping[str, Mapping[str, Any]]
    weights: str
    curve: Sequence[tuple[int, float]] = field(default=())


def differences(recorded: Training, found: Training) -> dict[str, list[dict[str, Any]]]:
    """The layers that differ, in their order, each with what differs: ``{what, recorded, found}``.

    The execution's loss curve is named by the first step at which it differs.
    """
    all_layers = {}
    for layer in LAYERS:
        old = _flat(recorded.layers.get(layer, {}))
        new = _flat(found.layers.get(layer, {}))
        if layer == "code":
            old, new = _what_ran(old, new)
        rows = [
            {"what": name, "recorded": old.get(name), "found": new.get(name)}
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if layer == "execution":
            rows += first_other_step(recorded.curve, found.curve)
        all_layers[layer] = rows
    return {layer: rows for layer, rows in all_layers.items() if rows}


def first_other_step(recorded: Sequence[tuple[int, float]], found: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """The first step whose loss is not the recorded one, bit by bit, or that only one of the curves has.

    The list is empty if there is none.
    """
    old = dict(recorded)
    new = dict(found)
    for step in sorted({*old, *new}):
        if old.get(step) != new.get(step):
            return [{"what": f"loss at step {step}", "recorded": old.get(step), "found": new.get(step)}]
    return []


def _what_ran(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    known = [
        name
        for name in old
        if name.split(".")[0] in IDENTITY and any(other.split(".")[0] == name.split(".")[0] for other in new)
    ]
    if not known:
        return old, new
    commits = ("commit", "dirty")
    # What an older record does not name cannot be compared.
    new = {name: value for name, value in new.items() if name in old or name.split(".")[0] not in ("case", *IDENTITY)}
    old = {name: value for name, value in old.items() if name not in commits}
    new = {name: value for name, value in new.items() if name not in commits}
    return old, new


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item
    return flat
