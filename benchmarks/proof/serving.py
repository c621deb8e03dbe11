"""What clients see of a gateway when things go wrong: Triton killed, releases, three times the load, a storm beside.

The stack is real: `bank` and `triage` are trained by the line's own steps into a Triton, and one worker of the gateway
runs as a stack starts it, with its default bounds. Nobody restarts a Triton in the embedded stack, as compose does:
the proof stands in for that, by the stack's own start and restore, as soon as the process is gone. Then

- *outage*: SIGKILL to Triton under 50 requests a second, without a declared default answer and with one;
- *reload*: 20,000 requests while two versions take turns as champion and Triton loads their files anew each time;
- *overload*: a minute of three times what the worker can, of the slow case and of the fast one, as Poisson arrivals;
- *storm*: three times what one case can, beside calm traffic for the other, and the other way round.

`make proof-serving`; some eight minutes on two cores (``--quick``: a fraction of it, written nowhere).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench import serving_load as load
from benchmarks.bench import serving_stack as stack
from benchmarks.bench.serving_stack import Serving
from benchmarks.proof.crash import forked
from benchmarks.record import goal, record
from embedded import probe, triton
from embedded.processes import tagged
from embedded.services import settings_environment
from pipelines.errors import PerennialError
from pipelines.settings import Settings

FAST, SLOW = "bank", "triage"
SECOND = datetime(2009, 1, 1, tzinfo=UTC)
"""As of when the second version of bank is trained."""
SLO_MS = {FAST: 200.0, SLOW: 2000.0}
"""``serving.slo.p99_ms`` of the cases in overload and storm: what an accepted request is promised."""
DEFAULT = 0.25
"""``serving.default`` of bank, while it has one."""
RATE = 50.0
ROWS = {FAST: 10, SLOW: 1}
"""Rows of a request in overload and storm: one load generator cannot send three times what bank can of single rows."""
STORM = 3.0
"""How many times its capacity a case is asked for in an overload and in a storm."""
CALM = {FAST: 100.0, SLOW: 10.0}
"""Requests a second of the case beside the storm."""
MOST_SECONDS = 10.0
"""From Triton's end until everybody has answers again."""
SETTLES = 2.5
"""Seconds in which a gateway finds a Triton that is back: its breaker's pause, its reconnections' longest one."""
AT_ONCE_MS = 100.0
"""What the slowest hundredth of the refusals may take."""
GROWN = 32.0
"""MiB by which a worker may grow in the last three quarters of an overload."""
NEVER = 1e9
"""In place of the milliseconds of what did not happen."""
WITHIN = 1.5
LEAST_TURNS = 4
"""Releases during the reload."""
UNAVAILABLE = 503
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Seconds of an outage and of its calm before the kill, requests of the reload, seconds and rounds of the rest."""

    outage: float = 25.0
    kill_after: float = 5.0
    reload: int = 20_000
    overload: float = 60.0
    storm: float = 8.0
    rounds: int = 3
    measure: float = 5.0


QUICK = Size(outage=12.0, kill_after=2.0, reload=2000, overload=6.0, storm=3.0, rounds=1, measure=2.0)


@dataclass(frozen=True)
class Seen:
    """One answer: when it was asked for (monotonic), the seconds it took, its status, what it said."""

    at: float
    seconds: float
    status: int
    body: bytes


@dataclass
class Client:
    """Asks the gateway for one case, and keeps what came back; latencies count from when the asking began."""

    port: int
    requests: Sequence[bytes]
    seen: list[Seen] = field(default_factory=list)
    http: load.Http | None = None

    async def __call__(self) -> load.Answer:
        """The next request's answer."""
        self.http = self.http or load.Http(self.port, self.requests)
        began = time.monotonic()
        answer = await self.http()
        self.seen.append(Seen(began, time.monotonic() - began, answer.status, answer.body))
        return answer

    async def close(self) -> None:
        """Close the connections."""
        if self.http is not None:
            await self.http.close()


@dataclass(frozen=True)
class Target:
    """A gateway of one worker before a Triton, and each case's rows."""

    serving: Serving
    gateway: int
    rows: Mapping[str, Sequence[Row]]

    @asynccontextmanager
    async def client(self, case: str, each: int = 1) -> AsyncIterator[Client]:
        """Asks for a case, ``each`` rows a request, for the length of the block."""
        client = Client(self.serving.ports.gateway, stack.requests(case, self.rows[case], each))
        try:
            yield client
        finally:
            await client.close()


PARTS = ("outage", "reload", "overload", "storm")


