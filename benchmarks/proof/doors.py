"""A gateway under thousands of damaged requests, long bodies and connections that only hold on.

No 500, nobody kept waiting, memory flat. The stack is real: `loans` is trained and rolled out by the line's own steps
into a Triton, and the gateway runs as compose starts it, with two workers. Round by round it is sent mutated requests,
requests drawn from its own OpenAPI document, bodies of megabytes and half-open connections, all at once; beside them a
process of its own asks ``/healthz`` every 20 ms, and the workers' memory is read five times a second. The deadlines are
shorter than the defaults (:data:`BOUNDS`), so that a request that is cut off on purpose is ended within seconds. `make
proof-doors`; a few minutes on two busy cores (``--quick``: one small round, written nowhere).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jsonschema import Draft202012Validator

from benchmarks.proof import doors_requests as sent
from benchmarks.proof.crash import TRAINED, forked
from benchmarks.record import goal, record
from embedded import http, mlflow, services, triton
from embedded.ports import HOST, Ports
from pipelines.cases import load_fields
from pipelines.cases.loans.source import generate
from pipelines.errors import PerennialError
from pipelines.line import runner
from pipelines.line.order import TRAINING
from pipelines.line.step import Run, Step
from pipelines.params_file import load_params
from pipelines.settings import Settings
from serving.gateway.openapi import LABELS, PREDICT

CASE = "loans"
SEED = 5
WORKERS = 2
FIELDS = load_fields(CASE)
OK = 200
BROKEN = 500
UNAVAILABLE = 503
ENDED, NOTHING = 0, -1
"""In the place of a status: the connection was ended without an answer; nothing came at all."""
UNREAD = "answers that nobody reads"
BOUNDS = {
    "PERENNIAL_GATEWAY_HEAD_SECONDS": "2",
    "PERENNIAL_GATEWAY_BODY_SECONDS": "3",
    "PERENNIAL_GATEWAY_ANSWER_SECONDS": "3",
}
HELD_SECONDS = 9.0
"""How long connections are held on to: longer than all deadlines together."""
PATIENCE = 30.0
"""When a request counts as neither answered nor ended."""
DECLARED = (b"try again in a moment", b"PERENNIAL_GATEWAY_DEADLINE_SECONDS")
"""What a 503 of a bound says: requests, bytes or connections at a time, or the deadline for Triton's answer."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is sent: rounds, and what each of them has.

    Mutated and described requests, connections of a kind, bytes and rows of long bodies.
    """

    rounds: int = 5
    mutated: int = 1000
    described: int = 200
    held: int = 30
    silent: int = 900
    bytes: int = 7_800_000
    rows: int = 10_000


QUICK = Size(rounds=1, mutated=150, described=60, held=3, silent=20, bytes=600_000, rows=500)


@dataclass(frozen=True)
class Target:
    """A gateway of this machine, its key, and the processes that are its workers."""

    port: int
    key: str
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    kind: str
    status: int
    body: bytes
    seconds: float


def main() -> None:
    """Run the proof and write benchmarks/results/proof-doors.json; exit code 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round; prints the tables and writes nothing")
    size = QUICK if parser.parse_args().quick else Size()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="perennial-doors-") as folder, gateway(Path(folder).resolve()) as target:
        rows, goals, more = attack(target, size)
    packages = ("uvicorn", "fastapi", "httptools", "uvloop", "msgspec", "hypothesis")
    record(
        "proof-doors",
        rows=rows,
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=packages,
        more=more,
        keep=size == Size(),
    )
    if not all(each["holds"] for each in goals):
        sys.exit(1)


