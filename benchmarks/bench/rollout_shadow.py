"""What does a shadow cost those who are answered? The real gateway and Triton, a shadow on and off, in turns.

The case bank, one row a request, one worker with key, validation and log on. The champion's own files stand in for a
challenger, as a version of their own in Triton: it costs what a champion costs. First what the worker can, in a closed
loop without a shadow. Then pairs: Poisson arrivals at half of that, the same ones with the shadow and without, one
after the other and in turns first, each followed by a short closed loop. Ratios are of one pair; their interval is
Student's t of the logarithms. ``python -m benchmarks.bench.rollout_shadow``; five minutes.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from benchmarks.bench import serving_load as load
from benchmarks.bench import serving_stack as stack
from benchmarks.bench.serving_stack import Serving
from benchmarks.record import goal, record
from embedded.mlflow import ENVIRONMENT as QUIET
from embedded.ports import Ports
from pipelines import ledger
from pipelines.cases import load_fields
from pipelines.contracts import Action, Order, Stage, Trial
from pipelines.deploy import repository, triton
from pipelines.params import RolloutParams

CASE = "bank"
SHADOW = 2
"""The challenger's version."""
PAIRS = 9
CLIENTS = 32
SHARE = 0.5
"""Of what the worker can: the load at which a shadow is measured."""
GOAL = 1.05
"""How many times the latency without a shadow the 99th percentile with one may be."""
MOST = "answered a second, closed loop of 32"
SPENT = {"worker_ms": "the worker's processor (ms a request)", "triton_ms": "Triton's processor (ms a request)"}
Row = dict[str, Any]


class Turn(NamedTuple):
    """What one turn came to: at half of the capacity, and ``most``, what the worker could at that time.

    ``worker_ms`` and ``triton_ms`` are processor time for each request: of the gateway's worker, and of Triton.
    """

    p50_ms: float
    p99_ms: float
    answered: float
    worker_ms: float
    triton_ms: float
    most: float
    errors: int


def main() -> None:
    """Measure, and write benchmarks/results/rollout-shadow.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.rollout_shadow", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short pairs; nothing is written")
    quick = parser.parse_args().quick
    pairs, seconds = (2, 2.0) if quick else (PAIRS, 8.0)
    os.environ.update(QUIET)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perennial-shadow-") as home, stack.serving(Path(home), [CASE]) as serving:
        _beside(serving)
        port = Ports.free().gateway
        with stack.gateway(serving, port, {"PERENNIAL_GATEWAY_TRAFFIC_SECONDS": "1"}) as worker:
            rate, found = measured(serving, port, worker.pid, pairs, seconds)
            mirrored, dropped = (_counted(port, outcome) for outcome in ("ok", "dropped"))
    rows, made = told(found, rate, mirrored, dropped)
    record("rollout-shadow", rows=rows, goals=made, seconds=time.monotonic() - began, keep=not quick)


def measured(
    serving: Serving, port: int, worker: int, pairs: int, seconds: float
) -> tuple[float, list[tuple[Turn, Turn]]]:
    """The rate of the open loops, and of each pair the turn without and the one with a shadow."""
    sent = stack.requests(CASE, stack.rows(CASE))
    load.run(_closed(port, sent, 1.0))  # warm
    rate = SHARE * min(load.run(_closed(port, sent, seconds / 2)) for _ in range(3))  # one may have had a free machine
    print(f"half of what the worker can: {rate:.0f} requests/s", flush=True)
    found = []
    for number in range(pairs):
        turns: dict[bool, Turn] = {}
        for on in (False, True) if number % 2 else (True, False):
            _switch(serving, port, on=on)
            turns[on] = load.run(_turn(port, sent, load.schedule(rate, seconds, number), (worker, serving.triton)))
        print(f"pair {number + 1}: {turns[False]}\n        {turns[True]}", flush=True)
        found.append((turns[False], turns[True]))
    return rate, found


async def _closed(port: int, sent: Sequence[bytes], seconds: float) -> float:
    """How many requests a second are answered."""
    ask = load.Http(port, sent)
    done = await load.closed(ask, CLIENTS, seconds)
    await ask.close()
    return len(done.seconds) / done.wall


async def _turn(port: int, sent: Sequence[bytes], due: Sequence[float], pids: tuple[int, int]) -> Turn:
    ask = load.Http(port, sent)
    processes = [stack.tree([pid], CASE) for pid in pids]
    before = [stack.cpu_seconds(own) for own in processes]
    done = await load.opened(ask, due)
    spent = [stack.cpu_seconds(own) - was for own, was in zip(processes, before, strict=True)]
    await ask.close()
    most = await _closed(port, sent, due[-1] / 4)
    p50, p99 = (1000 * load.percentile(done.seconds, share) for share in (0.5, 0.99))
    worker, triton_ = (1000 * one / max(1, len(done.seconds)) for one in spent)
    answered = len(done.seconds) / done.wall
    return Turn(
        round(p50, 2),
        round(p99, 2),
        round(answered, 1),
        round(worker, 3),
        round(triton_, 3),
        round(most, 1),
        done.errors,
    )


def _beside(serving: Serving) -> None:
    """Let Triton serve the champion's files once more, as the version on trial."""
    head = ledger.head(serving.settings.ledger, CASE)
    assert head is not None
    fields, folder = load_fields(CASE), serving.settings.model_repository
    with repository.alone(folder, CASE):
        repository.stage(folder, CASE, SHADOW, stack.bundle_of(serving, CASE))
        repository.configure(folder, fields, [head.champion, SHADOW])
        triton.load(serving.settings, CASE)


