"""Is a flipped bit found, or harmless? 1,000 of them over every kind of file that the line reads: `make proof-flips`.

A small real state of `loans` is made once by the steps themselves: a first champion, five days of served and labelled
rows in sealed segments, a drift run each day with alerts and a page, and a second training that is judged against the
champion. Only what a service would have to answer is entered as the steps enter it: `register`'s folder (MLflow) and
the first release (Triton).

Each trial flips one bit of one file on a copy of that state (of the ledger: of a row of one of its tables, or anywhere
in the database's file), in a process of its own, and lets every step that reads the file run twice: first with
everything committed, then with the step's own output taken away, so that it has to be made from the flipped file. An
answer is

- found: an error of Perennial's that names the file (of a ledger: the ledger), its folder or, of a partition, its hour;
- harmless: the same output, byte by byte (times and provenance aside);
- unclear: any other error, a traceback, a killed process;
- another result: an output that differs from the one of the state without the flip.

A trial counts as the worst answer of its steps. A trial of each step without a flip comes first and must be harmless.
Beside the flips, 100 edits of a ledger are audited (ledger_edits.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.proof import ledger_edits
from benchmarks.record import goal, record
from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order
from pipelines.deploy import repository
from pipelines.deploy import rollout as room
from pipelines.errors import PerennialError
from pipelines.files import file_sha256
from pipelines.line import runner
from pipelines.line.order import STEP_BY_NAME, TELLING, WATCHING
from pipelines.line.step import Run
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.storage import MANIFEST

CASE = "loans"
FIELDS = load_fields(CASE)
FIRST = date(2020, 5, 11)
DRIFT = "covariate"
SERVED = 5
"""Days that are served by the first champion before the second training."""
HOURS = 6
"""Hours of each day with rows: every hour is a file."""
TIMED = ("record.json", "metrics.jsonl", "seconds", "samples_per_second", "variants", "cost")
"""What differs between two runs of one step."""
DEADLINE = 600.0
ANSWERS = ("harmless", "found", "unclear", "another result")
"""From good to bad."""

FLIPS = 1000
QUICK = 60
EDITS = 100


def as_of(run: int) -> datetime:
    """When a training run takes place; the second one is the last drift run's moment, too."""
    return datetime.combine(FIRST + timedelta(days=0 if run == 1 else SERVED), datetime.min.time(), UTC)


class Home(Settings):
    """A state whose case has no profile.json of its own: its first dataset leaves one in the lake."""

    def profile_file(self, case: str) -> Path:
        """The one in the lake."""
        return self.lake_dir / case / "profile.json"


class Step(NamedTuple):
    """One step of one of the two training runs; the drift runs up to the second training's day belong to it."""

    name: str
    run: int


@dataclass(frozen=True)
class Kind:
    """A kind of file: where its files lie below the state folder, and the steps that read them."""

    name: str
    files: Mapping[str, tuple[Step, ...]]
    made_of: tuple[str, ...] = ()
    """Folders below the state that were made of the file.

    Taken away as well before a step that makes them anew has to work.
    """
    table: str = ""
    """The table of the ledger whose rows are flipped; "": any byte of the file."""


class Answer(NamedTuple):
    """What a step answered to a flipped file, in which form (``no-op``, ``again``), and what it said."""

    step: str
    form: str
    answer: str
    said: str = ""


class Trial(NamedTuple):
    """A flip of a bit and the answers to it."""

    kind: str
    file: str
    bit: int | None
    answers: tuple[Answer, ...]

    @property
    def answer(self) -> str:
        """The worst one."""
        return max((one.answer for one in self.answers), key=ANSWERS.index)


def small() -> Params:
    """The case's own parameters, as small as every step still does its work."""
    values = load_params(CASE).model_dump(mode="json")
    values["label_delay_days"] = 0
    values["dataset"] |= {
        "window_days": 4,
        "min_rows": 100,
        "fallback_rows": 150,
        "holdout_share": 0.3,
        "min_holdout": 40,
    }
    values["model"] |= {"hidden": [16], "embedding": 2, "dropout": 0.0}
    values["train"] |= {"epochs": 4, "batch_size": 32, "learning_rate": 0.01}
    values["gate"] |= {"draws": 200, "min_slice_rows": 1000, "min_differing": 40}
    values["drift"] |= {"min_rows": 20, "min_new_labels": (0, 0, 0.0), "new_data": {"rows": 250}, "evidently": "never"}
    values["headroom"] |= {"min_rows": 30}
    values["source"] |= {
        "rows_per_day": 80,
        "drift": DRIFT,
        "drift_at": str(FIRST + timedelta(days=1)),
        "drift_every_days": None,
    }
    return Params.model_validate_json(json.dumps(values))


