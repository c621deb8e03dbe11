"""Is every label evidence, whenever it comes?

Concept drift on `loans`, labels late and in batches: `make proof-labels`. One champion (the case's own model,
parameters and export) is trained once and serves 400 rows a day in every cell. From the fifth day on the rule is
another one, and no input moves: only labels can tell. They are stated as of their true time, 0, 1, 7 or 14 days after
the row (the delay that the case declares), and posted hourly, daily (a nightly job sends yesterday's at 06:00, four
hours after the drift run) or weekly (on Mondays). What the gateway would log is written as its segments, and the loop's
own steps (profile, drift) judge every day at 02:00 of the next.

A label is due in the first window that is judged after it was posted and that ends no earlier than its stated time. A
cell holds if every run has counted exactly the labels due, rows and errors, and drift is confirmed at most one window
after the earliest possible one: the window in which the policy, given the due labels alone, confirms it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from benchmarks.record import goal, record
from pipelines import ledger, storage
from pipelines.cases.loans.schema import FIELDS
from pipelines.cases.loans.source import generate
from pipelines.contracts import LabelLine, Order, PredictionLine
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence, PolicyState
from pipelines.drift.labels import arrived as label_evidence
from pipelines.drift.profile.counts import Profile, to_bytes
from pipelines.drift.reference import FILE
from pipelines.drift_report import read_report
from pipelines.files import write_atomic
from pipelines.line import runner
from pipelines.line.order import DRIFT, PROFILE
from pipelines.line.step import Run
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings

PARAMS = load_params("loans")
START = date(2021, 3, 1)
"""A Monday."""
DRIFT_DAY = 4
DELAYS = (0, 1, 7, 14)
UPLOADS = {"hourly": timedelta(hours=1), "daily": timedelta(days=1), "weekly": timedelta(days=7)}
LAG = {"hourly": timedelta(minutes=5), "daily": timedelta(hours=6), "weekly": timedelta(hours=6)}
"""How long after the end of what an upload covers it is posted."""
RUN_AT = timedelta(hours=2)
VERSION = 1


class Champion(Protocol):
    """What serves: its scores, and the profile of what it was trained on."""

    seed: int
    reference: Profile

    def scores(self, frame: pl.DataFrame) -> Any:
        """Probabilities ``[n]`` of rows."""


@dataclass(frozen=True)
class Cell:
    """How late labels are in one run of the probe, how they are posted.

    And how many windows follow the first such upload.
    """

    delay: int
    upload: str
    afterwards: int = 8

    @property
    def params(self) -> Params:
        """The case's, with this delay; a retraining waits for no labels, and no page is drawn."""
        own = PARAMS.drift.model_copy(update={"min_new_labels": (0, 0, 0.0), "evidently": "never"})
        return PARAMS.model_copy(update={"label_delay_days": float(self.delay), "drift": own})

    @property
    def windows(self) -> int:
        """Days that are served and judged."""
        return DRIFT_DAY + self.delay + UPLOADS[self.upload].days + self.afterwards


def main() -> None:
    """Play every cell and write benchmarks/results/proof-labels.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short cells with a short training, nothing written")
    quick = parser.parse_args().quick
    began = time.perf_counter()
    cells = (
        [Cell(0, "daily", 3), Cell(1, "hourly", 3)]
        if quick
        else [Cell(delay, upload) for delay in DELAYS for upload in UPLOADS]
    )
    champion = trained(epochs=4 if quick else PARAMS.train.epochs)
    rows = []
    for cell in cells:
        rows.append(played(cell, champion))
        print(rows[-1], flush=True)
    record(
        "proof-labels",
        rows=rows,
        goals=goals(rows),
        seconds=time.perf_counter() - began,
        packages=("numpy", "polars", "torch", "onnxruntime"),
        more={"definition": " ".join((__doc__ or "").split("\n\n")[2].split())},
        keep=not quick,
    )


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What has to hold in every cell."""
    wanted = {
        "every run counted exactly the labels due": [row["runs_as_due"] == row["windows"] for row in rows],
        "labels spoke in the first window that they could": [
            row["first_spoke"] == row["first_possible"] for row in rows
        ],
        "drift confirmed at most one window after the earliest possible": [
            row["confirmed"] is not None and row["earliest"] is not None and row["confirmed"] <= row["earliest"] + 1
            for row in rows
        ],
    }
    return [goal(f"{name}, of {len(rows)} cells", sum(held), len(rows), "higher") for name, held in wanted.items()]


