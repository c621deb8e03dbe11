"""Make the state folder that a later commit must be able to read: ``python -m tests.state.make``, alone on the machine.

It starts a real Triton, MLflow and gateway on free ports, plays ten days of the `loans` case by hand (no Airflow), and
packs what they left as ``tests/state/<commit>.tar.xz``. The commit's own code makes it: before a format changes, run
this at the commit before; test_state.py reads every archive beside it. For a commit that does not have this file,
check it out elsewhere (``git worktree add``), copy this file to the same place there and give ``--out``.

What lies in it: two champions, a candidate that was not promoted, a drift that was confirmed by labels and the
training that it asked for, a cooldown that goes on, windows that were judged and a day that was not yet, alerts, a
silence; of the log closed segments, one with a torn end and one with a line that is none, a row that breaks the
contract, a label that was corrected, and the open segments of a gateway that was killed. What does not: weights
(``UNKEPT``), pictures, logs, and whatever names this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import polars as pl
import yaml

from embedded import mlflow, services, triton
from embedded.demo.traffic import wait_for_closed_segments
from embedded.ports import Ports
from embedded.processes import end, launch
from embedded.traffic import Place, place_file
from pipelines import ledger
from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields, part
from pipelines.cli import main as command
from pipelines.contracts import Window
from pipelines.files import write_atomic
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings

HERE = Path(__file__).parent
CASE = "loans"
KEY = "a-key-for-tests"
FIELDS = load_fields(CASE)
START, DRIFT, DAYS = date(2020, 6, 8), date(2020, 6, 10), 9
"""First day of traffic, first day of the new rule, and how many days are judged; one more is served."""
SCHEDULED = date(2020, 6, 10)
"""When the schedule trains a candidate, which comes too early to have seen the drift."""
TORN, MALFORMED, FOREIGN = date(2020, 6, 9), date(2020, 6, 11), date(2020, 6, 15)
"""Days whose log is damaged: a torn end, a line that is no line, a row with a value that is not declared."""
WITHOUT_ID = 6
"""Rows of each day that are sent without an id of the client's."""
UNKEPT = (
    "*.onnx",
    "*.onnx.data",
    "*.pt",
    "*.pth",
    "*.bin",
    "*.safetensors",
    "*.png",
    "*.db-wal",
    "*.db-shm",
    "*.lock",
    "*.pid",
    "api_key",
    "env",
    "stack.json",
)
"""Files that are not packed.

Weights, pictures (they are large, and nothing reads them), secrets and what names places.
"""
UNKEPT_FOLDERS = ("logs", "triton", "checkpoints", "work")


