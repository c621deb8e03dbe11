"""Do logged scores come out again, and is it named what is wrong where they do not? `make proof-rescore`.

A real log is made: champions of `bank` (two versions), `triage` (texts) and, where its data is installed, `flights` (a
number) are trained by the line's own steps into a Triton, and a gateway answers eight clients at once with requests of
1 to 20 rows, so that rows share inferences. At the end Triton is given another model's file for a version while it
answers. Then everything is stopped, every row is scored again, and faults are planted in copies of that state one by
one (rescore_faults.py). A fault is found if `rescore` says no or stops with an error, and named if the part that it
says is wrong is the one that was changed, with the words that were expected of it.

``--logs FOLDER ...`` are states of `make demo`, whose whole logs are scored again, too: they are copied, not touched.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from benchmarks.bench import serving_stack as stack
from benchmarks.bench.serving_load import HOST
from benchmarks.proof.rescore_faults import FAULTS, NUMBER, TABLE, TEXT, Fault
from benchmarks.record import goal, record
from pipelines import ledger
from pipelines.cases import load_fields, part
from pipelines.contracts import Window
from pipelines.data import log as prediction_log
from pipelines.deploy import triton as triton_calls
from pipelines.errors import PerennialError
from pipelines.fields import row_sent
from pipelines.params_file import load_params
from pipelines.rescoring.command import rescore
from pipelines.runtime import MODEL
from pipelines.settings import Settings, read_settings
from pipelines.steps import release
from serving.gateway.openapi import PREDICT

SECOND = datetime(2008, 11, 1, tzinfo=UTC)
"""As of when the second version of bank is trained."""
ROWS = {TABLE: 6_000, NUMBER: 4_000, TEXT: 600}
QUICK = {TABLE: 600, TEXT: 60}
OTHER_FILE_ROWS = 200
CLIENTS = 8
TRIES = 60
REQUESTS = (1, 1, 1, 2, 5, 20)
"""Rows of the requests, in turn."""
SECONDS_PER_100K = 5.0
"""Of one core, all threads counted: on a machine with other work the wall's seconds are those of that work."""
LARGE = 20_000
"""Rows of a log whose speed is a goal, those of a demo: what a command costs at all fills a smaller one's figure."""
EVER = Window(start=datetime(1990, 1, 1, tzinfo=UTC), end=datetime(2100, 1, 1, tzinfo=UTC))
OWN = ("artefacts", "lake", "prediction_log", "model_repository")
Row = dict[str, Any]
Spans = Mapping[str, Window]


@dataclass(frozen=True)
class State:
    """A stopped state folder, and by case the spans of its traffic: as it was served, and by another file."""

    settings: Settings
    spans: Mapping[str, Spans]


