"""Does the diagnosis name what happened? `loans` with every kind of drift, over 20 seeds: `make proof-diagnosis`.

For each seed a champion is trained on 30 days of the stream (the case's own model, parameters and export), and then
serves it, 400 rows and one window a day; labels come after the case's 7 days. Drift sets in with window 14. Everything
is judged by the functions of the drift step.

A diagnosis is right if, in the window in which labels of drifted rows have come for the second time (two windows are
what the policy wants for its confirmation), it names the kind, and names as the first day that moved the very day on
which drift set in. Of `none` every single window must say "none". How early the kind was named is told beside it, and
so is how often a window before the drift said anything.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.record import goal, record
from pipelines import runtime
from pipelines.cases.loans import model as network
from pipelines.cases.loans.schema import FIELDS
from pipelines.cases.loans.source import KINDS, generate
from pipelines.contracts import Window
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence, PolicyState
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.labels import arrived as label_evidence
from pipelines.drift.labels import performance
from pipelines.drift.profile.counts import Profile, profile_frame
from pipelines.drift.profile.spec import load_spec
from pipelines.drift.profile.windows import last_windows
from pipelines.drift.reference import reference_profile
from pipelines.drift.why.diagnosis import diagnose
from pipelines.drift.why.findings import Seen
from pipelines.drift_report import Diagnosis, PastEstimate
from pipelines.encoding import encode
from pipelines.params import ModelParams, TrainParams
from pipelines.params_file import load_params

PARAMS = load_params("loans")
SPEC = load_spec(FIELDS)
SEEDS = range(20)
NEEDED = 18
START = date(2021, 3, 1)
LEARNED_DAYS = 30
QUIET_DAYS = 14
DRIFT_AT = START + timedelta(days=QUIET_DAYS)
DELAY = timedelta(days=PARAMS.label_delay_days)
WINDOWS = QUIET_DAYS + DELAY.days + PARAMS.drift.confirm
VERSION = 1


def main() -> None:
    """Diagnose every window of every kind and seed, and write benchmarks/results/proof-diagnosis.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two other seeds, nothing written")
    quick = parser.parse_args().quick
    began = time.perf_counter()
    cells = []
    seeds = range(100, 102) if quick else SEEDS
    needed = min(NEEDED, len(seeds))
    for seed in seeds:
        for cell in judged(Champion(seed)):
            print({name: value for name, value in cell.items() if name != "diagnoses"}, flush=True)
            cells.append(cell)
    record(
        "proof-diagnosis",
        rows=summary(cells),
        goals=[
            goal(
                f"{kind}: kind and window named, of {len(own)} seeds",
                sum(cell["right"] for cell in own),
                needed,
                "higher",
            )
            for kind, own in by_kind(cells)
        ],
        seconds=time.perf_counter() - began,
        packages=("numpy", "scipy", "polars", "torch", "onnxruntime"),
        more={"definition": (__doc__ or "").split("\n\n")[2].replace("\n", " "), "cells": cells},
        keep=not quick,
    )