def trained(epochs: int) -> Champion:
    """The champion of the stream's thirty days before the first one."""
    from benchmarks.proof import diagnosis as proof_diagnosis

    return proof_diagnosis.Champion(0, PARAMS.train.model_copy(update={"epochs": epochs}))


# --- the log ------------------------------------------------------------------------------------


def served(champion: Champion, number: int) -> pl.DataFrame:
    """The rows of a day with what the champion answers, as ``score``."""
    rows = generate(
        day(number),
        rows_per_day=int(PARAMS.source["rows_per_day"] or 0),
        seed=champion.seed,
        drift="concept",
        drift_at=day(DRIFT_DAY),
    )
    return rows.with_columns(score=pl.Series(champion.scores(rows), dtype=pl.Float64))


def stated(rows: pl.DataFrame, cell: Cell) -> pl.DataFrame:
    """Every row's label with the time that is stated for it, and when it is posted.

    ``id, event_time, score, label, label_time, posted``.
    """
    every = UPLOADS[cell.upload]
    at = pl.col("event_time") + timedelta(days=cell.delay)
    # An upload covers whole hours, days or weeks since the first Monday.
    covered = (at - midnight(START)).dt.total_seconds() // int(every.total_seconds()) + 1
    posted = midnight(START) + pl.duration(seconds=covered * int(every.total_seconds())) + LAG[cell.upload]
    return rows.select(
        "id", "event_time", "score", label=pl.col(FIELDS.label).cast(pl.Int64), label_time=at, posted=posted
    )


def log_rows(settings: Settings, rows: pl.DataFrame, segment: str) -> None:
    """The gateway's lines of some answers, as one closed segment."""
    lines = [
        PredictionLine(
            prediction_id=row["id"],
            request_id=row["id"],
            event_time=row["event_time"].isoformat(),
            received_at=row["event_time"].isoformat(),
            version=VERSION,
            score=row["score"],
            prediction=int(row["score"] >= 0.5),
            row={name: row[name] for name in FIELDS.names},
        )
        for row in rows.iter_rows(named=True)
    ]
    _segment(settings, "predictions", segment, lines)


def log_labels(settings: Settings, labels: pl.DataFrame, segment: str) -> None:
    """The gateway's lines of one upload, as one closed segment."""
    lines = [
        LabelLine(
            prediction_id=row["id"],
            label=row["label"],
            revision=0,
            event_time=row["label_time"].isoformat(),
            received_at=row["posted"].isoformat(),
        )
        for row in labels.iter_rows(named=True)
    ]
    _segment(settings, "labels", segment, lines)


