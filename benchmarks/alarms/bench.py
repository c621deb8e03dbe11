"""False alarms and delay of the drift rule, of PSI and KS as they are commonly used, and of Evidently's default.

A cell is a kind of traffic, a number of rows per window and a shift of one of 25 features: 20 deployments, each
with a reference of its own (30 days of the same traffic) and 500 consecutive windows without a shift, or 25
times 20 windows that begin with it. A false alarm is a window without a shift in which any feature alarms; a
delay counts windows from the shift's first to the alarm of the moved feature. Ours alarms where the policy
would confirm without looking at labels: the same feature in 2 of 3 windows. The last cell is a contrast, what
not to do: windows that are part of a day, against whole days.

Everything is seeded. Cells are kept in runs/bench-alarms/ until what makes them changes, so a run that was
interrupted goes on. `make bench-alarms [ARGS=--quick]`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alarms import cells as alarm_cells
from benchmarks.alarms import evidently as alarm_evidently
from benchmarks.alarms import rules as alarm_rules
from benchmarks.alarms import traffic as alarm_traffic
from benchmarks.alarms.cells import LENGTH, Cell, evidently, measure
from benchmarks.alarms.rules import PARAMS, judge, verify
from benchmarks.alarms.traffic import Kind, draw, session_rows
from benchmarks.record import RESULTS, goal, record

FOLDER = Path("runs") / "bench-alarms"
WINDOWS, CONTRAST_WINDOWS, EVIDENTLY_WINDOWS = 500, 100, 100
"""Per deployment; of Evidently in all."""
SIZES = (200, 1_000, 10_000)
SHIFTS = (0.1, 0.25, 0.5)
MAX_FALSE = 1e-3
MAX_DELAY = 3


def cells() -> list[Cell]:
    """Without and with shifts; sessions also at as many rows as are worth 1,000 independent ones.

    And a part of a day as the contrast.
    """
    kinds: tuple[Kind, ...] = ("iid", "diurnal", "sessions")
    worth = round(1_000 * session_rows(), -2)
    plain = [Cell(kind, rows, shift) for kind in kinds for shift in (0.0, *SHIFTS) for rows in SIZES]
    plain.sort(key=lambda cell: (cell.shift > 0, cell.kind != "iid"))
    return [*plain, *(Cell("sessions", int(worth), shift) for shift in (0.0, *SHIFTS)), Cell("part of a day", 1_000)]


def made_by() -> str:
    """Names what makes the cells.

    The benchmark's own code, the parameters, and what the project's functions say of a few windows. Of these windows
    ``compare()`` must say the same, whether the cells are kept ones or not.
    """
    found = hashlib.sha256(
        b"".join(
            Path(module.__file__ or "").read_bytes()
            for module in (alarm_traffic, alarm_rules, alarm_evidently, alarm_cells)
        )
    )
    found.update(
        (
            f"{PARAMS.q} {PARAMS.delta0} {PARAMS.bins} {PARAMS.confirm} {PARAMS.out_of} {metadata.version('evidently')}"
        ).encode()
    )
    kinds: tuple[Kind, ...] = ("iid", "diurnal", "sessions")
    for kind in kinds:
        rng = np.random.default_rng(0)
        days = draw(kind, rng, 10, 1_000)
        windows = draw(kind, rng, 5, 1_000, 0.25)
        judged = judge(days, windows)
        verify(days, windows, judged, [0, 1])
        found.update(json.dumps(np.round(judged.p_values, 6).tolist()).encode())
    return found.hexdigest()[:12]


def cached(code: str, cell: Cell, windows: int, peer_windows: int) -> dict[str, Any]:
    """The cell's result, from disk if this code made it before."""
    windows = min(windows, CONTRAST_WINDOWS) if cell.kind == "part of a day" else windows
    path = FOLDER / code / f"{cell.name}-{windows}-{peer_windows}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    result = measure(cell, windows)
    if cell.rows in SIZES and (cell.kind == "iid" or (not cell.shift and cell.kind != "part of a day")):
        result["rules"] |= evidently(cell, peer_windows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    print(f"{cell.name}: {json.dumps(result['rules']['ours'])}, {result['cpu_seconds']:g} s", flush=True)
    return result


def shortest_delay(rows: float, shift: float) -> float:
    """Windows that the best of all rules needs on average, about, at MAX_FALSE per window.

    ``ln(2 F / MAX_FALSE) / (rows shift^2 / 2)``. It watches the mean of each of the F features, up and down, knows the
    size of the shift and adds up all windows; ``rows`` are independent ones. Source: Lorden, Annals of Mathematical
    Statistics 42(6), 1971.

    >>> round(shortest_delay(73, 0.25), 1)
    4.7
    """
    return math.log(2 * len(alarm_rules.NAMES) / MAX_FALSE) / (rows * shift**2 / 2)


def goals(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the rule has to hold; the bounds, not the rates, count."""
    stable = [one for one in found if not one["shift"] and one["kind"] != "part of a day"]
    held = [
        goal(
            f"false alarms per window, 95% bound, {one['kind']}, {one['rows']:,} rows",
            one["rules"]["ours"]["upper95"],
            MAX_FALSE,
        )
        for one in stable
    ]
    for one in found:
        if one["shift"] == 0.25 and one["rows"] >= 1_000:
            delay = one["rules"]["ours"]["median_delay"]
            name = f"median delay of 0.25 sd (windows), {one['kind']}, {one['rows']:,} rows"
            held.append(goal(name, float(LENGTH + 1 if delay is None else delay), MAX_DELAY))
    return held


def markdown(result: dict[str, Any]) -> str:
    """Two small tables of a result file: false alarms per window, and windows until a shift is found."""
    rules = ("ours", "PSI > 0.25", "PSI > 0.1", "KS p < 0.05", "Evidently, any column")
    lines = ["| stable traffic | rows per window | " + " | ".join(rules) + " |", "|" + "---|" * (len(rules) + 2)]
    cells_of = result["cells"]
    for one in (cell for cell in cells_of if not cell["shift"]):
        parts = [_rate(one["rules"].get(rule), ours=rule == "ours") for rule in rules]
        lines.append(f"| {one['kind']} | {one['rows']:,} | " + " | ".join(parts) + " |")
    lines += [
        "",
        "| shift of one feature | rows per window | " + " | ".join(rules) + " |",
        "|" + "---|" * (len(rules) + 2),
    ]
    for one in (cell for cell in cells_of if cell["shift"]):
        parts = [_delay(one["rules"].get(rule)) for rule in rules]
        lines.append(f"| {one['shift']:g} sd, {one['kind']} | {one['rows']:,} | " + " | ".join(parts) + " |")
    return "\n".join(lines)


def _rate(found: dict[str, Any] | None, *, ours: bool) -> str:
    if found is None:
        return "-"
    if ours:
        return f"{found['rate']:.2g} (< {found['upper95']:.1e})"
    return f"{found['rate']:.2g}"


def _delay(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["median_delay"] is None or found["median_delay"] > LENGTH:
        return f"> {LENGTH}"
    return f"{found['median_delay']:g}"


def main() -> None:
    """Run all cells and write benchmarks/results/alarms.json.

    ``--quick`` is a fiftieth of it, ``--markdown`` prints the tables of the kept result.
    """
    arguments = argparse.ArgumentParser(description=main.__doc__)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--markdown", action="store_true")
    given = arguments.parse_args()
    if given.markdown:
        print(markdown(json.loads((RESULTS / "alarms.json").read_text())))
        return
    began = time.perf_counter()
    windows, peer_windows = (WINDOWS // 25, 3) if given.quick else (WINDOWS, EVIDENTLY_WINDOWS)
    code = made_by()
    found = [cached(code, cell, windows, peer_windows) for cell in cells()]
    for one in found:
        if one["shift"]:
            one["shortest_mean_delay"] = round(
                max(1.0, shortest_delay(one["rows"] / one["overdispersion"], one["shift"])), 1
            )
    rows = [
        {"traffic": one["kind"], "rows": one["rows"], "shift": one["shift"]}
        | {rule: result.get("rate", result.get("median_delay")) for rule, result in one["rules"].items()}
        for one in found
    ]
    about = {
        "cells": found,
        "session_rows": round(session_rows(), 1),
        "cpu_seconds": round(sum(one["cpu_seconds"] for one in found), 1),
    }
    record(
        "alarms",
        rows=rows,
        goals=goals(found),
        seconds=time.perf_counter() - began,
        packages=("numpy", "scipy", "evidently"),
        more=about,
        keep=not given.quick,
    )
    print(markdown(about))


if __name__ == "__main__":
    main()