def main(argv: Sequence[str] | None = None) -> int:
    """Make and pack the state."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the archive; default: tests/state/<commit>.tar.xz")
    parser.add_argument("--keep", type=Path, help="leave the folder here, to look at it")
    asked = parser.parse_args(argv)
    about = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(about, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    out = asked.out or HERE / f"{commit}.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "state"
        made(home)
        pack(home, out)
        if asked.keep:
            shutil.copytree(home, asked.keep)
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB")  # noqa: T201
    return 0


def made(home: Path) -> None:
    """Play the history into ``home``."""
    write_params(home / services.PARAMS)
    (home / "api_key").write_text(KEY + "\n")
    with _stack(home) as (settings, gateway, kill):
        do("retrain", START, "--reason", "the first champion")
        for number in range(DAYS):
            day = START + timedelta(days=number)
            if day == SCHEDULED:
                train(day, "schedule")
            serve(settings, gateway, day)
            damage(settings, day)
            judge(settings, day + timedelta(days=1), page=number >= DAYS - 2)
        do("silence", None, "--rule", "labels_late", "--until", "2020-07-01", "--reason", "known")
        last = START + timedelta(days=DAYS)
        serve(settings, gateway, last, killed=kill)
        correct(settings, last)
        midnight = datetime.combine(last + timedelta(days=1), datetime.min.time(), UTC)
        place = Place(midnight - timedelta(days=DAYS + 1), midnight, midnight)
        write_atomic(
            place_file(settings, CASE),
            json.dumps({name: moment.isoformat() for name, moment in asdict(place).items()}).encode(),
        )


def write_params(folder: Path) -> None:
    """The case's own parameters, smaller, kept in the state as a demo's are."""
    values = yaml.safe_load((CASES_ROOT / CASE / "params.yaml").read_text())
    values["label_delay_days"] = 1
    values["schedule"]["live"] = False
    values["dataset"] |= {
        "window_days": 4,
        "min_rows": 100,
        "fallback_rows": 200,
        "holdout_share": 0.3,
        "min_holdout": 40,
    }
    values["model"] = {"hidden": [16], "embedding": 2, "dropout": 0.0}
    values["train"] |= {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}
    values["gate"] |= {"draws": 200, "min_slice_rows": 1000, "min_differing": 40}
    values["drift"] |= {"min_rows": 20, "min_new_labels": [290, 290, 0.0], "evidently": "never"}
    values["alerts"]["max_champion_days"] = 3.0  # so that an alert is open in the end
    values["source"] |= {"rows_per_day": 60, "drift": "concept", "drift_at": str(DRIFT), "drift_every_days": None}
    folder.mkdir(parents=True)
    (folder / f"{CASE}.yaml").write_text(yaml.safe_dump(values))


@contextlib.contextmanager
def _stack(home: Path) -> Iterator[tuple[Settings, httpx.Client, object]]:
    """Triton, MLflow and a gateway on ``home``, as `make up` starts them; ``kill()`` ends the gateway at once."""
    ports = Ports.free()
    tag = triton.stack_tag(home)
    triton.require()
    triton.prepare(home)
    mine = services.settings_environment(home, ports) | {
        "PERENNIAL_ACTOR": "maker",
        "PERENNIAL_LOG_SEGMENT_SECONDS": "0.5",
    }
    os.environ |= mine | {"PERENNIAL_CONNECTIONS": "none"}
    env = {**os.environ, triton.TAG: tag, **mlflow.ENVIRONMENT}
    every = services.services(home, ports, env, traffic=False, broken=[])
    wanted = [one for one in every if one.name in {"triton", "mlflow", "gateway"}]
    running = [launch(one.name, one.argv, one.env, home / "logs" / f"{one.name}.log") for one in wanted]
    try:
        for one in wanted:
            deadline = time.monotonic() + 120
            while not one.check():
                if time.monotonic() > deadline:
                    raise SystemExit(f"{one.name} did not start: see {home / 'logs'}")
                time.sleep(0.2)
        [gateway] = [process for process in running if process.name == "gateway"]
        settings = read_settings()
        key = {"X-API-Key": KEY}
        with httpx.Client(base_url=settings.gateway_url, headers=key, timeout=60, trust_env=False) as http:
            yield settings, http, lambda: os.kill(gateway.pid, 9)
    finally:
        end(running, tag)
        triton.sweep(home)


def do(name: str, day: date | None, *more: str) -> None:
    """One command of the command line, for midnight of ``day``."""
    at = [] if day is None else ["--as-of", str(day)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = command([name, "--case", CASE, *at, *more])
    if code:
        raise SystemExit(f"{name} {day} {' '.join(more)} ended with {code}")


def train(day: date, trigger: str) -> None:
    """The training line of one run."""
    for step in (
        "ingest",
        "validate",
        "dataset",
        "train",
        "export",
        "evaluate",
        "gate",
        "register",
        "rollout",
        "reconcile",
    ):
        at = None if step == "reconcile" else day
        do(step, at, *(["--trigger", trigger] if step in {"train", "gate", "register", "rollout"} else []))


def judge(settings: Settings, day: date, *, page: bool) -> None:
    """The drift run of ``day``, and the training that it asks for, at the same time."""
    for step in ("profile", "drift", "alert", *(["report"] if page else [])):
        do(step, day)
    run_dir = settings.run_dir(CASE, datetime.combine(day, datetime.min.time(), UTC))
    report = json.loads((run_dir / "drift" / "report.json").read_text())
    print(day, *(report[name] for name in ("state", "action", "reason")))  # noqa: T201
    if report["action"] == "retrain":
        train(day, "drift")


def rows_of(settings: Settings, day: date) -> pl.DataFrame:
    """A day's rows of the stream, at four hours of it: few hours make few files."""
    params = load_params(CASE)
    at = datetime.combine(day, datetime.min.time(), UTC)
    stream = part(CASE, "source")
    rows = stream.rows(stream.resolve(settings, params), Window(start=at, end=at + timedelta(days=1)), params)
    moved = pl.col("event_time").dt.truncate("6h") + (pl.col("event_time") - pl.col("event_time").dt.truncate("6h")) / 6
    return rows.with_columns(event_time=moved, label_time=moved + timedelta(days=params.label_delay_days))