def _segment(settings: Settings, kind: str, name: str, lines: list[Any]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(settings.prediction_log / PARAMS.case / kind / f"{name}.jsonl", text.encode())


def release(settings: Settings, champion: Champion) -> None:
    """The champion in the ledger since the first midnight, with the folders that its training would have left."""
    as_of = midnight(START)
    run_dir = settings.run_dir(PARAMS.case, as_of)

    def dataset(folder: Path) -> Mapping[str, Any]:
        served(champion, 0).drop("score").write_parquet(folder / "train.parquet")
        return {}

    def export(folder: Path) -> Mapping[str, Any]:
        (folder / FILE).write_bytes(to_bytes(champion.reference))
        return {}

    for step, build in (("dataset", dataset), ("export", export)):
        storage.commit(run_dir / step, case=PARAMS.case, as_of=as_of, key=step, inputs={}, build=build)
    ledger.append(
        settings.ledger,
        Order(
            case=PARAMS.case,
            after=0,
            champion=VERSION,
            candidate_key="export",
            bundle=str((run_dir / "export").relative_to(settings.root)),
            action="promote",
            trigger="initial",
            reason="the probe's champion",
            actor="benchmark",
            as_of=as_of,
        ),
    )


# --- a cell -------------------------------------------------------------------------------------


def played(cell: Cell, champion: Champion) -> dict[str, Any]:
    """Serve, post and judge day after day; what was counted and found beside what was due and could be found.

    Days are counted from 0.
    """
    with tempfile.TemporaryDirectory(prefix="perennial-labels-") as home:
        settings = read_settings(home=Path(home))
        release(settings, champion)
        # One day more: its first hours are there already when the last window is judged.
        rows = pl.concat([served(champion, number) for number in range(cell.windows + 1)])
        labels = stated(rows, cell)
        reports = []
        segments = count(1)
        before = midnight(START)
        for number in range(cell.windows):
            now = run_time(number)
            log_rows(
                settings,
                rows.filter(pl.col("event_time").is_between(before, now, closed="left")),
                f"rows-{next(segments):06d}",
            )
            new = labels.filter(pl.col("posted").is_between(before, now, closed="left"))
            for upload in new.partition_by("posted", maintain_order=True):
                log_labels(settings, upload, f"labels-{next(segments):06d}")
            before = now
            run_dir = settings.run_dir(PARAMS.case, now)
            run = Run(cell.params, settings, now)
            runner.run(PROFILE, run)
            runner.run(DRIFT, run)
            reports.append(read_report(run_dir / DRIFT.name))
    counted = [(one.labels.rows, one.labels.errors) for one in reports]
    expected = [(part.height, errors(part)) for part in due(labels, cell.windows)]
    confirmed = (number for number, one in enumerate(reports) if one.policy.trigger == "performance")
    return {
        "delay_days": cell.delay,
        "upload": cell.upload,
        "windows": cell.windows,
        "delivered": sum(rows for rows, _ in expected),
        "judged": sum(rows for rows, _ in counted),
        "runs_as_due": sum(one == wanted for one, wanted in zip(counted, expected, strict=True)),
        "drift_day": DRIFT_DAY,
        "first_possible": next((number for number, (rows, _) in enumerate(expected) if rows), None),
        "first_spoke": next((number for number, (rows, _) in enumerate(counted) if rows), None),
        "earliest": earliest(cell, champion, labels),
        "confirmed": next(confirmed, None),
    }


def due(labels: pl.DataFrame, windows: int) -> Iterator[pl.DataFrame]:
    """For every window the labels due in it.

    Posted before its run and stated by its end, and not due in an earlier one.
    """
    left = labels
    for number in range(windows):
        here = (pl.col("posted") < run_time(number)) & (pl.col("label_time") <= midnight(day(number + 1)))
        yield left.filter(here)
        left = left.filter(~here)


def errors(labels: pl.DataFrame) -> int:
    """How many of the rows were answered with the other class than their label."""
    return int(((labels["score"] >= 0.5) != (labels["label"] == 1)).sum())


def earliest(cell: Cell, champion: Champion, labels: pl.DataFrame) -> int | None:
    """The window in which the policy confirms the drift if it is given the labels due and nothing else."""
    state: PolicyState | None = None
    config = cell.params.drift
    baseline = champion.reference.baseline
    for number, part in enumerate(due(labels, cell.windows)):
        rows = part.with_columns(version=pl.lit(VERSION, pl.Int64))
        evidence = DriftEvidence(
            champion=VERSION,
            training_rows=champion.reference.rows,
            thin=True,
            labels=label_evidence.judge(rows, VERSION, baseline, config),
        )
        state, action = policy.step(state, evidence, config, run_time(number), PARAMS.case, midnight(day(number + 1)))
        if action == "retrain":
            return number
    return None


def day(number: int) -> date:
    """The n-th day of the stream."""
    return START + timedelta(days=number)


def midnight(of: date) -> datetime:
    """The first moment of a UTC day."""
    return datetime(of.year, of.month, of.day, tzinfo=UTC)


def run_time(number: int) -> datetime:
    """When the n-th day is judged."""
    return midnight(day(number + 1)) + RUN_AT


if __name__ == "__main__":
    main()
