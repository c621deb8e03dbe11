"""What does the guard of a rollout see, and when? Made-up rollouts and experiments through the real functions.

First part, rollouts (`guard.decide`): how often a challenger that is no worse is taken back, with a look after every
window, and how much traffic meets one that is slow, fails, or loses more, before it is taken back. Beside the guard
stand a z-test of each signal at every look and fixed limits of rates. Second part, experiments (`guard.experiment`):
false positives with a look at every step, and power beside a test at a fixed size. The result file keeps what other
parts of this benchmark have measured, by their names. `make bench-rollout`
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench.rollout_ab import WAYS, cases, late, tried
from benchmarks.bench.rollout_traffic import (
    ERRORS,
    HARM,
    RAMP,
    SHADOWED,
    SLOW_MS,
    WINDOWS,
    Arm,
    Scenario,
    play,
    population,
)
from benchmarks.record import RESULTS, goal, record
from pipelines.arms import WHOLE, latency_bin
from pipelines.guard.decide import Course, course, decide
from pipelines.guard.evidence import Seen
from pipelines.measures import wilson
from pipelines.params import GateParams, GuardParams, Slo

Floats = NDArray[np.float64]

RUNS = 1_000
SIZES = (50, 100, 250, 500, 1000)
"""Requests of the challenger in a window; in shadow: mirrored ones."""
LIMITS = GuardParams(disagreement=0.03)
PROMISED = Slo(p95_ms=50, p99_ms=70)
GATE = GateParams(
    metric="log_loss", min_lift=0.0, confidence=0.95, draws=400, seed=0, slices=(), min_slice_rows=1, costs=()
)
CHECKED = 3
"""Rollouts of a cell in which the guard is asked after each window, as a tick does: it must say the same."""


# --- a cell -------------------------------------------------------------------------------------


def stop_of(scenario: Scenario, slo: Slo, generator: np.random.Generator) -> int | None:
    """The position of the window after which the guard takes a rollout back; later windows are not even made.

    What the guard says at a window depends on it and those before alone (``asked_again``), so that blocks will do.
    """
    made = play(scenario, generator)
    windows: list[Seen] = []
    while block := list(islice(made, max(len(windows), 4))):
        windows += block
        stopped = course(windows, LIMITS, slo).stopped(LIMITS.alpha)
        if stopped is not None:
            return stopped
    return None


def stops(scenario: Scenario, slo: Slo, runs: int, seed: int) -> list[int | None]:
    """The window after which each rollout was taken back."""
    return [stop_of(scenario, slo, np.random.default_rng([seed, number])) for number in range(runs)]


def compared(scenario: Scenario, slo: Slo, runs: int, seed: int) -> dict[str, float]:
    """The share of rollouts that guard and peers take back."""
    found = {"guard": 0, "z_tests": 0, "fixed_limits": 0}
    for number in range(runs):
        windows = list(play(scenario, np.random.default_rng([seed, number])))
        seen = course(windows, LIMITS, slo)
        stopped = seen.stopped(LIMITS.alpha)
        if number < CHECKED:
            asked_again(windows, seen, slo, stopped)
        found["guard"] += stopped is not None
        found["z_tests"] += bool(z_tests(windows).any())
        found["fixed_limits"] += bool(fixed_limits(windows).any())
    return {name: count / runs for name, count in found.items()}


def asked_again(windows: list[Seen], seen: Course, slo: Slo, stopped: int | None) -> None:
    """What :func:`decide` says after each window is what the course of all of them says."""
    for last in range(len(windows)):
        answer = decide(windows[: last + 1], LIMITS, slo=slo)
        failed = stopped is not None and last >= stopped
        same = failed or np.isclose(answer.e_value, seen.total[last])
        if not same or (answer.verdict == "fail") is not failed:
            raise SystemExit(f"after {last + 1} windows: {answer.verdict}, {answer.e_value} and not {seen.total[last]}")


def z_tests(windows: list[Seen]) -> NDArray[np.bool_]:
    """Whether any signal's one-sided z-test at 5%, of all windows so far, refuses "no worse"."""
    pairs = [
        ([seen.challenger.failed for seen in windows], [seen.champion.failed for seen in windows]),
        *(tuple(slow(windows, side, limit) for side in ("challenger", "champion")) for limit in _PROMISES),
    ]
    n, m = (np.cumsum([rows(seen, side) for seen in windows]) for side in ("challenger", "champion"))
    refused = np.zeros(len(windows), np.bool_)
    for own, theirs in pairs:
        x, y = np.cumsum(own), np.cumsum(theirs)
        share = (x + y) / np.maximum(n + m, 1)
        se = np.sqrt(share * (1 - share) * (1 / np.maximum(n, 1) + 1 / np.maximum(m, 1)))
        told = (se > 0) & (n > 0) & (m > 0)
        refused |= told & (x / np.maximum(n, 1) - y / np.maximum(m, 1) > 1.645 * se)
    paired = [np.array(seen.losses) for seen in windows]
    losses = np.array([[len(own), own.sum(), (own**2).sum()] for own in paired])
    k, total, squares = np.cumsum(losses, axis=0).T
    se = np.sqrt(np.maximum(squares - total**2 / np.maximum(k, 1), 0))
    return np.asarray(refused | ((se > 0) & (total > 1.645 * se)), np.bool_)