@contextmanager
def gateway(home: Path) -> Iterator[Target]:
    """The real gateway in front of the real Triton, with a champion that the line's own steps made."""
    ports = Ports.free()
    with triton.triton(home, ports):
        settings = triton.settings(home, ports)
        with mlflow.server(home, ports) as url:
            pid = forked(home, lambda: train(settings.model_copy(update={"mlflow_url": url, "actor": "proof"})))
            if os.waitpid(pid, 0)[1]:
                raise PerennialError(f"no champion: {(home / 'log').read_text(errors='replace')[-3000:]}")
        (home / "api_key").write_text("a-key-for-the-proof\n")
        (home / "metrics").mkdir()
        env = {**services.full_environment(home, ports), **BOUNDS, "PROMETHEUS_MULTIPROC_DIR": str(home / "metrics")}
        own = next(
            service for service in services.services(home, ports, env, traffic=False) if service.name == "gateway"
        )
        with (home / "logs" / "gateway.log").open("wb") as log:
            process = subprocess.Popen([*own.argv, f"--workers={WORKERS}"], env=dict(own.env), stdout=log, stderr=log)
        try:
            yield Target(ports.gateway, "a-key-for-the-proof", workers(process, ports.gateway))
        finally:
            process.terminate()
            process.wait(30)


def train(settings: Settings) -> None:
    """The first champion of the case."""
    for step in TRAINING:
        if isinstance(step, Step):
            runner.run(step, Run(load_params(CASE), settings, TRAINED, trigger="initial"))


