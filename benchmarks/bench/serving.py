"""What a request costs: the gateway, bare Triton and other servers of the same model under the same load.

The cases bank, flights and triage, one real row a request, 1 to 128 clients in a closed loop, and Poisson arrivals at
70% of what an arm can. The gateway has one worker and does all that it does in service: key, validation, log. The arms
run beside each other and are measured in turns, round by round, by one load generator (serving_load.py), so that a
busy machine is busy for all of them; ratios are of the same rounds. `make bench-serving`; a quarter of an hour on two
cores (``--quick``: one short round, written nowhere).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import environment
from benchmarks.bench import serving_load as load
from benchmarks.bench import serving_stack as stack
from benchmarks.bench.serving_stack import Serving
from benchmarks.record import goal, machine, record
from embedded.mlflow import ENVIRONMENT as QUIET
from embedded.ports import Ports
from pipelines.deploy import repository
from pipelines.errors import PerennialError
from pipelines.installation import ROOT

PEERS = (".venv-bench-serving", "requirements-bench-serving.lock")
"""BentoML and LitServe, with what the bundle needs beside them."""
CASES = ("bank", "flights", "triage")
CLIENTS = (1, 8, 32, 128)
RATES = (578, 1700)
"""Requests a second for which the replicas are told."""
SHARE = 0.7
"""Of what a worker can: where it is run, and where the open loop measures."""
GATEWAY, ALONE = "gateway", "gateway, joining off"
BARE, BATCHED = "Triton gRPC", "Triton gRPC, dynamic batching"
FASTAPI = "FastAPI + pydantic + ONNX Runtime"
BENTO, LIT, MLFLOW = "BentoML", "LitServe", "MLflow models serve"
OPEN = (GATEWAY, BARE, BATCHED, FASTAPI)
"""Arms that are measured in an open loop too."""
BOUNDS = {"PERENNIAL_GATEWAY_MAX_REQUESTS": "1024", "PERENNIAL_GATEWAY_CASE_SHARE": "1"}
"""One case may have 192 requests inside by default, an open loop may bring more; the rest of what it does stays on."""
MILLISECONDS = 1000.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How long is measured: rounds of a case, seconds of a turn, of the warm-up before it, and of an open loop.

    A text takes some 20 ms: of 128 clients each has an answer in two or three seconds.
    """

    rounds: Mapping[str, int] = field(default_factory=lambda: {"bank": 3, "flights": 2, "triage": 1})
    seconds: Mapping[str, float] = field(default_factory=lambda: {"bank": 2.0, "flights": 2.0, "triage": 4.0})
    warm: float = 0.3
    open_seconds: float = 6.0
    clients: tuple[int, ...] = CLIENTS


QUICK = Size(
    rounds=dict.fromkeys(CASES, 1), seconds=dict.fromkeys(CASES, 0.7), warm=0.1, open_seconds=1.5, clients=(1, 32)
)


@dataclass(frozen=True)
class Arm:
    """A server under load: how it is asked, the processes that answer, and which of Triton's models."""

    name: str
    ask: Callable[[], load.Http | load.Grpc]
    pids: tuple[int, ...]
    model: str = ""


@dataclass(frozen=True)
class Turn:
    """One measurement of an arm. ``cpu`` are the servers' seconds, ``memory`` their MiB, ``rate`` what was offered."""

    rate: float
    load: load.Load
    cpu: float
    memory: float

    @property
    def per_second(self) -> float:
        """Requests that were answered 200, a second."""
        return len(self.load.seconds) / self.load.wall


Turns = dict[tuple[str, int], list[Turn]]
"""By arm and number of clients (0: open loop), round by round."""