def main() -> None:
    """Run the proof and write benchmarks/results/proof-serving.json; exit code 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of it; prints the tables and writes nothing")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas; less than all is written nowhere")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    parts = tuple(options.parts.split(","))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    began = time.perf_counter()
    cases = (FAST, SLOW) if {"overload", "storm"} & set(parts) else (FAST,)
    with tempfile.TemporaryDirectory(prefix="perennial-proof-") as name:
        home = Path(name).resolve()
        with stack.serving(home, cases, dict.fromkeys(cases, declared()), keep_mlflow=True) as found:
            if "reload" in parts:
                second_version(found)
            port = found.ports.gateway
            with stack.gateway(found, port) as process:
                target = Target(found, process.pid, {case: stack.rows(case) for case in cases})
                rows, goals = load.run(proved(target, size, parts))
    record(
        "proof-serving",
        rows=[{"part": name, "what": what, "value": value} for name, row in rows for what, value in row.items()],
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("uvicorn", "uvloop", "httptools", "grpcio", "tritonclient"),
        more={
            "setting": {
                **vars(size),
                "workers": 1,
                "slo ms": SLO_MS,
                "rows": ROWS,
                "rate": RATE,
                "storm": STORM,
                "calm": CALM,
            },
            "load average of 15 minutes": round(os.getloadavg()[2], 1),
        },
        keep=size == Size() and parts == PARTS,
    )
    if not all(each["holds"] for each in goals):
        sys.exit(1)


def declared(default: float | None = None, slo: float | None = None) -> dict[str, Any]:
    """The parameters of a case here, in place of its own: a default answer and a promised p99 (ms), or neither."""
    serving: dict[str, Any] = {}
    if default is not None:
        serving["default"] = default
    if slo is not None:
        serving["slo"] = {"p99_ms": slo}
    # What the second version learns from: nobody has asked for a row yet, so the log is empty.
    return {"serving": serving, "training_rows": "source"}


async def proved(target: Target, size: Size, parts: Sequence[str]) -> tuple[list[tuple[str, Row]], list[Row]]:
    """What the parts that are asked for came to, by their names, and the goals."""
    rows: list[tuple[str, Row]] = []
    goals: list[Row] = []
    if "outage" in parts:
        for default in (None, DEFAULT):
            found = await outage(target, size, default)
            rows.append((named(default), found))
            goals += outage_goals(found)
        await declare(target, FAST)  # a default would hide what fails below
    if "reload" in parts:
        rows.append(("reload", await reload(target, size)))
        goals += reload_goals(rows[-1][1], size)
    for case, promised in SLO_MS.items():
        if case in target.rows:
            await declare(target, case, slo=promised)
    if "overload" in parts:
        for case in (SLOW, FAST):
            found = await overload(target, size, case)
            rows.append((f"overload of {case}", found))
            goals += overload_goals(case, found)
    if "storm" in parts:
        for calm, storming in ((FAST, SLOW), (SLOW, FAST)):
            found = await storm(target, size, calm, storming)
            rows.append((f"storm of {storming}", found))
            goals += storm_goals(found)
    return rows, goals


# --- Triton is killed ---------------------------------------------------------------------------


async def outage(target: Target, size: Size, default: float | None) -> Row:
    """Kill Triton under load, start it again, and say who was answered what and when."""
    settings = target.serving.settings
    await declare(target, FAST, default=default)
    async with target.client(FAST) as client:
        await load.closed(client, 4, 0.5)
        before = logged(settings, FAST)
        client.seen.clear()
        began = time.monotonic()
        loading = asyncio.create_task(load.opened(client, load.schedule(RATE, size.outage, seed=1)))
        await asyncio.sleep(size.kill_after)
        pid = triton_pid(target.serving)
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        back = await asyncio.to_thread(supervise, target.serving, pid)
        found = await loading
        seen = [one for one in client.seen if one.at >= began]
    await asyncio.sleep(1.0)
    named = Counter(answered_ids(seen))
    new = Counter(logged(settings, FAST)) - Counter(before)
    refused = [one for one in seen if one.status == UNAVAILABLE]
    failed = [one for one in seen if one.status != load.OK]
    return {
        "default": default is not None,
        "requests": len(seen),
        "statuses": told(found.statuses),
        "unanswered": found.statuses[load.NOTHING] + found.statuses[load.ENDED],
        "503 before the kill": sum(one.at + one.seconds < killed for one in refused),
        "503 after Triton was back": sum(one.at > back + SETTLES for one in refused),
        "Triton back s": round(back - killed, 2),
        "all answered s": round(max((one.at + one.seconds for one in failed), default=killed) - killed, 2),
        "default answers": sum(b'"default"' in one.body for one in seen if one.status == load.OK),
        "answered and not logged": sum((named - new).values()),
        "logged and not answered": sum((new - named).values()),
        "longest s": round(max(one.seconds for one in seen), 2),
        "late p99 ms": figure(load.percentile(found.late, 0.99) * 1000),
        "503s said": reasons(refused),
    }


async def declare(target: Target, case: str, default: float | None = None, slo: float | None = None) -> None:
    """Have the gateway follow a case's parameters with this default answer and promise, or without."""
    stack.write_params(target.serving.home, case, declared(default, slo))
    await asyncio.sleep(3.0)  # it looks at its cases every second