def _switch(serving: Serving, port: int, *, on: bool) -> None:
    """Open the rollout's shadow or end it, and wait until the gateway goes by that."""
    head = ledger.head(serving.settings.ledger, CASE)
    assert head is not None
    if on is not (head.stage == "shadow"):
        stage: Stage = "shadow" if on else "full"
        action: Action = "open" if on else "abort"
        now = datetime.now(UTC)
        own = head.model_dump(include={"candidate_key", "bundle", "mlflow_run", "verdict_hash", "trigger", "as_of"})
        plan = RolloutParams.model_validate("careful").model_dump(mode="json")
        trial = Trial(**own, plan=plan, step=-1, opened=now, since=now)
        told = {"reason": "measured", "actor": "bench", "stage": stage, "action": action}
        more = {"challenger": SHADOW, "weight": 0, "salt": "bench", "trial": trial} if on else {}
        ledger.append(
            serving.settings.ledger,
            Order(case=CASE, after=head.seq, champion=head.champion, **own, **told, **more),
        )
    deadline = time.monotonic() + 10
    while _gauge(port, "perennial_gateway_rollout_stage", f'{{case="{CASE}"}}') != float(on):
        assert time.monotonic() < deadline, "the gateway does not follow the ledger"
        time.sleep(0.1)
    time.sleep(0.3)


def _gauge(port: int, name: str, labels: str) -> float:
    """The value of one series of the gateway's metrics, 0 where there is none."""
    with urlopen(f"http://{load.HOST}:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{labels}"))


def _counted(port: int, outcome: str) -> float:
    """Rows that a shadow came to."""
    labels = f'{{arm="shadow",case="{CASE}",outcome="{outcome}"}}'
    return _gauge(port, "perennial_gateway_arm_rows_total", labels)


def told(
    found: Sequence[tuple[Turn, Turn]], rate: float, mirrored: float, dropped: float
) -> tuple[list[Row], list[Row]]:
    """The rows and goals of the result: each measure without and with a shadow, and its ratio with the interval."""
    rows: list[Row] = []
    ratios: dict[str, tuple[float, float, float]] = {}
    measures = {"p50_ms": "p50 (ms)", "p99_ms": "p99 (ms)", "answered": "answered a second", "most": MOST} | SPENT
    for name, about in measures.items():
        off, on = ([getattr(turn, name) for turn in turns] for turns in zip(*found, strict=True))
        ratio, low, high = ratios[name] = interval(off, on)
        rows.append(
            {
                "name": about,
                "shadow off": round(statistics.median(off), 2),
                "shadow on": round(statistics.median(on), 2),
                "ratio": round(ratio, 3),
                "low": round(low, 3),
                "high": round(high, 3),
            }
        )
    share = dropped / max(1.0, mirrored + dropped)
    rows.append({"name": "rows that were mirrored", "shadow on": round(mirrored), "dropped": round(share, 4)})
    rows.append({"name": "requests without an answer", "shadow on": sum(on.errors for _, on in found)})
    about = f"at {rate:.0f} requests/s, half of what the worker can"
    made = [
        goal(f"shadow on: p99, times that without ({about})", ratios["p99_ms"][0], GOAL),
        goal(f"shadow on: answered, share of that without ({about})", ratios["answered"][0], 1 / GOAL, "higher"),
    ]
    return rows, made


def interval(off: Sequence[float], on: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of ``on`` to ``off`` (geometric mean over pairs), with its 95% interval."""
    from scipy import stats

    logs = [math.log(one / other) for one, other in zip(on, off, strict=True)]
    mean = statistics.fmean(logs)
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


if __name__ == "__main__":
    main()
