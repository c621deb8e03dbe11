"""The metrics of a training, a line of JSON each.

They are written seldom: a training of small batches makes hundreds of lines per second.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FLUSH_LINES = 200
FLUSH_SECONDS = 5.0
FILE = "metrics.jsonl"


class Metrics:
    """``add`` lines, ``flush`` now and then. A training that goes on at a step forgets what was said after it."""

    def __init__(self, path: Path | None, step: int = 0) -> None:
        """``path`` None keeps nothing (ranks other than 0); ``step``: optimiser steps done before."""
        self.path = path
        self.lines: list[str] = []
        self.flushed = time.monotonic()
        if path is not None:
            before = []
            if step and path.exists():
                before = read(path)
            path.write_text("".join(json.dumps(line) + "\n" for line in before if line["step"] <= step))

    def add(self, **values: Any) -> None:
        """Remember a line; it is on the disk after the next flush."""
        if self.path is None:
            return
        self.lines.append(json.dumps(values) + "\n")
        if len(self.lines) >= FLUSH_LINES or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added; on a full disk keep it, with a warning, for the next time."""
        self.flushed = time.monotonic()
        if self.path is None or not self.lines:
            return
        try:
            with self.path.open("a") as file:
                file.write("".join(self.lines))
        except OSError as error:
            log.warning("%s cannot be written (%s): free space", self.path, error)
            return
        self.lines.clear()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last one that was cut off by a kill is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