def main() -> None:
    """Measure, and write benchmarks/results/serving.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of 1 and 32 clients; nothing is written")
    parser.add_argument("--cases", default=",".join(CASES), help="with commas; less than all is written nowhere")
    parser.add_argument(
        "--arms", default="", help="only those that have one of these words in their names, with commas"
    )
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    cases = tuple(options.cases.split(","))
    words = tuple(filter(None, options.arms.split(",")))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    began = time.perf_counter()
    rows: list[Row] = []
    capacities: list[Row] = []
    gpu = "triage was not measured"
    with tempfile.TemporaryDirectory(prefix="perennial-serving-") as name:
        home = Path(name).resolve()
        with stack.serving(home, cases) as found:
            rows += [{"case": case, "arm": "all", "not measured": why} for case, why in found.absent.items()]
            for case in found.cases:
                own, absent = of_case(found, case, size, words)
                rows += [*table(case, own), *absent]
                capacities += replicas(case, own)
            if "triage" in found.cases:
                more, gpu = on_gpu(found, size, words)
                rows += more
    print(gpu)
    _told(capacities)
    record(
        "serving",
        rows=rows,
        goals=goals(rows),
        seconds=time.perf_counter() - began,
        packages=("uvicorn", "uvloop", "httptools", "fastapi", "grpcio", "tritonclient", "onnxruntime", "mlflow"),
        more={
            "replicas": capacities,
            "gpu": gpu,
            "peers": peer_versions(),
            "setting": {
                "rounds": dict(size.rounds),
                "seconds": dict(size.seconds),
                "workers": 1,
                "bounds": BOUNDS,
                "Triton": "embedded, mutual TLS, one instance of one thread",
                "load average of 15 minutes": round(os.getloadavg()[2], 1),
            },
        },
        keep=size == Size() and cases == CASES and not words,
    )


# --- the arms -----------------------------------------------------------------------------------


def of_case(found: Serving, case: str, size: Size, words: Sequence[str] = ()) -> tuple[Turns, list[Row]]:
    """Start every arm of a case and measure them; what was found, and a row for each arm that could not be started."""
    absent: list[Row] = []
    with ExitStack() as running:
        arms: list[Arm] = []
        for name, start in starts(found, case).items():
            if words and not any(word.lower() in name.lower() for word in words):
                continue
            try:
                arm = replace(start(running), name=name)
                load.run(same(arm, found, case))
                arms.append(arm)
            except (PerennialError, OSError, subprocess.CalledProcessError) as error:
                print(f"{case}: {name} is left out: {error}", flush=True)
                absent.append({"case": case, "arm": name, "not measured": " ".join(str(error).split())[-300:]})
        turns = load.run(measured(case, arms, size))
    return turns, absent


def starts(found: Serving, case: str, device: str = "KIND_CPU") -> dict[str, Callable[[ExitStack], Arm]]:
    """How each arm is started; a peer's imports, packages and words of failure are its own."""
    sent = stack.rows(case)
    gateway = {name: partial(_gateway, found, case, sent, name) for name in (GATEWAY, ALONE)}
    bare = {name: partial(_bare, found, case, sent, name, device) for name in (BARE, BATCHED)}
    python = sys.executable

    def plain(path: str, argv: Callable[[int], Sequence[str]], ready: str, key: str = "rows") -> Any:
        return partial(_peer, found, case, sent, path, argv, ready, key)

    def uvicorn(port: int) -> Sequence[str]:
        app = "benchmarks.bench.serving_peers:create_app"
        options = ["--host=127.0.0.1", f"--port={port}", "--no-access-log", "--loop=uvloop", "--http=httptools"]
        return [python, "-m", "uvicorn", "--factory", app, *options]

    def bentoml(port: int) -> Sequence[str]:
        peers = str(environment.interpreter(*PEERS))
        return [
            peers,
            "-m",
            "bentoml",
            "serve",
            "benchmarks.bench.serving_bento:Bundle",
            f"--port={port}",
            "--host=127.0.0.1",
        ]

    def litserve(port: int) -> Sequence[str]:
        return [str(environment.interpreter(*PEERS)), "-m", "benchmarks.bench.serving_lit", str(port)]

    def models_serve(port: int) -> Sequence[str]:
        where = ["-m", str(found.models[case]), "-p", str(port), "-h", "127.0.0.1"]
        return [python, "-m", "mlflow", "models", "serve", *where, "-w", "1", "--env-manager", "local"]

    return {
        **gateway,
        **bare,
        FASTAPI: plain("/predict", uvicorn, "/ready"),
        BENTO: plain("/predict", bentoml, "/readyz"),
        LIT: plain("/predict", litserve, "/health"),
        MLFLOW: plain("/invocations", models_serve, "/ping", "dataframe_records"),
    }


