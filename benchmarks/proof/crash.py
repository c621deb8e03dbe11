"""SIGKILL at random moments of every step of the line, and again.

The bytes, runs, verdicts and releases of a line that nobody killed. A line is a whole training run of `loans` and a
drift run of its champion, in a state folder with a Triton and an MLflow of its own, each step in a process forked from
one that has the libraries. A trial kills a try of a step after a random share of the time that it takes undisturbed; a
step is tried so twice, one try on what the other left, and then runs whole. Lines run two at once. What two undisturbed
lines have in common must be in every disturbed one, and nothing else; what they have not in common (times, names of
MLflow's runs) is listed. `make proof-crash`; 200 kills are some 13 lines, half an hour on two busy cores (``--quick``:
one line, written nowhere).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, ItemsView, Iterator
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.record import goal, record
from embedded import mlflow, triton
from embedded.ports import Ports
from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.errors import PerennialError
from pipelines.files import file_sha256, write_atomic
from pipelines.line import runner
from pipelines.line.order import STEP_BY_NAME, TELLING, TRAINING, WATCHING
from pipelines.line.step import Run, Step
from pipelines.params_file import load_params
from pipelines.settings import Settings

CASE = "loans"
TRIALS = 200
SEED = 11
TRIES, AT_ONCE = 2, 2
"""Kills of a step before it runs whole, and lines at a time."""
TRAINED = datetime(2020, 5, 1, tzinfo=UTC)
WATCHED = datetime(2020, 5, 4, tzinfo=UTC)
STEPS = (
    *((step.name, TRAINED) for step in TRAINING if isinstance(step, Step)),
    *((step.name, WATCHED) for step in (*WATCHING, *TELLING)),
)
PRELOADED = (
    *(
        "torch",
        "torch._dynamo",
        "torch.onnx",
        "torch.distributed",
        "mlflow",
        "mlflow.onnx",
        "onnx",
        "onnx.reference",
        "onnxruntime",
        "polars",
    ),
    *(
        "pandera.polars",
        "pyarrow.parquet",
        "scipy.stats",
        "scipy.optimize",
        "sklearn.linear_model",
        "sklearn.metrics",
        "sqlalchemy",
        "sqlite3",
    ),
    *(
        "tritonclient.grpc",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
        "evidently",
    ),
)
"""Libraries that steps import when they need them: a kill shall meet work, not imports."""
OWN_FOLDERS = ("artefacts", "lake", "prediction_log", "model_repository")
Row = dict[str, Any]
Delays = dict[str, list[float]]
"""Of each step, after how many seconds each of its tries is killed."""


def main() -> None:
    """Run the proof and write benchmarks/results/proof-crash.json; exit code 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one line of kills; prints the tables and writes nothing")
    parser.add_argument(
        "--trials", type=int, default=TRIALS, help="how many kills at least; fewer than the default are written nowhere"
    )
    given = parser.parse_args()
    trials = len(STEPS) if given.quick else given.trials
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Triton and MLflow are ended on the way out
    began = time.perf_counter()
    killed = Counter[str]()
    for module in (*PRELOADED, *(f"pipelines.steps.{step}" for step, _ in STEPS)):
        import_module(module)
    kept = list(lines({"undisturbed 1": {}, "undisturbed 2": {}}.items()))
    if failed := [one["failed"] for one in kept if one["failed"]]:
        raise PerennialError(f"a line that nobody disturbed failed: {failed[0]}")
    seconds = {step: min(one["seconds"][step] for one in kept) for step, _ in STEPS}
    same = {name: found for name, found in kept[0]["tree"].items() if kept[1]["tree"].get(name) == found}
    unlike = sorted({_shape(name) for one in kept for name in one["tree"] if name not in same})

    def drawn() -> Iterator[tuple[str, Delays]]:
        for number in count(1):
            if killed.total() >= trials or (given.quick and number > 1):
                return
            own = random.Random(f"{SEED} {number}")
            yield f"line {number}", {step: [own.random() * seconds[step] for _ in range(TRIES)] for step, _ in STEPS}

    rows: list[Row] = []
    for found in lines(drawn()):
        rows.append(_judged(found, same, {name for one in kept for name in one["tree"]}, kept[0]["counts"]))
        killed.update(found["killed"])
        print(rows[-1], flush=True)
    goals = [
        goal("kills", killed.total(), trials, "higher"),
        goal("lines with a step that failed when it was run again", sum(bool(row["failed"]) for row in rows), 0),
        goal(
            "files, keys or facts that are not those of an undisturbed line", sum(len(row["unlike"]) for row in rows), 0
        ),
        goal("files that were left behind", sum(len(row["left"]) for row in rows), 0),
        goal(
            "lines with a second run, version, verdict, release or drift state, or without one",
            sum(row["counts"] != kept[0]["counts"] for row in rows),
            0,
        ),
        goal("steps that no kill met", sum(not killed[step] for step, _ in STEPS), 0),
    ]
    setting = {
        "killed": dict(killed),
        "ended before the kill": sum(row["tries"] for row in rows) - killed.total(),
        "seconds undisturbed": {step: round(value, 2) for step, value in seconds.items()},
        "compared": len(same),
        "differ between undisturbed lines": unlike,
        "counts": kept[0]["counts"],
        "kills of a step in a row": TRIES,
        "lines at once": AT_ONCE,
        "seed": SEED,
    }
    keep = trials >= TRIALS
    took = time.perf_counter() - began
    record(
        "proof-crash",
        rows=rows,
        goals=goals,
        seconds=took,
        packages=("mlflow", "torch", "polars"),
        more={"setting": setting},
        keep=keep,
    )
    if not all(each["holds"] for each in goals):
        sys.exit(1)