PARAMS = small()


def main() -> None:
    """Flip, edit and write benchmarks/results/proof-flips.json; exit code 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} flips and fewer edits, nothing written")
    parser.add_argument("--flips", type=int, help="how many; another number than the proof's writes nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=[kind.name for kind in KINDS],
        metavar="KIND",
        help="these kinds only; writes nothing",
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trials at once")
    given = parser.parse_args()
    began = time.perf_counter()
    count = given.flips or (QUICK if given.quick else FLIPS)
    wanted = [kind for kind in KINDS if given.kinds is None or kind.name in given.kinds]
    with tempfile.TemporaryDirectory(prefix="perennial-flips-") as folder:
        preload()
        trials = flipped(Path(folder), count, wanted, seed=given.seed, jobs=given.jobs, told=print)
    edits = ledger_edits.edits(10 if given.quick or given.kinds else EDITS, given.seed)
    rows = table(trials)
    edited = ledger_edits.table(edits)
    seconds = time.perf_counter() - began
    keep = count == FLIPS and wanted == list(KINDS) and not given.quick
    more = {
        "definition": " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "seed": given.seed,
        "edits": edited,
        "not_found": [
            _told(trial) for trial in trials if trial.bit is not None and trial.answer not in {"found", "harmless"}
        ],
    }
    for row in edited:
        print(row)
    own = goals(trials, edits)
    record(
        "proof-flips",
        rows=rows,
        goals=own,
        seconds=seconds,
        packages=("polars", "onnxruntime", "torch", "sqlalchemy"),
        more=more,
        keep=keep,
    )
    if not all(each["holds"] for each in own):
        sys.exit(1)


def goals(trials: list[Trial], edits: list[ledger_edits.Edit]) -> list[dict[str, Any]]:
    """What has to hold."""
    answers = Counter(trial.answer for trial in trials if trial.bit is not None)
    still = [trial for trial in trials if trial.bit is None]
    must = [edit for edit in edits if edit.kind not in ledger_edits.CONSISTENT]
    return [
        goal("flips that gave another result", answers["another result"], 0),
        goal("flips that were answered by an error that names no file", answers["unclear"], 0),
        goal(
            "the same output without a flip", sum(trial.answer == "harmless" for trial in still), len(still), "higher"
        ),
        goal(
            "edits of the ledger found, of those that leave no consistent chain",
            sum(edit.found for edit in must),
            len(must),
            "higher",
        ),
    ]


def table(trials: list[Trial]) -> list[dict[str, Any]]:
    """Counts by kind of file; ``found again`` counts those that only a step which had to work anew found."""
    rows = []
    for kind in KINDS:
        own = [trial for trial in trials if trial.kind == kind.name and trial.bit is not None]
        late = sum(
            trial.answer == "found" and all(one.answer == "harmless" for one in trial.answers if one.form == "no-op")
            for trial in own
        )
        counts = Counter(trial.answer for trial in own)
        readers = ", ".join(dict.fromkeys(step.name for steps in kind.files.values() for step in steps))
        rows.append(
            {
                "kind": kind.name,
                "flips": len(own),
                **{name: counts[name] for name in ANSWERS},
                "found again": late,
                "read by": readers,
            }
        )
    return [row for row in rows if row["flips"]]


def _told(trial: Trial) -> dict[str, Any]:
    bad = [one._asdict() for one in trial.answers if one.answer == trial.answer]
    return {"kind": trial.kind, "file": trial.file, "bit": trial.bit, "answers": bad}


# --- the state ----------------------------------------------------------------------------------


def preload() -> None:
    """Import what steps import late: each trial is a fork, which then has it.

    Nothing may run here: a library's threads do not survive a fork.
    """
    import onnxruntime  # noqa: F401
    import polars as pl  # noqa: F401
    import sklearn.metrics  # noqa: F401

    from pipelines.export import model  # noqa: F401
    from pipelines.training import candidate, record  # noqa: F401
    from serving.gateway import versions  # noqa: F401


def run_dir(settings: Settings, run: int) -> Path:
    """The folder of a training run."""
    return settings.run_dir(CASE, as_of(run))


TRAINING = ("ingest", "validate", "dataset", "train", "export", "evaluate", "gate")


def make(home: Path) -> None:
    """The state folder that every trial is a copy of."""
    settings = Home(home=home, actor="proof")
    _train(settings, 1)
    ledger.silence(settings.ledger, case=CASE, rule="labels_late", until=as_of(2), reason="known", actor=settings.who)
    for number in range(SERVED):
        _serve(settings, number)
        moment = as_of(1) + timedelta(days=number + 1)
        for step in (*WATCHING, *TELLING):
            runner.run(step, Run(PARAMS, settings, moment))
    _train(settings, 2)
    with closing(sqlite3.connect(settings.root / "ledger.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _train(settings: Settings, run: int) -> None:
    folder = run_dir(settings, run)
    moment = as_of(run)
    for step in TRAINING:
        runner.run(STEP_BY_NAME[step], Run(PARAMS, settings, moment))
    judged, made = storage.read_manifest(folder / "gate"), storage.read_manifest(folder / "export")
    inputs = {"gate": judged.key, "export": made.key}
    about: dict[str, Any] = {"version": run, "mlflow_run": f"run-{run}"}
    key = storage.step_key("register", 2, inputs, {})
    storage.commit(folder / "register", case=CASE, as_of=moment, key=key, inputs=inputs, build=lambda _folder: about)
    if run == 1 or judged.facts["decision"] == "promote":
        ledger.append(
            settings.ledger,
            Order(
                case=CASE,
                after=run - 1,
                champion=run,
                candidate_key=made.key,
                bundle=str((folder / "export").relative_to(settings.root)),
                action="promote",
                trigger="manual",
                reason=judged.facts["reason"],
                actor=settings.who,
                mlflow_run=about["mlflow_run"],
                verdict_hash=judged.facts["verdict_sha256"],
                as_of=moment,
            ),
        )
    runner.run(STEP_BY_NAME["rollout"], Run(PARAMS, settings, moment))


def _serve(settings: Settings, number: int) -> None:
    """A day of the first champion's answers and its labels, as segments that the gateway would have closed."""
    import polars as pl

    from benchmarks.proof import labels as proof_labels
    from pipelines import runtime, segments
    from pipelines.cases.loans.source import generate

    per_day = int(PARAMS.source["rows_per_day"] or 0) * 24 // HOURS
    rows = generate(
        FIRST + timedelta(days=number), rows_per_day=per_day, drift=DRIFT, drift_at=str(PARAMS.source["drift_at"])
    )
    rows = rows.filter(pl.col("event_time").dt.hour() < HOURS)
    scores = runtime.score_rows(
        run_dir(settings, 1) / "export", FIELDS, {name: rows[name].to_list() for name in FIELDS.names}
    )
    rows = rows.with_columns(score=pl.Series(scores, dtype=pl.Float64))
    at = pl.col("event_time")
    labels = rows.select("id", label=pl.col(FIELDS.label).cast(pl.Int64), label_time=at, posted=at)
    proof_labels.log_rows(settings, rows, f"rows-{number + 1:06d}")
    proof_labels.log_labels(settings, labels, f"labels-{number + 1:06d}")
    for kind in ("predictions", "labels"):
        folder = settings.prediction_log / CASE / kind
        for path in sorted(folder.glob("*.jsonl")):
            if not segments.seal(path).exists():
                path.rename(path.with_name(path.name + segments.OPEN))
        segments.adopt(folder)


