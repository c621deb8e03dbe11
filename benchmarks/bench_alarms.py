"""False alarms and delay of the drift rule, of PSI and KS as they are commonly used, and of Evidently's default.

A cell is a kind of traffic, a number of rows per window and a shift of one of 25 features: 20 deployments, each
with a reference of its own (30 days of the same traffic) and 500 consecutive windows without a shift, or 25
times 20 windows that begin with it (5 times in diurnal traffic and in sessions). A false alarm is a window without a shift in which any feature alarms; a
delay counts windows from the shift's first to the alarm of the moved feature. Ours alarms where the policy would
confirm without looking at labels: the same feature in 2 of 3 windows.

Everything is seeded. Cells are kept in runs/bench-alarms/ until the code that makes them changes, so a run that
was interrupted goes on. `make bench-alarms [ARGS=--quick]`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from benchmarks import alarm_evidently, alarm_rules, alarm_traffic
from benchmarks.alarm_rules import confirmed, judge, verify
from benchmarks.alarm_traffic import Kind, draw, session_rows
from benchmarks.record import RESULTS, goal, record
from pipelines.drift import compare, reference, stats

FOLDER = Path("runs") / "bench-alarms"
DAYS = 30
"""Of the reference: as many as the case `loans` trains on."""
DEPLOYMENTS, WINDOWS, LENGTH = 20, 500, 20
"""Per cell; LENGTH windows after a shift are looked at."""
FEWER = 100
"""Windows per deployment where the table needs fewer: shifts in other traffic than independent rows, and the contrast."""
BLOCK = 100
EVIDENTLY_WINDOWS = 100
SIZES, SHIFTS = (200, 1_000, 10_000), (0.1, 0.25, 0.5)
RULES = ("ours", "ours, one window", "PSI > 0.25", "PSI > 0.1", "KS p < 0.05")
MAX_FALSE, MAX_DELAY = 1e-3, 3


@dataclass(frozen=True)
class Cell:
    """One line of the table; ``shift`` in standard deviations, 0 for none."""

    kind: Kind
    rows: int
    shift: float = 0.0

    @property
    def name(self) -> str:
        """As the file is called."""
        return f"{self.kind.replace(' ', '-')}-{self.rows}-{self.shift:g}"


def cells() -> list[Cell]:
    """Without and with shifts; sessions also at as many rows as are worth 1,000 independent ones; and a part of a day as the contrast."""
    kinds: tuple[Kind, ...] = ("iid", "diurnal", "sessions")
    worth = round(1_000 * session_rows(), -2)
    plain = [Cell(kind, rows, shift) for kind in kinds for shift in (0.0, *SHIFTS) for rows in SIZES]
    plain.sort(key=lambda cell: (cell.shift > 0, cell.kind != "iid"))
    return [*plain, *(Cell("sessions", int(worth), shift) for shift in (0.0, *SHIFTS)), Cell("part of a day", 1_000)]


def measure(cell: Cell, windows: int) -> dict[str, Any]:
    """All rules on one cell."""
    started = time.process_time()
    windows = windows if cell.kind == "iid" or (cell.kind != "part of a day" and not cell.shift) else min(windows, FEWER)
    length = LENGTH if cell.shift else windows
    flags: dict[str, list[Any]] = {rule: [] for rule in RULES}
    checked, overdispersed = 0, []
    for deployment in range(DEPLOYMENTS):
        rng = np.random.default_rng([deployment, cell.rows, round(100 * cell.shift), *cell.kind.encode()])
        days = draw(cell.kind if cell.kind != "part of a day" else "diurnal", rng, DAYS, cell.rows)
        parts = []
        for start in range(0, windows, BLOCK):
            current = draw(cell.kind, rng, min(BLOCK, windows - start), cell.rows, cell.shift)
            judged = judge(days, current)
            if deployment == 0 and start == 0:
                # The first ones, and those with a flag: there is where an error would show.
                chosen = [0, 1, *np.flatnonzero(judged.ours.any(axis=1))[:2].tolist()]
                checked = verify(days, current, judged, chosen)
            parts.append(judged)
            overdispersed.append(judged.phi)
        streams = {
            rule: np.concatenate([getattr(part, rule_of) for part in parts]).reshape(-1, length, len(alarm_rules.NAMES))
            for rule, rule_of in (("ours, one window", "ours"), ("PSI > 0.25", "psi25"), ("PSI > 0.1", "psi10"), ("KS p < 0.05", "ks"))
        }
        for rule, stream in (streams | {"ours": confirmed(streams["ours, one window"])}).items():
            flags[rule].append(stream)
    found = {rule: _summary(np.concatenate(streams), moved=bool(cell.shift)) for rule, streams in flags.items()}
    return {
        "kind": cell.kind,
        "rows": cell.rows,
        "shift": cell.shift,
        "windows": windows * DEPLOYMENTS,
        "overdispersion": round(float(np.median(overdispersed)), 1),
        "checked_by_compare": checked,
        "cpu_seconds": round(time.process_time() - started, 1),
        "rules": found,
    }


def _summary(flags: Any, *, moved: bool) -> dict[str, Any]:
    """Of streams ``[S, T, F]``: false alarms with their upper bound, or the delay of the moved feature, the first."""
    if moved:
        hits = flags[:, :, 0]
        delays = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
        median = float(np.median(delays))
        return {"streams": len(hits), "found": float(np.isfinite(delays).mean()), "median_delay": median if np.isfinite(median) else None}
    alarms, windows = int(flags.any(axis=2).sum()), flags.shape[0] * flags.shape[1]
    return {"alarms": alarms, "rate": alarms / windows, "upper95": upper(alarms, windows)}


def upper(alarms: int, windows: int) -> float:
    """The one-sided 95% bound of Clopper and Pearson; of no alarms about ``3 / windows``.

    >>> round(upper(0, 10_000), 6)
    0.0003
    """
    return 1.0 if alarms >= windows else float(beta.ppf(0.95, alarms + 1, windows - alarms))


def evidently(cell: Cell, windows: int) -> dict[str, Any]:
    """Evidently's default on the cell's first windows: any column, and its own verdict on the data set."""
    rng = np.random.default_rng([0, cell.rows, round(100 * cell.shift), *cell.kind.encode()])
    days = draw(cell.kind, rng, DAYS, cell.rows)
    found = alarm_evidently.judge(days, draw(cell.kind, rng, windows, cell.rows, cell.shift))
    verdict = (found.mean(axis=1) >= alarm_evidently.SHARE)[:, None]
    if cell.shift:
        share = float(found[:, 0].mean())
        # It has no memory: the delay is geometric, and its median the first window by which half have been found.
        median = None if share == 0 else max(1, int(np.ceil(np.log(0.5) / np.log1p(-share)))) if share < 1 else 1
        return {"Evidently, any column": {"windows": windows, "found_per_window": share, "median_delay": median}}
    return {
        rule: _summary(flags[None], moved=False) | {"windows": windows} for rule, flags in (("Evidently, any column", found), ("Evidently, data set", verdict))
    }


def cached(cell: Cell, windows: int, peer_windows: int) -> dict[str, Any]:
    """The cell's result, from disk if this code made it before."""
    sources = [Path(module.__file__ or "") for module in (alarm_traffic, alarm_rules, compare, reference, stats)]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, Path(__file__)])).hexdigest()[:12]
    path = FOLDER / f"{code}-{windows}-{peer_windows}" / f"{cell.name}.json"
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