def named(default: float | None) -> str:
    """An outage's name."""
    return "outage" if default is None else "outage with a default answer"


def outage_goals(row: Row) -> list[Row]:
    """Every request is answered, 503 only while Triton is away, none with a default answer; the log has no gap."""
    name = named(DEFAULT if row["default"] else None)
    found = [
        goal(f"{name}: requests without an answer", row["unanswered"], 0),
        goal(f"{name}: statuses other than 200 and 503", len(row["statuses"].keys() - {"200", "503"}), 0),
        goal(f"{name}: 503 before Triton's end", row["503 before the kill"], 0),
        goal(f"{name}: 503 after Triton was back", row["503 after Triton was back"], 0),
        goal(f"{name}: seconds from Triton's end until everybody was answered", row["all answered s"], MOST_SECONDS),
        goal(f"{name}: answered rows that are not in the log", row["answered and not logged"], 0),
        goal(f"{name}: rows in the log that were not answered", row["logged and not answered"], 0),
    ]
    if row["default"]:
        found.append(goal(f"{name}: 503", row["statuses"].get("503", 0), 0))
        found.append(goal(f"{name}: flagged default answers", row["default answers"], 1, "higher"))
    return found


def triton_pid(serving: Serving) -> int:
    """The Triton that runs now."""
    [pid] = [pid for pid in tagged(triton.stack_tag(serving.home), "triton") if is_server(pid)]
    return pid


def is_server(pid: int) -> bool:
    """Whether a process is Triton itself, not a stub of it."""
    try:
        return bool(psutil.Process(pid).name().startswith("tritonserver"))
    except psutil.NoSuchProcess:
        return False


def supervise(serving: Serving, pid: int) -> float:
    """Start Triton again once ``pid`` is gone, as a supervisor would; when all champions answered (monotonic)."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    triton.start_triton(serving.home, serving.ports)
    broken: list[str] = []
    probe.restore(serving.home, serving.ports, broken, serving.settings)
    if broken:
        raise PerennialError(f"champions that did not come back: {'; '.join(broken)}")
    return time.monotonic()


def logged(settings: Settings, case: str) -> list[str]:
    """The ids of all rows in a case's prediction log, open segments included."""
    found: list[str] = []
    for path in sorted((settings.prediction_log / case / "predictions").glob("*.jsonl*")):
        found += [json.loads(line)["prediction_id"] for line in path.read_bytes().split(b"\n")[:-1]]
    return found


def answered_ids(seen: Sequence[Seen]) -> list[str]:
    """The ids of all rows that were answered."""
    bodies = b"\n".join(one.body for one in seen if one.status == load.OK)
    return [name.decode() for name in re.findall(rb'"prediction_id":"([^"]+)"', bodies)]


def reasons(refused: Sequence[Seen]) -> dict[str, int]:
    """What refusals said, numbers left out."""
    said = Counter(re.sub(rb"[0-9.]+", b"#", one.body)[:110].decode(errors="replace") for one in refused)
    return dict(said.most_common(4))


# --- versions take turns ------------------------------------------------------------------------


def second_version(serving: Serving) -> None:
    """Train and register another version of the fast case; whether the gate would have it does not matter here."""
    print(f"{FAST}: a second version is trained", flush=True)
    stack.finished(serving.home, forked(serving.home, partial(stack.train, serving.settings, FAST, SECOND, "manual")))