# --- the files and who reads them ---------------------------------------------------------------


def _at(run: int, *names: str) -> tuple[Step, ...]:
    return tuple(Step(name, run) for name in names)


def _of(step: str, file: str, *own: str, later: tuple[str, ...] = ()) -> Kind:
    """A file of a step's folder: steps of its ``own`` run read it.

    Those of the first run are read by ``later`` steps of the second.
    """
    folders = {run: f"artefacts/{CASE}/{as_of(run):%Y%m%dT%H%M%SZ}/{step}/{file}" for run in (1, 2)}
    return Kind(f"{step}/{file}", {folders[1]: (*_at(1, *own), *_at(2, *later)), folders[2]: _at(2, *own)})


LOG = _at(2, "ingest", "profile", "headroom", "drift")
WATCH = ("drift", "alert", "report")
TABLES = {
    "releases": (Step("rollout", 1), *_at(2, "dataset", "evaluate", "rollout", "headroom", *WATCH)),
    "verdicts": _at(2, "gate", "rollout", "drift", "report"),
    "drift_states": _at(2, "drift", "alert"),
    "drift_chain": _at(2, "drift"),
    "drift_episodes": _at(2, *WATCH),
    "alert_runs": _at(2, "alert", "report"),
    "alert_deliveries": _at(2, "alert"),
    "alert_silences": _at(2, "alert"),
    "journal": _at(2, "rollout", *WATCH),
}
"""Who reads the rows of which table."""
SERVES = ("evaluate", "drift", "stage", "gateway")
READ_THE_LOG = ("ingest", "profile")
COMPACTED = (f"lake/{CASE}/predictions", f"lake/{CASE}/labels")
RUNS = f"artefacts/{CASE}/*"
LAST = f"artefacts/{CASE}/{as_of(2):%Y%m%dT%H%M%SZ}"
KINDS = (
    *(Kind(f"ledger, {table}", {"ledger.db": steps}, table=table) for table, steps in TABLES.items()),
    Kind("ledger, any byte", {"ledger.db": _at(2, "rollout", *WATCH)}),
    Kind("segment of the log", {f"prediction_log/{CASE}/*/*.jsonl": LOG}, COMPACTED),
    Kind("seal of a segment", {f"prediction_log/{CASE}/*/*.sha256": LOG}, COMPACTED),
    Kind(
        "compacted partition",
        {f"lake/{CASE}/predictions/date=*/hour=*/*.parquet": LOG, f"lake/{CASE}/labels/date=*/hour=*/*.parquet": LOG},
    ),
    Kind("record of a compaction", {f"lake/{CASE}/*/segments/*.json": LOG}),
    Kind("partition of rows", {f"lake/{CASE}/rows/*/*.parquet": (*_at(1, "validate"), *_at(2, "validate"))}),
    Kind("profile of a day", {f"lake/{CASE}/profiles/*/date=*/*.parquet": _at(2, "drift", "report")}),
    Kind(
        "frozen scales",
        {f"lake/{CASE}/profile.json": (Step("export", 1), *_at(2, "dataset", "export", "profile", "drift", "report"))},
    ),
    _of("ingest", MANIFEST, "validate"),
    _of("validate", "rows.parquet", "dataset"),
    _of("validate", MANIFEST, "dataset"),
    _of("dataset", "train.parquet", "train", "export", later=("dataset", "headroom", "drift")),
    _of("dataset", "holdout.parquet", "export", "evaluate", later=("headroom",)),
    _of("dataset", MANIFEST, "train", "export", "evaluate", "rollout", later=("dataset", "headroom", "drift")),
    _of("train", "weights.pt", "export"),
    _of("train", MANIFEST, "export"),
    _of("export", "model.onnx", "evaluate", later=SERVES),
    _of("export", "bundle.json", "evaluate", later=SERVES),
    _of("export", "fields.json", "evaluate", later=SERVES),
    _of("export", "spec.json", "evaluate", later=SERVES),
    _of("export", "reference.parquet", "evaluate", later=(*SERVES, "report")),
    _of("export", MANIFEST, "evaluate", "rollout", later=(*SERVES, "headroom", "report")),
    _of("evaluate", "scores.parquet", "gate"),
    _of("evaluate", MANIFEST, "gate"),
    _of("gate", "verdict.json", "gate", "rollout"),
    _of("gate", MANIFEST, "gate", "rollout"),
    _of("register", MANIFEST, "rollout"),
    Kind(f"profile/{MANIFEST}", {f"{RUNS}/profile/{MANIFEST}": _at(2, "headroom", "drift", "report")}),
    Kind("headroom/headroom.json", {f"{LAST}/headroom/headroom.json": _at(2, "drift")}),
    Kind(f"headroom/{MANIFEST}", {f"{LAST}/headroom/{MANIFEST}": _at(2, "drift")}),
    Kind(
        "drift/report.json",
        {f"{LAST}/drift/report.json": _at(2, "alert", "report"), f"{RUNS}/drift/report.json": _at(2, "report")},
    ),
    Kind(
        f"drift/{MANIFEST}",
        {f"{LAST}/drift/{MANIFEST}": _at(2, "alert", "report"), f"{RUNS}/drift/{MANIFEST}": _at(2, "report")},
    ),
)