def by_kind(cells: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The cells of each kind of drift."""
    for kind in KINDS:
        yield kind, [cell for cell in cells if cell["kind"] == kind]


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per kind."""
    rows = []
    for kind, own in by_kind(cells):
        named = [cell["windows_until_named"] for cell in own if cell["windows_until_named"] is not None]
        rows.append(
            {
                "kind": kind,
                "seeds": len(own),
                "right": sum(cell["right"] for cell in own),
                "kind_right": sum(cell["found"] == kind for cell in own),
                "day_right": sum(cell["since"] == (None if kind == "none" else DRIFT_AT.isoformat()) for cell in own),
                "median_windows_until_named": statistics.median(named) if named else None,
                "windows_before_drift": sum(cell["quiet_windows"] for cell in own),
                "of_them_not_none": sum(cell["quiet_not_none"] for cell in own),
                "drifted_windows_with_another_kind": sum(cell["other_kinds"] for cell in own),
                "estimates_inside": sum(cell["estimates_inside"] for cell in own),
                "estimates": sum(cell["estimates"] for cell in own),
            }
        )
    return rows


def judged(champion: Champion) -> Iterator[dict[str, Any]]:
    """The cell of every kind of drift with one champion."""
    for kind in KINDS:
        found, earlier = champion.diagnoses(kind)
        quiet = found[:QUIET_DAYS]
        drifted = found[QUIET_DAYS:]
        last = found[-1]
        since = None if last.since is None else last.since.isoformat()
        wanted = None if kind == "none" else DRIFT_AT.isoformat()
        names = [diagnosis.kind for diagnosis in found]
        first = next((number for number, diagnosis in enumerate(drifted) if diagnosis.kind == kind), None)
        # Only windows that were served under drift alone, and whose labels are there, say what the estimate was worth.
        worth = [one for one in earlier if kind == "none" or one.end >= midnight(DRIFT_AT + timedelta(days=1))]
        yield {
            "seed": champion.seed,
            "kind": kind,
            "found": last.kind,
            "since": since,
            "right": (set(names) == {"none"}) if kind == "none" else (last.kind, since) == (kind, wanted),
            "windows_until_named": None if kind == "none" or first is None else first + 1,
            "quiet_windows": len(quiet),
            "quiet_not_none": sum(diagnosis.kind != "none" for diagnosis in quiet),
            "other_kinds": sum(diagnosis.kind not in {"none", kind} for diagnosis in drifted),
            "estimates": len(worth),
            "estimates_inside": sum(one.inside for one in worth),
            "diagnoses": names,
            "slices": [f"{one.field}={one.value}" for one in last.slices],
            "why": last.why,
        }


class Champion:
    """One seed's trained champion and the days it served; days before the drift are the same for every kind."""

    def __init__(self, seed: int, train_params: TrainParams = PARAMS.train) -> None:
        """Train, export and score as the steps do."""
        from pipelines.export.bundle import write_bundle
        from pipelines.export.onnx import of_torch
        from pipelines.training.fit import fit
        from pipelines.training.rows import as_rows

        self.seed = seed
        self.quiet: dict[date, tuple[pl.DataFrame, Profile]] = {}
        learned = pl.concat(
            [self.generated(START - timedelta(days=LEARNED_DAYS - number), "none") for number in range(LEARNED_DAYS)]
        )
        cut = round(learned.height * (1 - PARAMS.dataset.holdout_share))
        train = learned.head(cut)
        holdout = learned.tail(learned.height - cut)
        self.folder = tempfile.TemporaryDirectory(prefix="perennial-diagnosis-")
        columns = {name: train[name].to_list() for name in FIELDS.names}
        rows = as_rows(encode(FIELDS, columns), train[FIELDS.label].to_numpy())
        model = PARAMS.model
        assert isinstance(model, ModelParams)
        fitted = fit(lambda: network.build(model, FIELDS), rows, train_params.model_copy(update={"seed": seed}))
        write_bundle(of_torch(fitted.model, FIELDS), FIELDS, Path(self.folder.name), {})
        self.reference = reference_profile(train, self.scores(holdout), FIELDS, SPEC, holdout)

    def generated(self, day: date, kind: str) -> pl.DataFrame:
        """The rows of a day."""
        return generate(
            day, rows_per_day=int(PARAMS.source["rows_per_day"] or 0), seed=self.seed, drift=kind, drift_at=DRIFT_AT
        )

    def scores(self, frame: pl.DataFrame) -> Any:
        """What the exported model answers."""
        return runtime.score_rows(
            Path(self.folder.name), FIELDS, {name: frame[name].to_list() for name in FIELDS.names}
        )

    def day(self, day: date, kind: str) -> tuple[pl.DataFrame, Profile]:
        """A day's served rows with their labels to be, and its profile."""
        if day in self.quiet:
            return self.quiet[day]
        rows = self.generated(day, kind)
        served = rows.with_columns(
            version=pl.lit(VERSION, pl.Int64),
            score=pl.Series(self.scores(rows)),
            label=pl.col(FIELDS.label),
            label_time=pl.col("event_time") + DELAY,
        )
        found = (
            served.select("id", "event_time", "version", "score", "label", "label_time", *PARAMS.gate.slice_fields),
            profile_frame(served, FIELDS, SPEC),
        )
        if day < DRIFT_AT:
            self.quiet[day] = found
        return found

    def diagnoses(self, kind: str) -> tuple[list[Diagnosis], tuple[PastEstimate, ...]]:
        """The diagnosis of every window, oldest first, as the drift step makes it.

        And in the last what had been estimated ``earlier``.
        """
        drift = PARAMS.drift
        found = []
        frames: list[pl.DataFrame] = []
        days: dict[date, Profile] = {}
        state: PolicyState | None = None
        for number in range(WINDOWS):
            day = START + timedelta(days=number)
            window = Window(start=midnight(day), end=midnight(day + timedelta(days=1)))
            served, days[day] = self.day(day, kind)
            frames.append(served)
            everything = pl.concat(frames)
            labels = everything.select("id", "label", "label_time")
            rows = everything.drop("label", "label_time")
            known = performance.known(rows, labels, window.end)
            counted = label_evidence.counted(rows, labels, window.start, DELAY)
            fresh = label_evidence.fresh(rows, labels, window.end, DELAY, counted)
            features = compare(self.reference, days[day], FIELDS, SPEC, drift, VERSION)
            problems = tuple(str(problem) for problem in quality(self.reference, days[day], window, drift).problems)
            evidence = label_evidence.judge(fresh, VERSION, self.reference.baseline, drift)
            # No new labels for a training: the champion stays, and the policy watches on.
            told = DriftEvidence(
                champion=VERSION,
                training_rows=self.reference.rows,
                problems=problems,
                features=features,
                labels=evidence,
            )
            state, _ = policy.step(state, told, drift, window.end, PARAMS.case, window.end)
            seen = Seen(
                version=VERSION,
                reference=self.reference,
                window=days[day],
                features=features,
                labels=evidence,
                problems=problems,
                days=dict(days),
                fresh=fresh,
                known=known.filter(pl.col("label").is_not_null()),
                log_e=state.log_e,
            )
            found.append(diagnose(seen, drift))
        # The slices and the look back at the estimates name no kind: the last window's are enough.
        shown = performance.summary(
            known,
            last_windows(window, drift.window, DELAY.days + 8),
            VERSION,
            self.reference.baseline,
            PARAMS.gate.slice_fields,
            drift,
            FIELDS.target,
            PARAMS.gate.bins,
        )
        found[-1] = diagnose(replace(seen, slices=shown.slices), drift)
        return found, shown.earlier


def midnight(day: date) -> datetime:
    """The first moment of a UTC day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


if __name__ == "__main__":
    main()