async def reload(target: Target, size: Size) -> Row:
    """So many requests while the versions take turns and Triton loads them anew; who was answered by what."""
    turns = target.serving.home / "turns"
    with turns_taken(target.serving, turns) as check:
        async with target.client(FAST) as client:
            while not turns.exists():  # its imports are over, and the first turn
                await asyncio.sleep(0.1)
                check()
            found = await load.counted(client, 32, size.reload)
            while int(turns.read_text()) < LEAST_TURNS:  # the requests were over sooner
                check()
                more = await load.counted(client, 32, 500)
                found.seconds += more.seconds
                for status, took in more.others.items():
                    found.others.setdefault(status, []).extend(took)
            seen = client.seen
    bodies = b"\n".join(one.body for one in seen if one.status == load.OK)
    return {
        "requests": len(seen),
        "statuses": told(found.statuses),
        "errors": found.errors,
        "releases": int(turns.read_text()),
        "failed said": reasons([one for one in seen if one.status != load.OK]),
        "versions": dict(Counter(map(int, re.findall(rb'"version":(\d+)', bodies)))),
        "p99 ms": figure(load.percentile(found.seconds, 0.99) * 1000),
        "longest s": round(max(one.seconds for one in seen), 2),
    }


@contextmanager
def turns_taken(serving: Serving, turns: Path) -> Iterator[Callable[[], None]]:
    """Have a process take turns for the length of the block, and write into ``turns`` how many there were.

    Gives a check that raises PerennialError with the process's last words if it has failed.
    """
    stop = serving.home / "stop"
    log = serving.home / "logs" / "turns.log"
    command = [sys.executable, "-m", "benchmarks.proof.serving_turns", FAST, str(stop), str(turns)]
    env = {**os.environ, **settings_environment(serving.home, serving.ports)}
    with log.open("wb") as file, subprocess.Popen(command, env=env, stdout=file, stderr=file) as process:

        def check() -> None:
            if process.poll() not in (None, 0):
                raise PerennialError(f"no turns are taken: {log.read_text(errors='replace')[-2000:]}")

        try:
            yield check
            stop.touch()
            process.wait(60)
            check()
        finally:
            process.kill()


def reload_goals(row: Row, size: Size) -> list[Row]:
    """All are answered 200, and versions did change meanwhile."""
    return [
        goal("reload: requests", row["requests"], size.reload, "higher"),
        goal("reload: requests that were not answered 200", row["errors"], 0),
        goal(
            "reload: releases meanwhile, each with Triton loading the files anew",
            row["releases"],
            LEAST_TURNS,
            "higher",
        ),
        goal("reload: versions that answered", len(row["versions"]), 2, "higher"),
    ]


# --- three times what it can --------------------------------------------------------------------