def main() -> None:
    """Make a log, score it again, plant the faults; write benchmarks/results/proof-rescore.json.

    Exit code 1 if a goal does not hold.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof.rescore", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows of two cases, nothing written")
    parser.add_argument("--logs", nargs="+", default=[], type=Path, metavar="FOLDER", help="states of make demo")
    parser.add_argument("--keep", type=Path, help="make the state in this folder, or take the one that is there")
    options = parser.parse_args()
    began = time.perf_counter()
    rows = QUICK if options.quick else {case: count for case, count in ROWS.items() if not stack.missing(case)}
    with tempfile.TemporaryDirectory(prefix="perennial-rescore-") as name:
        folder = Path(name).resolve()
        state = kept(options.keep.resolve() if options.keep else folder / "state", rows)
        logs = [replayed("own stack", case, state.settings, spans["served"]) for case, spans in state.spans.items()]
        logs += [log for home in options.logs for log in of_demo(home, folder)]
        trials = [trial(fault, state, folder) for fault in FAULTS if fault.case in state.spans]
    goals = goals_of(logs, trials)
    record(
        "proof-rescore",
        rows=logs,
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("onnxruntime", "onnx", "tokenizers", "numpy", "polars", "tritonclient"),
        more={
            "definition": " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
            "faults": trials,
            "absent": {case: stack.missing(case) for case in ROWS if stack.missing(case)},
            "load average of 15 minutes": round(os.getloadavg()[2], 1),
        },
        keep=not options.quick,
    )
    if not all(one["holds"] for one in goals):
        sys.exit(1)


def goals_of(logs: Sequence[Row], trials: Sequence[Row]) -> list[Row]:
    """What has to hold."""
    count = sum(log["rows"] for log in logs)
    tables = [log for log in logs if not log["texts"]]
    return [
        goal("logged scores within the tolerance, of all", sum(log["within"] for log in logs), count, "higher"),
        goal(
            "scores of tables with the same bits, of all",
            sum(log["identical"] for log in tables),
            sum(log["rows"] for log in tables),
            "higher",
        ),
        *(
            goal(f"core seconds per 100,000 rows, {log['log']}", log["core seconds per 100,000"], SECONDS_PER_100K)
            for log in tables
            if log["rows"] >= LARGE
        ),
        goal("faults planted", len(trials), 20, "higher"),
        goal("faults found, of all", sum(one["found"] for one in trials), len(trials), "higher"),
        goal("faults named, of all", sum(one["named"] for one in trials), len(trials), "higher"),
    ]


# --- the state ----------------------------------------------------------------------------------


def kept(home: Path, rows: Mapping[str, int]) -> State:
    """The state in ``home``, made if it is not there."""
    spans = home / "spans.json"
    if not spans.exists():
        home.mkdir(parents=True, exist_ok=True)
        found = made(home, rows)
        told = {case: {name: one.model_dump(mode="json") for name, one in own.items()} for case, own in found.items()}
        spans.write_text(json.dumps(told))
    os.environ["PERENNIAL_PARAMS_DIR"] = str(home / "params")
    of = json.loads(spans.read_text())
    windows = {
        case: {name: Window.model_validate_json(json.dumps(one)) for name, one in own.items()}
        for case, own in of.items()
    }
    return State(read_settings(home=home, ledger_url=""), windows)


def made(home: Path, rows: Mapping[str, int]) -> Mapping[str, Spans]:
    """Train, serve, ask and stop; the spans of the traffic."""
    changes = {"training_rows": "source"}
    with stack.serving(home, tuple(rows), dict.fromkeys(rows, changes), keep_mlflow=True) as serving:
        spans: dict[str, dict[str, Window]] = {}
        for case in serving.cases:  # of a state that was made in part
            stack.reconciled(serving, case)
        with stack.gateway(serving, serving.ports.gateway):
            ask = partial(_ask, serving.ports.gateway)
            sent = {case: _rows(case, rows[case] + OTHER_FILE_ROWS) for case in serving.cases}
            for case, own in sent.items():
                count = rows[case] // 2 if case == TABLE else rows[case]
                ask(case, own[:count])
                spans[case] = {"served": _span(own[: rows[case]])}
            _in_new_process(_second, serving.settings)
            own, count = sent[TABLE], rows[TABLE]
            _wait(ask, own[count // 2 : count // 2 + 1])
            ask(TABLE, own[count // 2 + 1 : count])
            with _other_file(serving):
                ask(TABLE, own[count:])
            spans[TABLE]["other file"] = _span(own[count:])
    for case in rows:
        prediction_log.catch_up(serving.settings, case, EVER)
    return spans


def _rows(case: str, count: int) -> list[Row]:
    """Real rows from the champion's day on, as a client sends them."""
    params, fields = load_params(case), load_fields(case)
    source = part(case, "source")
    start = stack.FIRST[case]
    window = Window(start=start, end=start + timedelta(days=120))
    found = source.rows(source.resolve(read_settings(), params), window, params).sort("event_time", "id")
    found = found.unique("event_time", keep="first", maintain_order=True)
    found = found.gather_every(max(1, found.height // count)).head(count)
    return [
        {"prediction_id": row["id"], "event_time": row["event_time"].isoformat(), **row_sent(fields, row)}
        for row in found.iter_rows(named=True)
    ]


def _span(rows: Sequence[Row]) -> Window:
    times = [datetime.fromisoformat(row["event_time"]) for row in rows]
    return Window(start=min(times), end=max(times) + timedelta(microseconds=1))


def _ask(port: int, case: str, rows: Sequence[Row]) -> list[Row]:
    """The gateway's answers to rows, asked for by several clients in requests of different sizes."""
    requests: list[Sequence[Row]] = []
    left = list(rows)
    while left:
        size = REQUESTS[len(requests) % len(REQUESTS)]
        requests.append(left[:size])
        left = left[size:]

    def post(some: Sequence[Row]) -> list[Row]:
        request = urllib.request.Request(
            f"http://{HOST}:{port}{PREDICT.format(case=case)}",
            json.dumps({"rows": some}).encode(),
            {"Content-Type": "application/json", "X-API-Key": stack.KEY},
        )
        for _ in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    found: list[Row] = json.load(answer)["rows"]
                    return found
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise PerennialError(f"{case}: {error} ({error.read().decode()[:300]})") from error
                time.sleep(float(error.headers.get("Retry-After", 1)))
        raise PerennialError(f"{case}: the gateway had no room for a request in {TRIES} tries: quieten the machine")

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [answer for some in pool.map(post, requests) for answer in some]


def _wait(ask: Any, rows: Sequence[Row], seconds: float = 60.0) -> None:
    """Ask until the second version answers; each try is a row of its own."""
    deadline = time.monotonic() + seconds
    number = 0
    while True:
        [answer] = ask(TABLE, [{**row, "prediction_id": f"{row['prediction_id']}-{number}"} for row in rows])
        if answer["version"] == 2:
            return
        if time.monotonic() > deadline:
            raise PerennialError(f"the gateway still answers by version {answer['version']} after {seconds:g} s")
        number += 1
        time.sleep(0.5)


def _in_new_process(act: Callable[[Settings], None], settings: Settings) -> None:
    """Do something in a process that starts anew: this one has threads by now, and cannot be forked."""
    process = multiprocessing.get_context("spawn").Process(target=act, args=(settings,))
    process.start()
    process.join()
    if process.exitcode:
        raise PerennialError(f"{act.__name__} failed with exit code {process.exitcode}: see above")


def _second(settings: Settings) -> None:
    """Train another version of bank and let it serve, whatever the gate says."""
    stack.train(settings, TABLE, SECOND, "manual")
    head = ledger.head(settings.ledger, TABLE)
    assert head is not None
    if head.champion == 1:
        params = load_params(TABLE)
        release.run(params, settings, reason="the proof's second", actor="proof", version=2, despite_verdict=True)


@contextmanager
def _other_file(serving: stack.Serving) -> Iterator[None]:
    """Triton has version 1's file in the place of version 2's."""
    folder = serving.settings.model_repository / TABLE
    own = (folder / "2" / MODEL).read_bytes()
    (folder / "2" / MODEL).write_bytes((folder / "1" / MODEL).read_bytes())
    triton_calls.load(serving.settings, TABLE)
    time.sleep(2.0)
    try:
        yield
    finally:
        (folder / "2" / MODEL).write_bytes(own)
        triton_calls.load(serving.settings, TABLE)


# --- scoring again ------------------------------------------------------------------------------


def replayed(name: str, case: str, settings: Settings, window: Window) -> Row:
    """What became of a case's logged rows."""
    params = load_params(case)
    began, spent = time.perf_counter(), time.process_time()
    answer = rescore(params, settings, window.start, window.end)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    found = answer["replay"]
    for problem in answer["problems"]:
        print(f"{name}, {case}: {problem}", flush=True)
    return {
        "log": f"{case}, {name}",
        "texts": load_fields(case).text is not None,
        "rows": found["rows"],
        "within": found["rows"] - found["differ"] - found["unfit"],
        "identical": found["identical"],
        "largest": max((one["largest"] for one in found["versions"]), default=0.0),
        "versions": len(found["versions"]),
        "seconds": round(seconds, 2),
        "core seconds": round(spent, 2),
        "core seconds per 100,000": round(100_000 * spent / max(1, found["rows"]), 2),
    }


def of_demo(home: Path, folder: Path) -> Iterator[Row]:
    """The whole log of a demo's state, copied."""
    copy = folder / f"demo-{home.name}-{len(list(folder.iterdir()))}"
    copied(home.resolve(), copy)
    settings = read_settings(home=copy, ledger_url="")
    for case in sorted(ledger.cases(settings.ledger)):
        prediction_log.catch_up(settings, case, EVER)
        yield replayed("demo", case, settings, EVER)
    shutil.rmtree(copy)


def copied(home: Path, to: Path, case: str = "") -> None:
    """Copy what scoring again reads of a state, of one case or all."""
    to.mkdir()
    for name in OWN:
        source = home / name / case
        if source.exists():
            shutil.copytree(source, to / name / case, symlinks=True, dirs_exist_ok=True)
    for path in home.glob("ledger.db*"):
        shutil.copy(path, to / path.name)


def trial(fault: Fault, state: State, folder: Path) -> Row:
    """Plant a fault in a copy, and say whether it was found and named."""
    home = folder / "trial"
    copied(state.settings.root, home, fault.case)
    settings = read_settings(home=home, ledger_url="")
    span = state.spans[fault.case][fault.span]
    said: list[tuple[str, str]] = []
    try:
        fault.plant(settings, fault.case)
        with fault.patch():
            answer = rescore(load_params(fault.case), settings, span.start, span.end)
        said = [(one["cause"], one["told"]) for one in answer["problems"]]
    except PerennialError as error:
        said = [(type(error).__name__, str(error))]
    finally:
        shutil.rmtree(home)
    named = [told for cause, told in said if cause == fault.cause and all(word in told for word in fault.words)]
    row = {
        "fault": fault.name,
        "case": fault.case,
        "cause": fault.cause,
        "found": bool(said),
        "named": bool(named),
        "told": "; ".join(f"{cause}: {told}".replace(str(home), "<state>") for cause, told in said)[:400],
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