def lines(wanted: Iterator[tuple[str, Delays]] | ItemsView[str, Delays]) -> Iterator[Row]:
    """Each line in a process of its own, some at a time, in the order in which they end."""
    left = iter(wanted)
    running = dict[int, tuple[str, Path]]()
    with tempfile.TemporaryDirectory(prefix="perennial-crash-") as folder:
        try:
            while True:
                while len(running) < AT_ONCE and (one := next(left, None)) is not None:
                    home = Path(folder).resolve() / one[0].replace(" ", "-")
                    home.mkdir()
                    running[_line_process(home, *one)] = one[0], home
                if not running:
                    return
                pid, status = os.wait()
                name, home = running.pop(pid)
                said = home / "line.json"
                found: Row = (
                    json.loads(said.read_text())
                    if said.exists()
                    else {"failed": f"{name} ended with status {status}: {_last_words(home)}"}
                )
                shutil.rmtree(home)
                yield {
                    "name": name,
                    "tries": 0,
                    "killed": [],
                    "seconds": {},
                    "counts": {},
                    "tree": {},
                    "left": [],
                    "failed": "",
                } | found
        finally:
            for pid in running:
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)


def _line_process(home: Path, name: str, delays: Delays) -> int:
    return forked(home, lambda: write_atomic(home / "line.json", json.dumps(line(home, name, delays)).encode()))


def line(home: Path, name: str, delays: Delays) -> Row:
    """One line in the state folder ``home``.

    The tries of a step are killed after so many seconds each, then it runs whole.
    """
    ports = Ports.free()
    seconds = {}
    killed = []
    failed = ""
    with triton.triton(home, ports), mlflow.server(home, ports) as url:
        settings = triton.settings(home, ports).model_copy(update={"mlflow_url": url, "actor": "proof"})
        try:
            for step, as_of in STEPS:
                if step == "profile":
                    _finished("serve", forked(home, lambda: serve(settings)), home)
                began = time.perf_counter()
                killed += [
                    step for delay in delays.get(step, []) if _killed(forked(home, _run(step, as_of, settings)), delay)
                ]
                _finished(step, forked(home, _run(step, as_of, settings)), home)
                seconds[step] = time.perf_counter() - began
        except PerennialError as error:
            failed = str(error)
        found = {"tree": tree(home), "left": leftovers(home), "counts": _counts(settings, url)}
        return found | {
            "name": name,
            "tries": sum(map(len, delays.values())),
            "killed": killed,
            "seconds": seconds,
            "failed": failed,
        }


def _run(step: str, as_of: datetime, settings: Settings) -> Callable[[], Any]:
    def run() -> None:
        params = load_params(CASE)
        given: dict[str, Any] = {"trigger": "initial"} if step in {"register", "rollout", "gate"} else {}
        runner.run(STEP_BY_NAME[step], Run(params, settings, as_of, **given))

    return run