def workers(process: subprocess.Popen[bytes], port: int) -> tuple[int, ...]:
    """The pids of the workers, once they answer."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        children = psutil.Process(process.pid).children()
        found = [child.pid for child in children if "resource_tracker" not in " ".join(child.cmdline())]
        if len(found) == WORKERS and http.status(f"http://{HOST}:{port}/readyz") == OK:
            return tuple(found)
        time.sleep(0.1)
    raise PerennialError(f"the gateway did not start within 90 s (exit code {process.poll()}): read its log")


def attack(target: Target, size: Size) -> tuple[list[Row], list[Row], Row]:
    """All rounds: the table of rounds, the goals, and further entries of the result."""
    drawn = random.Random(SEED)
    rows = generate(TRAINED.date(), rows_per_day=max(size.rows, 300), seed=SEED).select(FIELDS.names).to_dicts()
    document = json.loads(ask(target.port, "document", sent.request("/openapi.json")).body)
    # What a worker loads with its first requests is no growth.
    send(
        target,
        [("warm", sent.request(PREDICT.format(case=CASE), json.dumps({"rows": rows[:50]}).encode(), target.key))] * 60,
        8,
    )
    table = list[Row]()
    answers = list[Answer]()
    open_ = 0
    processors = processor_seconds(target.pids)
    began = time.monotonic()
    with probing(target.port) as probe, watched(target.pids) as memory:
        for number in range(size.rounds):
            before = memory[-1]
            start = len(memory)
            made, still = one_round(target, size, document, rows, drawn, number)
            time.sleep(2.0)
            answers = answers + made
            open_ = open_ + still
            mebibytes = {"MiB before": before, "MiB peak": max(memory[start:]), "MiB after": memory[-1]}
            table.append(
                {
                    "round": number + 1,
                    "requests": len(made),
                    **grouped(made),
                    **{name: round(value) for name, value in mebibytes.items()},
                }
            )
            print(table[-1], flush=True)
    invalid = Counter(answer.kind for answer in answers if answer.status == OK)["described, invalid"]
    hanging = sum(answer.status == NOTHING for answer in answers)
    kinds = Counter(answer.kind.partition(",")[0] for answer in answers)
    goals = [
        goal("mutated requests", kinds["mutated"], size.rounds * size.mutated, "higher"),
        goal("requests drawn from the OpenAPI document", kinds["described"], size.rounds * size.described, "higher"),
        goal("answers of 5xx but 503 from a declared bound", sum(unwanted(answer) for answer in answers), 0),
        goal("requests that were neither answered nor ended", hanging, 0),
        goal("requests that the document forbids and that were answered 200", invalid, 0),
        goal("connections that outlived their deadline", open_, 0),
        goal("longest answer of /healthz (s)", max(probe["took"]), 1.0),
        goal("answers of /healthz that were not 200", probe["failed"], 0),
        goal(
            "MiB that all workers have grown by, from the second round's end to the last one's",
            table[-1]["MiB after"] - table[min(1, len(table) - 1)]["MiB after"],
            64,
        ),
        goal("MiB of all workers, peak", max(row["MiB peak"] for row in table), 1024),
    ]
    used = (processor_seconds(target.pids) - processors) / (time.monotonic() - began)
    busy = {
        "load average of 15 minutes": round(os.getloadavg()[2], 1),
        "processors that the workers had": round(used, 2),
    }
    return table, goals, {"busy": busy, **said(answers, probe, size)}


def one_round(
    target: Target, size: Size, document: sent.Json, rows: list[Row], drawn: random.Random, number: int
) -> tuple[list[Answer], int]:
    """All kinds of requests at once.

    The answers, and how many held connections were open when all deadlines were over.
    """
    predict = PREDICT.format(case=CASE)
    labels = LABELS.format(case=CASE)
    quick = list[tuple[str, bytes]]()
    for at in range(size.mutated):
        named = [
            {**drawn.choice(rows), "prediction_id": f"r{number}-{at}-{place}"} for place in range(drawn.randint(1, 3))
        ]
        given = [
            {
                "prediction_id": f"r{number}-{drawn.randrange(50)}",
                "label": drawn.randrange(2),
                "revision": drawn.randrange(3),
            }
            for _ in range(2)
        ]
        path, name, items = (labels, "labels", given) if at % 4 == 3 else (predict, "rows", named)
        quick.append(("mutated", sent.mutated(drawn, path, name, items, target.key)))
    valid = {path: Draft202012Validator(sent.schema_of(document, path)) for path in (predict, labels)}
    for path, body in sent.described(document, sorted(valid), size.described, SEED * 1000 + number * 100):
        kind = "described, valid" if valid[path].is_valid(body) else "described, invalid"
        quick.append((kind, sent.request(path, json.dumps(body).encode("utf-8", "surrogatepass"), target.key)))
    drawn.shuffle(quick)
    known = [{"prediction_id": f"long-{at}", "label": at % 2, "revision": number} for at in range(size.rows)]
    whole = sent.request(labels, json.dumps({"labels": known}).encode(), target.key)
    long = [("long", one) for one in (*sent.long_bodies(predict, target.key, rows[: size.rows], size.bytes), whole)] * 2
    with ThreadPoolExecutor(3) as pool:
        parts = [pool.submit(send, target, quick, 12), pool.submit(send, target, long, 3)]
        held = pool.submit(hold, target.port, sent.holding(predict, target.key), size)
        return [answer for part in parts for answer in part.result()], held.result()


def send(target: Target, requests: Sequence[tuple[str, bytes]], threads: int) -> list[Answer]:
    """The answers of requests (their kind, their bytes) that are sent ``threads`` at a time."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda one: ask(target.port, *one), requests))


def ask(port: int, kind: str, data: bytes) -> Answer:
    """Send bytes as they are and read until the answer is whole or the connection ends."""
    began = time.monotonic()
    found = b""
    try:
        with socket.create_connection((HOST, port), timeout=PATIENCE) as connection:
            with suppress(ConnectionError):  # refused while it was being sent: the answer may be there
                connection.sendall(data)
            while not _whole(found) and (piece := connection.recv(65536)):
                found += piece
    except TimeoutError:
        return Answer(kind, NOTHING, found, time.monotonic() - began)
    except ConnectionError:
        pass
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", found)
    return Answer(kind, int(status[1]) if status else ENDED, found.partition(b"\r\n\r\n")[2], time.monotonic() - began)


def _whole(found: bytes) -> bool:
    """Whether an answer has come with all bytes that its head tells of.

    Without a length it ends with the connection.
    """
    head, end, body = found.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and length is not None and not head.startswith(b"HTTP/1.1 100") and len(body) >= int(length[1])


