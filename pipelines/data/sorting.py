"""An external sort: rows in scratch files, each sorted by a key, of which the rows of some keys are slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.data import heap


@dataclass(frozen=True)
class Sorted:
    """A scratch file; ``places`` says of each key where its rows begin and how many there are, in the keys' order."""

    path: Path
    places: Mapping[Any, tuple[int, int]]


def lay_down(frames: Iterable[pl.DataFrame], key: str, folder: Path) -> list[Sorted]:
    """Put rows down in ``folder``, as many at once as may be held, without their ``key``."""
    folder.mkdir()
    return [_sorted(rows, key, folder / f"{number}.arrow") for number, rows in enumerate(_heaps(frames))]


def _heaps(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    held: list[pl.DataFrame] = []
    size = 0.0
    for frame in frames:
        held.append(frame)
        size += frame.estimated_size()
        if size > heap.AT_ONCE:
            yield pl.concat(held, how="vertical_relaxed")
            held, size = [], 0.0
    if held:
        yield pl.concat(held, how="vertical_relaxed")


def _sorted(rows: pl.DataFrame, key: str, path: Path) -> Sorted:
    ordered = rows.sort(key, maintain_order=True)
    counts = ordered.group_by(key, maintain_order=True).len()
    begins = counts["len"].cum_sum() - counts["len"]
    # Small batches, as a slice reads all of each that it touches.
    ordered.drop(key).write_ipc(path, compression="uncompressed", record_batch_size=8192)
    return Sorted(path, dict(zip(counts[key], zip(begins, counts["len"], strict=True), strict=True)))


def take(laid: Sequence[Sorted], first: Any, last: Any) -> pl.DataFrame | None:
    """The rows of the keys from ``first`` to ``last``, both among them; None if there are none."""
    found = []
    for one in laid:
        places = [place for key, place in one.places.items() if first <= key <= last]
        if places:
            wanted = sum(rows for _, rows in places)
            found.append(pl.scan_ipc(one.path).slice(places[0][0], wanted).collect())
    return pl.concat(found, how="vertical_relaxed") if found else None


def height(laid: Sequence[Sorted]) -> int:
    """How many rows there are."""
    return sum(rows for one in laid for _, rows in one.places.values())