# --- a trial ------------------------------------------------------------------------------------


def flipped(
    folder: Path,
    count: int,
    kinds: Sequence[Kind] = KINDS,
    *,
    seed: int = 0,
    jobs: int = 1,
    told: Callable[[str], Any] = str,
) -> list[Trial]:
    """``count`` flips of ``kinds`` in turn, after a trial without a flip for each of their readers.

    Call :func:`preload` before.
    """
    context = multiprocessing.get_context("fork")
    made = folder / "state"
    rng = random.Random(seed)
    maker = context.Process(target=_quietly, args=(make, made))
    maker.start()
    maker.join()
    if maker.exitcode:
        raise PerennialError(f"the state could not be made (exit code {maker.exitcode}): run a step of it by hand")
    plan: list[tuple[Kind, str, tuple[Step, ...], int | None]] = []
    every = sorted({step for kind in kinds for steps in kind.files.values() for step in steps})
    plan += [(Kind("nothing", {}, COMPACTED), "", (step,), None) for step in every]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        path, steps = rng.choice(
            [(path, steps) for pattern, steps in kind.files.items() for path in sorted(made.glob(pattern))]
        )
        plan.append(
            (
                kind,
                str(path.relative_to(made)),
                steps,
                _bit_of_a_row(path, kind.table, rng) if kind.table else rng.randrange(8 * path.stat().st_size),
            )
        )
    with ThreadPoolExecutor(jobs) as pool:
        wants = _wanted(pool.submit(_forked, context, _expect, made, folder / "expected", every).result())
        trials = []
        for number, (kind, file, steps, bit) in enumerate(plan):
            arguments = (made, folder / f"trial-{number}", kind.made_of, file, steps, bit, wants)
            trials.append((kind, file, bit, pool.submit(_forked, context, _tried, *arguments)))
        done = []
        for kind, file, bit, answers in trials:
            done.append(Trial(kind.name, file, bit, answers.result()))
            if done[-1].answer in {"unclear", "another result"}:
                told(str(done[-1]))
            elif len(done) % 50 == 0:
                told(f"{len(done)} of {len(plan)}")
    return done