def goals(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the rule has to hold; the bounds, not the rates, count."""
    stable = [one for one in found if not one["shift"] and one["kind"] != "part of a day"]
    held = [goal(f"false alarms per window, 95% bound, {one['kind']}, {one['rows']:,} rows", one["rules"]["ours"]["upper95"], MAX_FALSE) for one in stable]
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
    lines += ["", "| shift of one feature | rows per window | " + " | ".join(rules) + " |", "|" + "---|" * (len(rules) + 2)]
    for one in (cell for cell in cells_of if cell["shift"]):
        parts = [_delay(one["rules"].get(rule)) for rule in rules]
        lines.append(f"| {one['shift']:g} sd, {one['kind']} | {one['rows']:,} | " + " | ".join(parts) + " |")
    return "\n".join(lines)


def _rate(found: dict[str, Any] | None, *, ours: bool) -> str:
    if found is None:
        return "-"
    return f"{found['rate']:.2g} (< {found['upper95']:.1e})" if ours else f"{found['rate']:.2g}"


def _delay(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"> {LENGTH}" if found["median_delay"] is None or found["median_delay"] > LENGTH else f"{found['median_delay']:g}"


def main() -> None:
    """Run all cells and write benchmarks/results/alarms.json; ``--quick`` is a fiftieth of it, ``--markdown`` prints the tables of the kept result."""
    arguments = argparse.ArgumentParser(description=main.__doc__)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--markdown", action="store_true")
    given = arguments.parse_args()
    if given.markdown:
        print(markdown(json.loads((RESULTS / "alarms.json").read_text())))
        return
    began = time.perf_counter()
    windows, peer_windows = (WINDOWS // 25, 3) if given.quick else (WINDOWS, EVIDENTLY_WINDOWS)
    found = [cached(cell, windows, peer_windows) for cell in cells()]
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
