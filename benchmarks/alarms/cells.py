"""One line of the table of false alarms.

All rules on the same windows, drawn for one kind of traffic, size and shift.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from benchmarks.alarms import evidently as alarm_evidently
from benchmarks.alarms import rules as alarm_rules
from benchmarks.alarms.rules import confirmed, judge, verify
from benchmarks.alarms.traffic import Kind, draw

DAYS = 30
"""Of the reference: as many as the case `loans` trains on."""
DEPLOYMENTS, LENGTH = 20, 20
"""Per cell; LENGTH windows after a shift are looked at."""
BLOCK = 100
RULES = ("ours", "ours, one window", "PSI > 0.25", "PSI > 0.1", "KS p < 0.05")


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


def measure(cell: Cell, windows: int) -> dict[str, Any]:
    """All rules on one cell, with so many ``windows`` per deployment."""
    started = time.process_time()
    length = LENGTH if cell.shift else windows
    flags: dict[str, list[Any]] = {rule: [] for rule in RULES}
    checked = 0
    overdispersed = []
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
            for rule, rule_of in (
                ("ours, one window", "ours"),
                ("PSI > 0.25", "psi25"),
                ("PSI > 0.1", "psi10"),
                ("KS p < 0.05", "ks"),
            )
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
        return {
            "streams": len(hits),
            "found": float(np.isfinite(delays).mean()),
            "median_delay": median if np.isfinite(median) else None,
        }
    alarms = int(flags.any(axis=2).sum())
    windows = flags.shape[0] * flags.shape[1]
    return {"alarms": alarms, "rate": alarms / windows, "upper95": upper(alarms, windows)}


def upper(alarms: int, windows: int) -> float:
    """The one-sided 95% bound of Clopper and Pearson; of no alarms about ``3 / windows``.

    >>> round(upper(0, 10_000), 6)
    0.0003
    """
    if alarms >= windows:
        return 1.0
    return float(beta.ppf(0.95, alarms + 1, windows - alarms))


def _median_delay(share: float) -> int | None:
    """The first window by which half have been found, of a rule that finds ``share`` of all windows; None: never."""
    if share == 0:
        return None
    if share == 1:
        return 1
    # It has no memory: the delay is geometric.
    return max(1, int(np.ceil(np.log(0.5) / np.log1p(-share))))


def evidently(cell: Cell, windows: int) -> dict[str, Any]:
    """Evidently's default on the cell's first windows: any column, and its own verdict on the data set."""
    rng = np.random.default_rng([0, cell.rows, round(100 * cell.shift), *cell.kind.encode()])
    days = draw(cell.kind, rng, DAYS, cell.rows)
    found = alarm_evidently.judge(days, draw(cell.kind, rng, windows, cell.rows, cell.shift))
    verdict = (found.mean(axis=1) >= alarm_evidently.SHARE)[:, None]
    if cell.shift:
        share = float(found[:, 0].mean())
        delay = _median_delay(share)
        return {"Evidently, any column": {"windows": windows, "found_per_window": share, "median_delay": delay}}
    return {
        rule: _summary(flags[None], moved=False) | {"windows": windows}
        for rule, flags in (("Evidently, any column", found), ("Evidently, data set", verdict))
    }