def _bit_of_a_row(path: Path, table: str, rng: random.Random) -> int:
    """Where in a SQLite file a bit of some text of some row of a table lies."""
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as database:
        rows = database.execute(f'SELECT * FROM "{table}"').fetchall()  # a table's name is no value
    data = path.read_bytes()
    while True:
        text = rng.choice([value.encode() for value in rng.choice(rows) if isinstance(value, str) and value])
        start = rng.randrange(max(1, len(text) - 31))
        part = text[start : start + 32]
        places = list[int]()
        found = -1
        while (found := data.find(part, found + 1)) >= 0:
            places.append(found)
        if places:  # of a long value the part may lie on two pages
            return 8 * (rng.choice(places) + rng.randrange(len(part))) + rng.randrange(8)


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    logging.disable(logging.CRITICAL)
    return call(*arguments)


def _forked(context: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """What ``call`` returns in a fork of this process; of one that died or hangs, why."""
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(theirs, call, arguments))
    child.start()
    theirs.close()
    answer: Any = None
    with contextlib.suppress(EOFError):
        if mine.poll(DEADLINE):
            answer = mine.recv()
    child.kill()
    child.join()
    if answer is not None:
        return answer
    return (
        Answer("", "", "unclear", f"the process died or took more than {DEADLINE:g} s (exit code {child.exitcode})"),
    )