def hold(port: int, kinds: dict[str, tuple[bytes, bytes]], size: Size) -> int:
    """Open connections of every kind and drip into them, longer than any deadline.

    How many of them are not ended then.
    """
    with ExitStack() as opened:
        held = list[tuple[socket.socket, bytes]]()
        for kind, (first, drip) in kinds.items():
            for _ in range(size.silent if kind == "silent" else size.held):
                connection = opened.enter_context(socket.socket())
                if kind == UNREAD:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(PATIENCE)
                with suppress(OSError):  # refused by a bound already: that is an end
                    connection.connect((HOST, port))
                    connection.sendall(first)
                held.append((connection, drip))
        deadline = time.monotonic() + HELD_SECONDS
        while time.monotonic() < deadline:
            for connection, drip in held:
                with suppress(OSError):  # ended
                    connection.setblocking(False)
                    connection.send(drip)
            time.sleep(0.2)
        return sum(not _ended(connection) for connection, _ in held)


def _ended(connection: socket.socket) -> bool:
    """Whether the other side has ended a connection, after what it had sent is read."""
    connection.settimeout(2.0)
    try:
        while connection.recv(2**20):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def probing(port: int) -> Iterator[Row]:
    """``/healthz`` asked by a process of its own for the length of the block; what it found is there afterwards."""
    found: Row = {}
    command = [sys.executable, "-m", "benchmarks.proof.doors_probe", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            found |= json.loads(process.communicate()[0])


@contextmanager
def watched(pids: Sequence[int]) -> Iterator[list[float]]:
    """MiB that processes hold together, a value five times a second for the length of the block."""
    found = list[float]()
    stop = threading.Event()

    def look() -> None:
        while True:
            found.append(sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20)
            if stop.wait(0.2):
                return

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        while not found and not looking.done():
            time.sleep(0.01)
        try:
            yield found
        finally:
            stop.set()
            looking.result()


def processor_seconds(pids: Sequence[int]) -> float:
    """What processes have computed so far, together."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def unwanted(answer: Answer) -> bool:
    """Whether an answer is one that no request may have."""
    declared = answer.status == UNAVAILABLE and any(words in answer.body for words in DECLARED)
    return answer.status >= BROKEN and not declared


def grouped(answers: Sequence[Answer]) -> dict[str, int]:
    """How many answers there were of each kind of status."""
    names = {NOTHING: "nothing", ENDED: "ended"}
    found = Counter(
        names.get(answer.status, f"{answer.status // 100}xx" if answer.status != UNAVAILABLE else "503")
        for answer in answers
    )
    return {name: found[name] for name in ("2xx", "4xx", "503", "5xx", "ended", "nothing")}


def said(answers: Sequence[Answer], probe: Row, size: Size) -> Row:
    """What the goals do not say: answers by kind and status, and the reasons of 5xx.

    Also how long the probe waited and how busy the machine was.
    """
    took = sorted(probe["took"])
    kinds = {
        kind: [answer for answer in answers if answer.kind == kind]
        for kind in sorted({answer.kind for answer in answers})
    }
    return {
        "statuses": {kind: dict(sorted(Counter(answer.status for answer in of).items())) for kind, of in kinds.items()},
        "5xx": dict(
            Counter(answer.body.decode(errors="replace")[:200] for answer in answers if answer.status >= BROKEN)
        ),
        "valid by the document and refused": dict(
            Counter(
                answer.body.decode(errors="replace")[:120]
                for answer in kinds.get("described, valid", [])
                if answer.status != OK
            ).most_common(10)
        ),
        "healthz": {
            "asked": len(took),
            "median (s)": took[len(took) // 2],
            "p99 (s)": took[int(len(took) * 0.99)],
            "longest ten (s)": took[-10:],
            "of the longest, to connect, which is the kernel's (s)": probe["connected"][probe["took"].index(took[-1])],
            "longest delay of the probe itself, by the machine (s)": probe["late"],
        },
        "setting": {**vars(size), "workers": WORKERS, "seed": SEED, **BOUNDS},
    }


if __name__ == "__main__":
    main()