def _gateway(found: Serving, case: str, sent: Sequence[Row], name: str, running: ExitStack) -> Arm:
    port = Ports.free().gateway
    app = "benchmarks.bench.serving_alone:app" if name == ALONE else ""
    process = running.enter_context(stack.gateway(found, port, BOUNDS, app))
    requests = stack.requests(case, sent)
    return Arm(name, partial(load.Http, port, requests), (process.pid, found.triton), case)


def _bare(found: Serving, case: str, sent: Sequence[Row], name: str, device: str, running: ExitStack) -> Arm:
    model = f"{case}_{'batched' if name == BATCHED else 'plain'}_{device.lower()}"
    running.enter_context(stack.copied(found, case, model, batching=name == BATCHED, device=device))
    inferences = stack.inferences(found, case, sent, model)
    return Arm(name, partial(load.Grpc, found.settings, inferences), (found.triton,), model)


def _peer(
    found: Serving,
    case: str,
    sent: Sequence[Row],
    path: str,
    argv: Callable[[int], Sequence[str]],
    ready: str,
    key: str,
    running: ExitStack,
) -> Arm:
    port = Ports.free().gateway
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PERENNIAL")},
        **QUIET,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",  # MLflow calls uvicorn by name
        "PYTHONPATH": str(ROOT),
        "BENCH_BUNDLE": str(stack.bundle_of(found, case)),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(found.home / "bentoml"),
        "OMP_NUM_THREADS": "1",
    }
    command = list(argv(port))
    log = found.home / "logs" / f"peer-{port}.log"
    process = running.enter_context(stack.started(command, env, log, f"http://{load.HOST}:{port}{ready}"))
    requests = [load.post(path, json.dumps({key: [row]}, default=str).encode()) for row in sent]
    return Arm("", partial(load.Http, port, requests), (process.pid,))


def peer_versions() -> dict[str, str]:
    """Versions in the peers' environment."""
    lock = dict(line.split("==") for line in (ROOT / PEERS[1]).read_text().split())
    return {name: lock[name] for name in ("bentoml", "litserve", "onnxruntime", "fastapi", "uvicorn", "pydantic")}


def on_gpu(found: Serving, size: Size, words: Sequence[str]) -> tuple[list[Row], str]:
    """Rows of triage with ``serving: {device: gpu}``, and in words whether that was measured."""
    if machine()["gpu"] is None:
        return [], "there is no GPU here: triage with serving: {device: gpu} was not measured"
    case = "triage"
    stack.write_params(found.home, case, {"serving": {"device": "gpu"}})
    stack.reconciled(found, case)
    if why := repository.instead_of_gpu(found.settings.model_repository, case):
        return [], f"there is a GPU, and Triton does not use it: {why}"
    with ExitStack() as running:
        chosen = {
            name: start
            for name, start in starts(found, case, "KIND_GPU").items()
            if name in (GATEWAY, ALONE, BARE, BATCHED) and (not words or any(word in name for word in words))
        }
        turns = load.run(measured(case, [start(running) for start in chosen.values()], size))
    return table("triage on a GPU", turns), "triage was measured with serving: {device: gpu} too"


# --- the measurement ----------------------------------------------------------------------------


