"""A training's metrics.jsonl as points of MLflow's curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

CURVES = {"loss": "train.loss", "lr": "train.learning_rate", "grad_norm": "train.gradient_norm"}
VALIDATION = "validation.loss"
THROUGHPUT = "train.samples_per_second"
RATE_SECONDS = 1.0
"""Least training time that a throughput is measured over: single steps jump."""


class Point(NamedTuple):
    """A value of a curve at an optimiser step, ``seconds`` into the training."""

    name: str
    value: float
    step: int
    seconds: float


Place = tuple[int, int]
"""How far a file was read: the optimiser step, and 1 once its validation was."""
START: Place = (0, 1)


@dataclass
class Tail:
    """Reads what was added to a metrics file since the last look; a file that was cut back is read from its start."""

    path: Path
    offset: int = 0
    last: bytes = b""
    seconds: float = field(default=0.0)

    def look(self) -> list[dict[str, Any]]:
        """The whole lines that are new; nothing without a file."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.last))
                if file.read(len(self.last)) != self.last:
                    # A training that goes on at a checkpoint forgets what was said after it.
                    self.offset = 0
                    self.last = b""
                    file.seek(0)
                new = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        self.offset += sum(map(len, new))
        if new:
            self.last = new[-1]
        return [json.loads(line) for line in new]


def place_of(line: dict[str, Any]) -> Place:
    """Where a line stands in the order of a training."""
    return int(line["step"]), int("validation_loss" in line)


@dataclass
class Curves:
    """Turns lines into points, in order; holds what the throughput was last measured at."""

    samples: int = 0
    seconds: float = 0.0
    now: float = 0.0

    def points(self, lines: Iterable[dict[str, Any]]) -> Iterator[Point]:
        """The points of these lines; MLflow takes no missing values, and a NaN says nothing that the error does not."""
        for line in lines:
            step = int(line["step"])
            self.now = float(line.get("seconds", self.now))
            named = {name: line.get(key) for key, name in CURVES.items()} | {VALIDATION: line.get("validation_loss")}
            if line.get("samples") is not None and self.now - self.seconds >= RATE_SECONDS:
                # A try that goes on has a smaller count than the lines that were cut off.
                rate = (line["samples"] - self.samples) / (self.now - self.seconds)
                if rate > 0:
                    named[THROUGHPUT] = rate
                self.samples = line["samples"]
                self.seconds = self.now
            for name, value in named.items():
                if value is not None and isfinite(value):
                    yield Point(name, float(value), step, self.now)