def forked(home: Path, act: Callable[[], Any]) -> int:
    """A process that does ``act`` and ends with 0; its words go to ``home/log``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        said = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        act()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child says it and ends
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _killed(pid: int, seconds: float) -> bool:
    """Kill a process after so many seconds; whether it was still at work."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _finished(step: str, pid: int, home: Path) -> None:
    if os.waitpid(pid, 0)[1]:
        raise PerennialError(f"the step {step} failed when it was run again: {_last_words(home)}")


def _last_words(home: Path) -> str:
    return (home / "log").read_text(errors="replace")[-3000:]


def serve(settings: Settings) -> None:
    """Three days of answers and their labels in the log, as closed segments."""
    from pipelines.cases.loans.source import generate

    fields = load_fields(CASE)
    for number in range(3):
        rows = generate(date(2020, 5, 1) + timedelta(days=number), rows_per_day=200)
        answers = []
        labels = []
        for at, row in enumerate(rows.to_dicts()):
            moment = row["event_time"].isoformat()
            score = (at % 100) / 100
            about = {"prediction_id": row["id"], "event_time": moment, "received_at": moment}
            answer = {"request_id": row["id"], "version": 1, "score": score, "prediction": int(score >= 0.5)}
            answers.append({**about, **answer, "row": {name: row[name] for name in fields.names}})
            labels.append({**about, "label": row[fields.label], "revision": 0})
        for kind, lines in (("predictions", answers), ("labels", labels)):
            text = "".join(json.dumps(one) + "\n" for one in lines)
            write_atomic(settings.prediction_log / CASE / kind / f"day-{number:06d}.jsonl", text.encode())


def _counts(settings: Settings, url: str) -> dict[str, int]:
    """How many there are of what must be there once."""
    from mlflow import MlflowClient

    client = MlflowClient(url, url)
    experiments = [one.experiment_id for one in client.search_experiments(filter_string=f"name = '{CASE}'")]
    return {
        "runs": len(client.search_runs(experiments)),
        "versions": len(client.search_model_versions(f"name='{CASE}'")),
        "models": len(client.search_logged_models(experiments)),
        "verdicts": len(ledger.verdicts(settings.ledger, CASE)),
        "releases": len(ledger.releases(settings.ledger, CASE)),
        "drift states": len(ledger.drift_states(settings.ledger, CASE)),
        "alert runs": len(ledger.alert_runs(settings.ledger, CASE)),
    }


def tree(home: Path) -> dict[str, str]:
    """By path a file's hash; of a manifest its key, and each file and fact that it names."""
    found: dict[str, str] = {}
    for path in sorted(path for folder in OWN_FOLDERS for path in (home / folder).rglob("*") if path.is_file()):
        name = str(path.relative_to(home))
        if path.name == storage.MANIFEST:
            manifest = storage.read_manifest(path.parent, verify=True)
            found[f"{name} key"] = manifest.key
            found |= {f"{name} {fact}": storage.digest(value) for fact, value in manifest.facts.items()}
        else:
            found[name] = file_sha256(path)
    return found


def leftovers(home: Path) -> list[str]:
    """Hidden files and folders (work folders, temporary files) in the state folder and below what the line writes."""
    every = [*home.glob(".*"), *(path for folder in OWN_FOLDERS for path in (home / folder).rglob(".*"))]
    return sorted(str(path.relative_to(home)) for path in every if not _kept(path))


def _kept(path: Path) -> bool:
    """Whether a hidden file is meant to stay: a lock is held, not removed, as a removed one could be held twice."""
    return path.name.endswith(".lock") or path.name == ".lock"


def _judged(found: Row, same: dict[str, str], known: set[str], counts: dict[str, int]) -> Row:
    """What of a line is not as in those that nobody disturbed.

    Of ``same`` what is missing or has another value, and what is in none of them (``known``).
    """
    unlike = (
        sorted(name for name, value in same.items() if found["tree"].get(name) != value) if not found["failed"] else []
    )
    more = {"unlike": unlike + sorted(found["tree"].keys() - known), "left": found["left"], "counts": found["counts"]}
    return (
        {name: found[name] for name in ("name", "tries", "killed", "failed")}
        | more
        | {"as undisturbed": found["counts"] == counts}
    )


def _shape(name: str) -> str:
    """A path without what is random in it."""
    return "/".join(part for part in name.split("/") if not part.startswith("2020"))


if __name__ == "__main__":
    main()