async def overload(target: Target, size: Size, case: str) -> Row:
    """So many seconds of :data:`STORM` times what the worker can of a case; what became of whom, and of its memory.

    Of the slow case the model is what there is too little of, of the fast one the worker's own processor.
    """
    can = await capacity(target, case, size)
    process = psutil.Process(target.gateway)
    async with target.client(case, ROWS[case]) as client:
        began = time.monotonic()
        computed = process_seconds(process)
        watching = asyncio.create_task(watched(process, size.overload))
        found = await load.opened(client, load.schedule(STORM * can, size.overload, seed=2))
        memory = await watching
        took_all = time.monotonic() - began
        used = (process_seconds(process) - computed) / took_all
        seen = client.seen
    accepted = [one.seconds * 1000 for one in seen if one.status == load.OK]
    refused = [one for one in seen if one.status == UNAVAILABLE]
    took = [one.seconds * 1000 for one in refused]
    rest = memory[len(memory) // 4 :]
    return {
        "capacity/s": round(can),
        "offered/s": round(len(found.late) / found.wall),
        "requests": len(seen),
        "statuses": told(found.statuses),
        "accepted/s": round(len(accepted) / found.wall),
        "accepted ms (p50, p95, p99)": quantiles(accepted),
        "slo ms": SLO_MS[case],
        "refused ms (p50, p95, p99)": quantiles(took),
        "MiB before and after": [round(memory[0]), round(memory[-1])],
        "MiB a minute": round(slope(rest) * 60, 1),
        "MiB grown": round(slope(rest) * size.overload * 0.75, 1),
        "worker's cores": round(used, 2),
        "worker's us a request": round(used * took_all / len(seen) * 1e6),
        "generator's cores": round(found.cpu / found.wall, 2),
        "late p99 ms": figure(load.percentile(found.late, 0.99) * 1000),
        "503s said": reasons(refused),
    }


def overload_goals(case: str, row: Row) -> list[Row]:
    """Who is let in has what was promised, who is not is told at once, and memory stays."""
    name = f"overload of {case}"
    strange = sum(count for status, count in row["statuses"].items() if status not in ("200", "503"))
    refused = row["refused ms (p50, p95, p99)"]
    accepted = row["accepted ms (p50, p95, p99)"]
    return [
        goal(f"{name}: offered, of the capacity", row["offered/s"] / row["capacity/s"], STORM * 0.95, "higher"),
        goal(f"{name}: p99 of accepted requests (ms), their SLO", accepted[2] if accepted else NEVER, row["slo ms"]),
        goal(f"{name}: answers that are neither 200 nor 503", strange, 0),
        goal(f"{name}: p99 of refusals (ms)", refused[2] if refused else NEVER, AT_ONCE_MS),
        goal(f"{name}: accepted, of the capacity", row["accepted/s"] / row["capacity/s"], 0.5, "higher"),
        goal(f"{name}: MiB that the worker grew by in the last three quarters", row["MiB grown"], GROWN),
    ]


async def capacity(target: Target, case: str, size: Size) -> float:
    """Requests of :data:`ROWS` rows that the worker answers 200 to 32 clients, a second."""
    async with target.client(case, ROWS[case]) as client:
        await load.closed(client, 32, 0.5)
        found = await load.closed(client, 32, size.measure)
    return len(found.seconds) / found.wall


async def watched(process: psutil.Process, seconds: float) -> list[float]:
    """MiB of a process, twice a second."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found.append(process.memory_info().rss / 2**20)
        await asyncio.sleep(0.5)
    return found


def slope(values: Sequence[float], step: float = 0.5) -> float:
    """The least-squares slope of values that were taken every ``step`` seconds, a second."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression([step * place for place in range(len(values))], values).slope


def process_seconds(process: psutil.Process) -> float:
    """What a process has computed."""
    return float(sum(process.cpu_times()[:2]))


# --- a storm beside -----------------------------------------------------------------------------


async def storm(target: Target, size: Size, calm: str, storming: str) -> Row:
    """Calm traffic for one case, without and with a storm of the other, round by round; p99 of both."""
    can = await capacity(target, storming, size)
    quiet: list[float] = []
    beside: list[float] = []
    statuses: dict[str, Counter[int]] = {"calm": Counter(), "storm": Counter()}
    for number in range(size.rounds):
        for with_storm in (False, True):
            async with target.client(calm) as one, target.client(storming, ROWS[storming]) as other:
                await load.closed(one, 2, 0.3)
                one.seen.clear()
                work = [load.opened(one, load.schedule(CALM[calm], calm_seconds(calm, size), seed=number))]
                if with_storm:
                    work.append(load.opened(other, load.schedule(STORM * can, calm_seconds(calm, size), seed=number)))
                found = await asyncio.gather(*work)
                took = load.percentile([each.seconds for each in one.seen if each.status == load.OK], 0.99)
                (beside if with_storm else quiet).append(took)
                if with_storm:
                    statuses["calm"] += found[0].statuses
                    statuses["storm"] += found[1].statuses
    ratios = [there / alone for there, alone in zip(beside, quiet, strict=True)]
    return {
        "calm": calm,
        "storming": storming,
        "capacity/s": round(can, 1),
        "p99 ms without": [figure(value * 1000) for value in quiet],
        "p99 ms with": [figure(value * 1000) for value in beside],
        "ratio": round(statistics.median(ratios), 2),
        "calm statuses": told(statuses["calm"]),
        "statuses": told(statuses["storm"]),
    }


def storm_goals(row: Row) -> list[Row]:
    """The calm case hardly notices."""
    calm = row["calm"]
    bad = sum(count for status, count in row["calm statuses"].items() if status != "200")
    name = f"storm of {row['storming']}"
    return [
        goal(f"{name}: {calm}'s p99, of that without a storm", row["ratio"], WITHIN),
        goal(f"{name}: {calm}'s requests that were not answered 200", bad, 0),
    ]


def calm_seconds(case: str, size: Size) -> float:
    """How long is measured: a hundredth of few requests is one of them."""
    return size.storm * (1.0 if CALM[case] * size.storm >= 200 else 2.0)


def told(statuses: Mapping[int, int]) -> dict[str, int]:
    """Answers by status, in words where there was none."""
    names = {load.NOTHING: "nothing", load.ENDED: "ended"}
    return {names.get(status, str(status)): count for status, count in sorted(statuses.items()) if count}


def quantiles(values: Sequence[float]) -> list[float]:
    """p50, p95 and p99."""
    return [figure(load.percentile(values, share)) for share in (0.5, 0.95, 0.99)] if values else []


def figure(value: float) -> float:
    """Three digits that count."""
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