def fixed_limits(windows: list[Seen]) -> NDArray[np.bool_]:
    """Whether a window's errors, p95 or p99 of the challenger are above their limit, with a hundred requests."""
    n = np.array([rows(seen, "challenger") for seen in windows])
    over = np.array([seen.challenger.failed for seen in windows]) > LIMITS.errors * n
    for limit, share in zip(_PROMISES, (0.05, 0.01), strict=True):
        over |= np.array(slow(windows, "challenger", limit)) > share * n
    return np.asarray(over & (n >= LIMITS.min_requests), np.bool_)


_PROMISES = tuple(latency_bin(limit) for limit in (50, 70))


def rows(seen: Seen, side: str) -> int:
    """The requests of an arm."""
    return int(getattr(seen, side).requests)


def slow(windows: list[Seen], side: str, limit: int) -> list[int]:
    """The requests of an arm above a bin."""
    return [sum(n for place, n in getattr(seen, side).latency.items() if place > limit) for seen in windows]


def harmed(scenario: Scenario, stop: int | None) -> float:
    """The requests that the challenger answered from the fault on, until it was taken back."""
    last = len(scenario.weights) if stop is None else stop + 1
    return scenario.requests * sum(scenario.weights[scenario.begin : last]) / WHOLE


# --- tables -------------------------------------------------------------------------------------


def nulls() -> dict[str, tuple[Scenario, Slo]]:
    """Rollouts of challengers that are no worse, or as bad as is tolerated."""
    same = population(0.0, np.random.default_rng(0), GATE)
    plain = Scenario(requests=5000, labels="paired", rows=400, losses=same)
    edge = replace(plain, fault=Arm(errors=1.5 * ERRORS, refused=0.0075, more_scores=0.05), disagree=0.03)
    bursts = replace(plain, bursts=True)
    return {
        "no effect, labels in pairs": (plain, Slo()),
        "no effect, arms' labels": (replace(plain, labels="arms"), Slo()),
        "no effect, 400 requests a window": (replace(plain, requests=400, rows=100), Slo()),
        "bursts of both arms": (bursts, Slo()),
        "bursts of both arms, SLO declared": (bursts, PROMISED),
        "as bad as is tolerated, everywhere": (edge, Slo()),
        "shadow first, as bad as is tolerated": (replace(edge, weights=SHADOWED, labels="arms"), Slo()),
    }