async def measured(case: str, arms: Sequence[Arm], size: Size) -> Turns:
    """All arms at every number of clients, in turns; then those of ``OPEN`` at a share of what they could."""
    turns: Turns = {}
    for number in range(size.rounds[case]):
        for clients in size.clients:
            print(f"{case}: round {number + 1}, {clients} clients", flush=True)
            for arm in arms:
                turn = await _turn(arm, size.warm, partial(load.closed, clients=clients, seconds=size.seconds[case]))
                turns.setdefault((arm.name, clients), []).append(turn)
    for number in range(size.rounds[case]):
        for arm in arms:
            if arm.name in OPEN and (rate := SHARE * capacity(turns, arm.name)):
                due = load.schedule(rate, size.open_seconds, seed=number)
                turn = await _turn(arm, size.warm, partial(load.opened, due=due), rate)
                turns.setdefault((arm.name, 0), []).append(turn)
    return turns


async def same(arm: Arm, found: Serving, case: str) -> None:
    """Require an arm to answer the first row as the bundle does; PerennialError if it does not."""
    ask = arm.ask()
    try:
        answer = await ask()
    finally:
        await ask.close()
    expected = stack.expected(found, case)
    if answer.status != load.OK or abs(told(answer.body) - expected) > 1e-4 * max(1.0, abs(expected)):
        said = answer.body[:200].decode(errors="replace")
        raise PerennialError(f"it answers the first row with {answer.status} and not {expected:.6f}: {said}")


def told(body: bytes) -> float:
    """The number in an answer: the score in JSON, without one the prediction; of bare tensors the largest."""
    if body[:1] in (b"{", b"["):
        for name in (b"score", b"prediction"):
            if found := re.search(rb'"%s": ?(-?[0-9.][0-9.e+-]*)' % name, body):
                return float(found[1])
    return float(np.frombuffer(body, np.float32).max())


async def _turn(arm: Arm, warm: float, work: Callable[[load.Ask], Awaitable[load.Load]], rate: float = 0.0) -> Turn:
    ask = arm.ask()
    try:
        await load.closed(ask, 4, warm)
        family = stack.tree(arm.pids, arm.model)
        before = stack.cpu_seconds(family)
        done = await work(ask)
        return Turn(rate, done, stack.cpu_seconds(family) - before, stack.mebibytes(family))
    finally:
        await ask.close()


def capacity(turns: Turns, arm: str) -> float:
    """The most requests a second of an arm, over its numbers of clients."""
    found = [
        _middle(turn.per_second for turn in own) for (name, clients), own in turns.items() if name == arm and clients
    ]
    return max(found, default=0.0)


# --- the tables ---------------------------------------------------------------------------------


def table(case: str, turns: Turns) -> list[Row]:
    """A row for each arm and number of clients: medians over the rounds."""
    return [_row(case, arm, clients, own, turns) for (arm, clients), own in sorted(turns.items(), key=_place)]


def _place(item: tuple[tuple[str, int], Any]) -> tuple[int, int, str]:
    (arm, clients), _ = item
    known = [GATEWAY, ALONE, BARE, BATCHED, FASTAPI, BENTO, LIT, MLFLOW]
    return (clients or sys.maxsize), known.index(arm) if arm in known else len(known), arm