def serve(settings: Settings, gateway: httpx.Client, day: date, *, killed=None) -> None:
    """Post a day's rows and the labels of the day before; ``killed`` ends the gateway with its last segments open."""
    _serves_the_champion(settings, gateway)
    ids = settings.root / "ids.json"
    given: dict[str, str] = json.loads(ids.read_text()) if ids.exists() else {}
    yesterday = [] if day == START else rows_of(settings, day - timedelta(days=1)).to_dicts()
    labels = [
        {
            "prediction_id": given.get(row["id"], row["id"]),
            "label": row[FIELDS.label],
            "event_time": row["label_time"].isoformat(),
        }
        for row in yesterday
    ]
    today = rows_of(settings, day).to_dicts()
    rows = [{name: row[name] for name in FIELDS.names} | {"event_time": row["event_time"].isoformat()} for row in today]
    for row, sent in zip(today[WITHOUT_ID:], rows[WITHOUT_ID:], strict=True):
        sent["prediction_id"] = row["id"]
    answers = []
    half = len(rows) // 2
    for part_of in (slice(half), slice(half, None)):  # two segments of each kind
        _closed(settings)
        answers += _post(gateway, "predict", rows[part_of])
        if labels:
            _post(gateway, "labels", labels[part_of])
    given |= {row["id"]: answer["prediction_id"] for row, answer in zip(today, answers, strict=True)}
    ids.write_text(json.dumps(given))
    if killed is None:
        _closed(settings)
    else:
        killed()
        ids.unlink()


def _serves_the_champion(settings: Settings, gateway: httpx.Client) -> None:
    """Wait until the gateway has seen the newest release: it looks once a second."""
    head = ledger.head(settings.ledger, CASE)
    deadline = time.monotonic() + 20
    while gateway.get("/readyz").json()["cases"].get(CASE, {}).get("champion") != (head.champion if head else None):
        if time.monotonic() > deadline:
            raise SystemExit("the gateway does not see the newest release")
        time.sleep(0.1)


def _closed(settings: Settings) -> None:
    wait_for_closed_segments(settings.prediction_log, CASE)


def _post(gateway: httpx.Client, what: str, items: list[dict]) -> list[dict]:
    name = "rows" if what == "predict" else "labels"
    answer = gateway.post(f"/v1/cases/{CASE}/{what}", json={name: items})
    if answer.status_code != httpx.codes.OK:
        raise SystemExit(f"{what}: {answer.status_code} {answer.text}")
    return answer.json().get("rows", [])


def damage(settings: Settings, day: date) -> None:
    """What disks and earlier gateways do to a log, to its newest segment, before anybody has read it."""
    folder = settings.prediction_log / CASE
    newest = max((folder / "predictions").glob("*.jsonl"))
    if day == TORN:
        with newest.open("ab") as file:
            file.write(b'{"prediction_id":"loans-torn","request_id":"0')
    if day == MALFORMED:
        with max((folder / "labels").glob("*.jsonl")).open("ab") as file:
            file.write(b"this is no line of a log\n")
    if day == FOREIGN:
        line = json.loads(newest.read_bytes().splitlines()[0])
        line |= {"prediction_id": "loans-foreign", "row": line["row"] | {"car": "make_99"}}
        (folder / "predictions" / f"{newest.stem.rpartition('-')[0]}-900000.jsonl").write_text(json.dumps(line) + "\n")


def correct(settings: Settings, day: date) -> None:
    """A label that was judged yesterday was wrong.

    A higher revision, in a segment that nobody has read yet; and a torn end in an open one.
    """
    folder = settings.prediction_log / CASE / "labels"
    at = datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=13)
    every = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    known = [json.loads(line) for line in every if line.startswith(b"{")]
    old = next(line for line in known if datetime.fromisoformat(line["event_time"]).date() == day - timedelta(days=1))
    line = old | {"label": 1 - old["label"], "revision": 1, "event_time": at.isoformat()}
    (folder / f"{max(folder.glob('*.jsonl')).stem.rpartition('-')[0]}-900000.jsonl").write_text(json.dumps(line) + "\n")
    for path in (settings.prediction_log / CASE / "predictions").glob("*.jsonl.open"):
        with path.open("ab") as file:
            file.write(b'{"prediction_id":"loans-torn-too"')


# --- packing ------------------------------------------------------------------------------------


def pack(home: Path, out: Path) -> None:
    """Write the archive; refuses weights and whatever names this machine, its user or a place on it."""
    for path in home.rglob("*.db"):
        whole = path.with_suffix(".whole")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("VACUUM INTO ?", (str(whole),))
        whole.replace(path)
    kept = [path for path in sorted(home.rglob("*")) if path.is_file() and not _unkept(path.relative_to(home))]
    names = {
        str(HERE.parents[1]),
        str(home),
        str(Path.home()),
        socket.gethostname(),
        *([user] if (user := getpass.getuser()) != "root" else []),
    }
    for path in kept:
        data = path.read_bytes()
        found = [name for name in names if len(name) > 3 and name.encode() in data]
        if found:
            raise SystemExit(f"{path} names {', '.join(found)}")
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for path in kept:
            entry = archive.gettarinfo(path, str(path.relative_to(home)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            with path.open("rb") as file:
                archive.addfile(entry, file)


def _unkept(path: Path) -> bool:
    return any(path.match(pattern) for pattern in UNKEPT) or any(folder in path.parts for folder in UNKEPT_FOLDERS)


if __name__ == "__main__":
    sys.exit(main())