def nothing_wrong(name: str, runs: int) -> list[dict[str, Any]]:
    """False aborts over the whole ramp."""
    scenario, slo = nulls()[name]
    began = time.perf_counter()
    found = compared(scenario, slo, runs, hash_of(name))
    guard = found.pop("guard")
    return [
        {
            "part": "rollouts",
            "what": name,
            "runs": runs,
            "false_aborts": round(guard, 4),
            "high": round(wilson(round(guard * runs), runs, 0.95).high, 4),
            **{peer: round(share, 4) for peer, share in found.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }
    ]


FAULTS = {
    "latency 18 to 240 ms": Arm(median_ms=SLOW_MS),
    "errors 0.3% to 3%": Arm(errors=0.03),
}
STAGES: dict[str, tuple[int, int]] = {
    "shadow": (0, 0),
    "5%": (500, 0),
    "5%, after 8 clean windows": (500, 8),
    "50%": (5000, 0),
}
"""The weight, and the window in which the fault begins."""


def faults(fault: str, stage: str, runs: int) -> list[dict[str, Any]]:
    """Windows to detection of what is seen without labels, and the traffic that met it until then."""
    (weight, begin), rows = STAGES[stage], []
    for size in SIZES:
        began = time.perf_counter()
        requests = size if weight == 0 else size * WHOLE // weight
        # What is not found after twenty windows counts as twenty-one.
        weights = (weight,) * (begin + 20)
        scenario = Scenario(requests=requests, weights=weights, fault=FAULTS[fault], begin=begin)
        found = stops(scenario, Slo(), runs, hash_of(fault, stage, size))
        taken = np.array([21 if stop is None else stop - begin + 1 for stop in found])
        met = [harmed(scenario, stop) / (requests * WINDOWS) for stop in found]
        rows.append(
            {
                "part": "rollouts",
                "what": fault,
                "stage": stage,
                "challenger_requests": size,
                "runs": runs,
                "windows": float(np.median(taken)),
                "windows_q90": float(np.quantile(taken, 0.9)),
                "within_3": round(float((taken <= 3).mean()), 3),
                "before_the_fault": sum(stop is not None and stop < begin for stop in found),
                "harmed_share": round(float(np.mean(met)), 5),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
    return rows


def hash_of(*what: object) -> int:
    """A seed of its own for each cell, the same everywhere."""
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(repr(what)))


def harm(labels: Literal["paired", "arms"], late: int, runs: int) -> list[dict[str, Any]]:
    """A model that loses more: requests that met it, by how its labels come."""
    began = time.perf_counter()
    losses = population(HARM, np.random.default_rng(0), GATE)
    spread = float((losses[1] - losses[0]).std())
    weights = SHADOWED if labels == "paired" else RAMP
    scenario = Scenario(requests=1000, weights=weights, labels=labels, late=late, losses=losses)
    found = stops(scenario, Slo(), runs, hash_of(labels, late))
    met = np.array([harmed(scenario, stop) for stop in found])
    return [
        {
            "part": "rollouts",
            "what": f"log-loss +{HARM}, paired sd {spread:.2f}",
            "labels": labels,
            "late": late,
            "runs": runs,
            "found": round(float(np.mean([stop is not None for stop in found])), 3),
            "windows": float(np.median([WINDOWS + 1 if stop is None else stop + 1 for stop in found])),
            "harmed_requests": float(np.median(met)),
            "harmed_share": round(float(met.mean() / (1000 * len(weights))), 5),
            "without_a_guard": round(sum(weights) / WHOLE / len(weights), 3),
            "seconds": round(time.perf_counter() - began, 1),
        }
    ]


def goals(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the issue asks of both parts."""
    made = []
    aborted = max(row["false_aborts"] for row in found if "false_aborts" in row)
    made.append(goal("rollouts: false aborts, worst cell", aborted, 0.05))
    seen = [row for row in found if row.get("challenger_requests", 0) >= 250 and row["stage"] != "shadow"]
    for fault in FAULTS:
        own = [row for row in seen if row["what"] == fault]
        made.append(goal(f"{fault}: median windows, worst cell from 250 on", max(row["windows"] for row in own), 3))
        small = min(row["within_3"] for row in own if row["stage"].startswith("5%"))
        made.append(goal(f"{fault}: share within 3 windows at 5%, worst cell from 250 on", small, 0.9, "higher"))
    ab = [row for row in found if row["part"] == "experiments"]
    made.append(goal("experiments: false positives, worst", max(row.get("false_positives", 0.0) for row in ab), 0.05))
    ends = [row["power"] for row in ab if row["method"] == "declared end" and "power" in row]
    made.append(goal("experiments with an end: power where the fixed test has .80", min(ends), 0.74, "higher"))
    return made


# --- the file -----------------------------------------------------------------------------------


def kept(part: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows, goals and provenance of the other parts, as the result file has them."""
    path = RESULTS / "rollout.json"
    if not path.exists():
        return [], [], {}
    before = json.loads(path.read_text())
    others = {name: made for name, made in before.get("parts", {}).items() if name != part}
    names = {name for made in others.values() for name in made["goals"]}
    rows = [row for row in before["rows"] if row["part"] in {one for made in others.values() for one in made["rows"]}]
    return rows, [made for made in before["goals"] if made["name"] in names], others


def write(
    part: str, found: list[dict[str, Any]], made: list[dict[str, Any]], seconds: float, *, keep: bool, **more: Any
) -> None:
    """The result of one part beside what the file has of the others; each says when and by which commit it was made."""
    rows, met, others = kept(part)
    path = record(
        "rollout",
        rows=rows + found,
        goals=met + made,
        seconds=seconds,
        packages=("numpy", "scipy"),
        more={"parts": others},
        keep=keep,
    )
    if not keep:
        return
    result = json.loads(path.read_text())
    result["parts"][part] = {
        "commit": result["commit"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "rows": sorted({row["part"] for row in found}),
        "goals": [one["name"] for one in made],
        **more,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def cells(quick: bool) -> list[Callable[[], list[dict[str, Any]]]]:
    """All that is simulated, each by itself."""
    runs = 40 if quick else RUNS
    # A shadow's latency is not that of answers, and no signal.
    seen = [
        (fault, stage) for fault, arm in FAULTS.items() for stage in STAGES if arm.errors > ERRORS or STAGES[stage][0]
    ]
    return [
        *(partial(nothing_wrong, name, runs) for name in nulls()),
        *(partial(faults, fault, stage, runs) for fault, stage in seen),
        *(partial(harm, "paired", late, runs) for late in (0, 8, 12)),
        *(partial(harm, "arms", late, runs) for late in (0, 8, 12)),
        *(partial(tried, name, quick) for name in cases()),
        *(partial(late, way, quick) for way in WAYS),
    ]


def simulate(quick: bool) -> None:
    """The simulated part, a cell on each core."""
    began = time.perf_counter()
    found: list[dict[str, Any]] = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(cell) for cell in cells(quick)]:
            for row in done.result():
                print(row, flush=True)
                found.append(row)
    write("simulation", found, goals(found), time.perf_counter() - began, keep=not quick, runs=RUNS)


PARTS: dict[str, Callable[[bool], None]] = {"simulation": simulate}
"""What can be measured, each by itself; told whether to be quick."""


def main() -> None:
    """Measure all parts and write benchmarks/results/rollout.json; --quick writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 rollouts and 200 experiments of each kind")
    parser.add_argument("--part", choices=PARTS, help="only this one; the file keeps what it has of others")
    asked = parser.parse_args()
    for part, measure in PARTS.items():
        if asked.part in (None, part):
            measure(asked.quick)


if __name__ == "__main__":
    main()