def _row(case: str, arm: str, clients: int, own: Sequence[Turn], turns: Turns) -> Row:
    answered = [turn for turn in own if turn.load.seconds]
    row: Row = {"case": case, "clients": clients or "open", "arm": arm}
    row |= {
        "requests/s": round(_middle(turn.per_second for turn in own), 1),
        "min": round(min(turn.per_second for turn in own), 1),
        "max": round(max(turn.per_second for turn in own), 1),
        **{
            f"p{percent} ms": _figure(
                _middle(load.percentile(turn.load.seconds, percent / 100) for turn in answered) * MILLISECONDS
            )
            for percent in (50, 95, 99)
        },
        "us CPU": _figure(_middle(turn.cpu / len(turn.load.seconds) * 1e6 for turn in answered)),
        "MiB": round(_middle(turn.memory for turn in own)),
        "generator": round(_middle(turn.load.cpu / max(turn.load.wall, 1e-9) for turn in own), 2),
        "errors": sum(turn.load.errors for turn in own),
        "n": len(own),
    }
    if not clients:
        row["offered/s"] = round(_middle(turn.rate for turn in own), 1)
        row["late p99 ms"] = _figure(_middle(load.percentile(turn.load.late, 0.99) for turn in own) * MILLISECONDS)
    else:
        for name, other in (("of Triton", better(turns, clients)), ("of FastAPI", FASTAPI)):
            if (ratio := _ratio(own, turns.get((other, clients), []))) is not None:
                row[name] = ratio
    return row


def better(turns: Turns, clients: int) -> str:
    """Bare Triton's name with dynamic batching or without: whichever answers more at so many clients."""
    rates = {arm: _middle(turn.per_second for turn in turns.get((arm, clients), [])) for arm in (BARE, BATCHED)}
    return BATCHED if rates[BATCHED] > rates[BARE] else BARE


def _ratio(own: Sequence[Turn], other: Sequence[Turn]) -> float | None:
    """How many times another arm's requests a second, round by round, in the middle."""
    pairs = [one.per_second / two.per_second for one, two in zip(own, other, strict=False) if two.per_second]
    return round(_middle(pairs), 2) if pairs else None


def goals(rows: Sequence[Row]) -> list[Row]:
    """The goals of bank at one worker; those whose arms were not measured are left out."""
    bank = {(row["arm"], row["clients"]): row for row in rows if row["case"] == "bank" and "clients" in row}
    found: list[Row] = []
    for clients in (32, 128):
        row = bank.get((GATEWAY, clients), {})
        for key, limit in (("of Triton", 1.2), ("of FastAPI", 1.1)):
            if key in row:
                found.append(goal(f"bank, {clients} clients: requests/s {key}", row[key], limit, "higher"))
    alone = bank.get((GATEWAY, 1))
    bare = [bank[arm, 1]["p50 ms"] for arm in (BARE, BATCHED) if (arm, 1) in bank]
    if alone and bare:
        found.append(goal("bank, 1 client: median latency of bare Triton's", alone["p50 ms"] / min(bare), 1.6))
    for load_of, limit, words in ((32, 60.0, "32 clients"), ("open", 100.0, f"{SHARE:.0%} of the peak, open loop")):
        if (GATEWAY, load_of) in bank:
            found.append(goal(f"bank, {words}: p99 (ms)", bank[GATEWAY, load_of]["p99 ms"], limit))
    if bank:
        errors = sum(row["errors"] for (arm, _), row in bank.items() if arm == GATEWAY)
        found.append(goal("bank: requests that the gateway did not answer 200", errors, 0))
    return found


def replicas(case: str, turns: Turns) -> list[Row]:
    """Little's law: workers for the declared rates at a share of what one can, and the requests inside them then."""
    found: list[Row] = []
    for arm in OPEN:
        own = [turn for turn in turns.get((arm, 0), []) if turn.load.seconds]
        if not own:
            continue
        most = capacity(turns, arm)
        stays = _middle(statistics.fmean(turn.load.seconds) for turn in own)
        row: Row = {"case": case, "arm": arm, "capacity/s": round(most, 1), "mean ms": _figure(stays * MILLISECONDS)}
        for rate in RATES:
            row[f"replicas for {rate}/s"] = load.replicas(rate, most, SHARE)
            row[f"inside at {rate}/s"] = round(load.in_flight(rate, stays), 1)
        found.append(row)
    return found


def _told(rows: Sequence[Row]) -> None:
    for row in rows:
        print(", ".join(f"{name}: {value}" for name, value in row.items()))


def _middle(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def _figure(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