def _send(pipe: Any, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    logging.disable(logging.CRITICAL)
    pipe.send(call(*arguments))


def _copied(made: Path, home: Path) -> Settings:
    """A copy of the state by hard links; what is written in place is a file of its own."""
    shutil.copytree(made, home, copy_function=os.link)
    for name in ("ledger.db",):
        _own(home / name)
    for left in home.glob("ledger.db-*"):
        left.unlink()
    return Home(home=home, actor="proof")


def _own(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def _expect(made: Path, home: Path, steps: Sequence[Step]) -> dict[Step, str]:
    """What every reading step answers without a flip: its output as committed, which a run from anew has to equal."""
    settings = _copied(made, home)
    found = {step: _output(settings, step, _ran(settings, step)) for step in steps}
    shutil.rmtree(home)
    return found


def _wanted(found: Any) -> dict[Step, str]:
    if not isinstance(found, dict):
        raise PerennialError(f"the state without a flip does not run again: {found}")
    return found


def _tried(
    made: Path,
    home: Path,
    made_of: tuple[str, ...],
    file: str,
    steps: tuple[Step, ...],
    bit: int | None,
    wants: Mapping[Step, str],
) -> tuple[Answer, ...]:
    """The answers of all steps that read ``file``, one after another on one copy.

    First as a no-op, then without the step's output.
    """
    settings = _copied(made, home)
    answers = list[Answer]()
    try:
        if bit is not None:
            path = home / file
            data = bytearray(path.read_bytes())
            data[bit // 8] ^= 1 << bit % 8
            path.unlink()
            path.write_bytes(data)
        for step in steps:
            answers.append(_answer(settings, step, "no-op", file, wants[step]))
            folders = [*_folders(settings, step), *(home / name for name in made_of if step.name in READ_THE_LOG)]
            if file and (home / file).is_relative_to(folders[0]):
                continue  # the file is the step's own: without it there is no flip
            with _without(home, folders):
                answers.append(_answer(settings, step, "again", file, wants[step]))
        return tuple(answers)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _without(home: Path, folders: list[Path]) -> Iterator[None]:
    """Take folders away; they come back for the next step, whatever was made in their place."""
    aside = {}
    for number, folder in enumerate(folders):
        if folder.exists():
            aside[folder] = home / f".aside-{number}"
            folder.rename(aside[folder])
    yield
    for folder, beside in aside.items():
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)


def _answer(settings: Settings, step: Step, form: str, file: str, wanted: str) -> Answer:
    try:
        found = _output(settings, step, _ran(settings, step))
    except PerennialError as error:
        said = str(error)
        return Answer(
            f"{step.name} {step.run}",
            form,
            "found" if _names(said, file) else "unclear",
            f"{type(error).__name__}: {said}"[:400],
        )
    except Exception as error:  # noqa: BLE001 - a traceback is what is counted here
        return Answer(f"{step.name} {step.run}", form, "unclear", f"{type(error).__name__}: {error}"[:400])
    return Answer(f"{step.name} {step.run}", form, "harmless" if found == wanted else "another result")


def _names(said: str, file: str) -> bool:
    """Whether a sentence names the file or its folder; of a segment or its seal, the segment."""
    if file == "ledger.db":
        return "ledger" in said
    path = Path(file)
    return any(str(part) in said for part in (path, path.parent, path.with_suffix("")))


def _folders(settings: Settings, step: Step) -> list[Path]:
    """Where a step leaves its output, the folder with its manifest first."""
    if step.name == "stage":
        return [settings.model_repository]
    return [
        run_dir(settings, step.run) / step.name,
        *([settings.lake_dir / CASE / "profiles"] if step.name == "profile" else []),
    ]


def _ran(settings: Settings, step: Step) -> Any:
    """Run a reading step."""
    if step.name == "stage":
        release = ledger.releases(settings.ledger, CASE)[0]
        repository.stage(settings.model_repository, CASE, release.champion, room.bundle_of(settings, release))
        return None
    if step.name == "gateway":
        from serving.gateway import versions

        version = versions.load(settings.root, FIELDS, ledger.releases(settings.ledger, CASE)[0])
        return {name: tensor.tolist() for name, tensor in version.encode(versions.probe(FIELDS)).items()}
    return runner.run(STEP_BY_NAME[step.name], Run(PARAMS, settings, as_of(step.run)))


def _output(settings: Settings, step: Step, answered: Any) -> str:
    """A hash of what a step left: its files, and of its manifest key, inputs and facts, without times."""
    if step.name == "gateway":
        return storage.digest(answered)
    found: dict[str, Any] = {}
    folder = _folders(settings, step)[0]
    for path in sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in TIMED and not path.name.endswith(".lock")
    ):
        if path.name == MANIFEST:
            manifest = json.loads(path.read_bytes())
            facts = {name: fact for name, fact in manifest["facts"].items() if name not in TIMED}
            files = {name: sha256 for name, sha256 in manifest["files"].items() if name not in TIMED}
            found[path.name] = [manifest["key"], manifest["inputs"], files, facts]
        else:
            found[str(path.relative_to(folder))] = file_sha256(path)
    return storage.digest(found)


if __name__ == "__main__":
    main()
