"""Profiles and statistics of drift against the bare scan of the same files, and against peers, in one run.

`make bench-drift`; under ten minutes on two quiet cores and 4 GB of disk (``ARGS=--small``: a hundredth of the rows, a
minute, written nowhere). Every measurement is a process of its own; ours and the scans take turns, and a ratio is the
median of the rounds' ratios. Files are made from fixed seeds in a scratch folder and removed. Every generated row is
warm in the page cache, so the scan is as cheap as it gets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench import environment
from benchmarks.bench.drift_arms import CATEGORIES, NUMBERS, SERVED, vocabulary
from benchmarks.record import goal, record
from pipelines.drift.profile.counts import profile_frame, to_bytes, write
from pipelines.drift.profile.spec import Spec, freeze
from pipelines.errors import ConfigError
from pipelines.fields import Categorical, Fields, Numeric, Scale

ROOT = Path(__file__).parents[2]
NANNYML = (".venv-nannyml", "requirements-nannyml.lock")
ROW_GROUP = 1 << 20
"""As pyarrow writes files unless told otherwise."""
REFERENCE_ROWS = 100_000
HOURS = 720
HOUR_ROWS = 2_000
PARTITIONS = 24
SCANS = ("scan, row groups", "scan, batches")
OURS = "ours"
LIMIT_S = 120
Found = dict[str, Any]


def main() -> None:
    """Run the benchmark and write benchmarks/results/drift.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a hundredth of the rows; prints the tables and writes nothing"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where the scratch folder is made (4 GB)")
    given = parser.parse_args()
    began = time.perf_counter()
    part = 100 if given.small else 1
    million = 1_000_000 // part
    rounds = 3 if given.small else 7
    threads = min(2, len(os.sched_getaffinity(0)))
    rows: list[Found] = []
    goals: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="perennial-bench-", dir=given.folder) as name:
        folder = Path(name)
        reference = put_reference(folder)
        about: Found = {"threads": threads, "row_group": ROW_GROUP, "reference_rows": REFERENCE_ROWS}
        peaks: dict[str, float] = {}
        for millions in (1, 10):
            for compression in ("none", "zstd"):
                path = put_rows(folder / "rows.parquet", millions * million, compression)
                label = f"{millions * million:,} x 40, {'uncompressed' if compression == 'none' else compression}"
                found = take_turns(label, [path], reference, threads, rounds if millions == 1 else max(3, rounds - 2))
                rows += [row(f"{label}: {arm}", runs, path.stat().st_size) for arm, runs in found.items()]
                goals.append(ratio(label, found))
                peaks[f"{millions} {compression}"] = statistics.median(run["peak_mb"] for run in found[OURS])
                if (millions, compression) == (1, "none"):
                    peer_rows, peer_goals = against_peers(
                        label, path, reference, threads, statistics.median(run["compute"] for run in found[OURS])
                    )
                    rows += peer_rows
                    goals += peer_goals
                path.unlink()
        goals += [
            goal("most memory of ours (MB)", max(peaks.values()), 600.0),
            goal(
                "memory of ours, ten times the rows / once",
                max(peaks[f"10 {kind}"] / peaks[f"1 {kind}"] for kind in ("none", "zstd")),
                1.2,
            ),
        ]
        day_rows, day_goal = a_day(folder, reference, threads, 2_100_000 // part, 3)
        step_rows, step_goals = the_step(folder, 20_000 // part)
        merge_row, merge_goal = hours(folder, reference, HOURS // (10 if given.small else 1))
        about["merge"] = merge_row.pop("about")
        rows += [*day_rows, *step_rows, merge_row]
        goals += [day_goal, *step_goals, merge_goal]
    record(
        "drift",
        rows=rows,
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("pyarrow", "numpy", "polars", "scipy", "evidently"),
        more={"setting": about},
        keep=not given.small,
    )


# --- files ------------------------------------------------------------------------------------------------------------


def columns(rows: int, seed: int, shift: float = 0.0) -> pa.Table:
    """Deterministic rows: normal, log-normal and whole numbers in turn, and skewed categories."""
    generator = np.random.default_rng([11, seed])
    made: dict[str, Any] = {}
    for number, name in enumerate(NUMBERS):
        values = generator.standard_normal(rows) + shift
        made[name] = (50 + 10 * values, np.exp(values), values, np.round(1000 * values))[number % 4]
    for number, name in enumerate(CATEGORIES):
        words = vocabulary(number)
        codes = np.minimum(generator.geometric(0.3, rows) - 1, len(words) - 1).astype(np.int32)
        made[name] = pa.DictionaryArray.from_arrays(codes, pa.array(words)).cast(pa.string())
    return pa.table(made)


def put_rows(path: Path, rows: int, compression: str, names: Sequence[str] = (*NUMBERS, *CATEGORIES)) -> Path:
    """A file of ``rows`` rows in row groups of ``ROW_GROUP``, moved by a quarter deviation against the reference."""
    print(f"making {rows:,} rows, {compression}", flush=True)
    with pq.ParquetWriter(path, columns(1, 0).select(names).schema, compression=compression) as writer:
        for number, start in enumerate(range(0, rows, ROW_GROUP)):
            writer.write_table(
                columns(min(ROW_GROUP, rows - start), number + 1, 0.25).select(names), row_group_size=ROW_GROUP
            )
    return path


def declared() -> Fields:
    """The columns as fields."""
    return Fields(
        "bench",
        (
            *(Numeric(name) for name in NUMBERS),
            *(Categorical(name, vocabulary(n)) for n, name in enumerate(CATEGORIES)),
        ),
        "label",
    )


def put_reference(folder: Path) -> Path:
    """``reference.parquet``, its frozen scales (``.json``) and its profile (``.profile``)."""
    import polars as pl

    path = folder / "reference.parquet"
    table = columns(REFERENCE_ROWS, 0)
    pq.write_table(table, path)
    scales = {name: freeze(table[name].to_numpy()) for name in NUMBERS}
    path.with_suffix(".json").write_text(json.dumps({name: [scale.loc, scale.scale] for name, scale in scales.items()}))
    profile = profile_frame(pl.DataFrame(table), declared(), Spec("bench", scales))
    path.with_suffix(".profile").write_bytes(to_bytes(profile))
    return path


# --- measurements -----------------------------------------------------------------------------------------------------


def measure(arm: str, paths: Sequence[Path], reference: Path, threads: int, python: str = sys.executable) -> Found:
    """One process; adds ``wall``, its whole life."""
    given = {"arm": arm, "paths": [str(path) for path in paths], "reference": str(reference), "threads": threads}
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "POLARS_MAX_THREADS": str(threads)}
    began = time.perf_counter()
    done = subprocess.run(
        [python, "-m", "benchmarks.bench.drift_arms", json.dumps(given)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * LIMIT_S,
    )
    wall = time.perf_counter() - began
    if done.returncode:
        raise ConfigError(f"the arm {arm!r} ended with {done.returncode}: {done.stderr[-1500:]}")
    found: Found = json.loads(done.stdout.splitlines()[-1]) | {"wall": wall}
    print(f"  {arm}: {found['compute']:.3f} s", flush=True)
    return found


def take_turns(label: str, paths: Sequence[Path], reference: Path, threads: int, rounds: int) -> dict[str, list[Found]]:
    """Ours and both scans, in another order every round; one round before them is not counted."""
    print(label, flush=True)
    arms = [*SCANS, OURS]
    found: dict[str, list[Found]] = {arm: [] for arm in arms}
    for number in range(rounds + 1):
        for arm in arms if number % 2 else reversed(arms):
            run = measure(arm, paths, reference, threads)
            if number:
                found[arm].append(run)
    return found


def row(name: str, runs: Sequence[Found], size: int | None = None, **more: Any) -> Found:
    """Medians of an arm."""
    compute = [run["compute"] for run in runs]
    middle = {key: statistics.median(run[key] for run in runs) for key in ("cpu", "wall", "peak_mb")}
    found: Found = {
        "name": name,
        "compute_s": round(statistics.median(compute), 4),
        "min": round(min(compute), 4),
        "max": round(max(compute), 4),
        "n": len(runs),
        "cpu_s": round(middle["cpu"], 4),
        "process_s": round(middle["wall"], 3),
        "peak_mb": round(middle["peak_mb"]),
    }
    return found | ({} if size is None else {"file_mb": round(size / 1e6)}) | more


def ratio(label: str, found: dict[str, list[Found]]) -> Found:
    """Ours against the faster of the two scans, round by round."""
    scan = min(SCANS, key=lambda arm: statistics.median(run["compute"] for run in found[arm]))
    return goal(
        f"{label}: ours / {scan}",
        statistics.median(a["compute"] / b["compute"] for a, b in zip(found[OURS], found[scan], strict=True)),
        1.5,
    )


def against_peers(label: str, path: Path, reference: Path, threads: int, own: float) -> tuple[list[Found], list[Found]]:
    """The peers at this size, once each; what cannot be installed or takes too long is a row that says so."""
    rows = []
    goals = []
    for arm in ("scipy + numpy", "Evidently psi", "Evidently ks", "NannyML ks"):
        try:
            python = str(environment.interpreter(*NANNYML)) if arm.startswith("NannyML") else sys.executable
            found = measure(arm, [path], reference, threads, python)
        except (ConfigError, subprocess.SubprocessError) as error:
            rows.append({"name": f"{label}: {arm}", "compute_s": None, "says": f"did not run: {error}"[:300]})
            continue
        rows.append(
            row(f"{label}: {arm}", [found], versions=found["versions"])
            | ({"says": f"above {LIMIT_S} s"} if found["compute"] > LIMIT_S else {})
        )
        if arm.startswith("Evidently"):
            goals.append(goal(f"{arm} / ours, compute", found["compute"] / own, 100.0, "higher"))
    return rows, goals


def a_day(folder: Path, reference: Path, threads: int, rows: int, rounds: int) -> tuple[list[Found], Found]:
    """A day of predictions: 24 partitions x 10 columns.

    One file stands for all hours: what is read is in the page cache either way.
    """
    file = put_rows(folder / "hour.parquet", rows, "none", (*NUMBERS[:8], *CATEGORIES[:2]))
    hours = []
    for hour in range(PARTITIONS):
        (folder / f"hour={hour:02d}").mkdir()
        link = folder / f"hour={hour:02d}" / "part.parquet"
        link.symlink_to(file)
        hours.append(link)
    label = f"a day, {PARTITIONS} x {rows:,} x 10, uncompressed, one file linked {PARTITIONS} times"
    found = take_turns(label, hours, reference, threads, rounds)
    size = PARTITIONS * file.stat().st_size
    file.unlink()
    return [row(f"{label}: {arm}", runs, size) for arm, runs in found.items()], ratio(label, found)


def the_step(folder: Path, rows: int) -> tuple[list[Found], list[Found]]:
    """The pipeline's own step on a day of the log, one row in a million a retry.

    Streamed, with ten times the rows, and in frames as small days are.
    """
    made: list[Found] = []
    found: dict[tuple[str, int], Found] = {}
    for times in (1, 10):
        home = put_log(folder / f"log-{times}", times * rows)
        for arm in ("profile step", *(["profile step, in frames"] if times == 10 else [])):
            found[arm, times] = measure(arm, [home], home, 2)
            made.append(
                row(
                    f"a day of the log, {PARTITIONS} x {times * rows:,}: {arm}",
                    [found[arm, times]],
                    rows=found[arm, times]["answer"]["rows"],
                )
            )
        shutil.rmtree(home)
    streamed = found["profile step", 10]
    once = found["profile step", 1]
    frames = found["profile step, in frames", 10]
    if streamed["answer"]["key"] != frames["answer"]["key"]:
        raise ConfigError(
            "streamed and in frames the step's profiles differ: a benchmark of different answers says nothing"
        )
    return made, [
        goal("profile step: memory with ten times the rows / once", streamed["peak_mb"] / once["peak_mb"], 1.2),
        goal("profile step: memory streamed / in frames", streamed["peak_mb"] / frames["peak_mb"], 0.5),
    ]


def put_log(home: Path, rows: int) -> Path:
    """A state folder with a day of compacted predictions of `loans`, ``rows`` in every hour.

    The first of each million is asked for again.
    """
    import polars as pl

    from pipelines.cases.loans.schema import FIELDS

    print(f"making a day of the log, {PARTITIONS} x {rows:,}", flush=True)
    start = datetime.fromisoformat(SERVED)
    for hour in range(PARTITIONS):
        rng = np.random.default_rng([13, hour])
        number = np.arange(rows) + hour * rows
        number[number % 1_000_000 == 1] -= 1
        at = (
            pl.Series(np.sort(rng.integers(0, 3_600_000_000, rows))).cast(pl.Duration("us"))
            + start
            + timedelta(hours=hour)
        )
        given: Found = {
            "id": pl.Series(number).cast(pl.String),
            "event_time": at,
            "received_at": at,
            "request_id": pl.Series(np.arange(rows)).cast(pl.String),
        }
        numbers = {field.name: 50 + 10 * rng.standard_normal(rows) for field in FIELDS.numeric}
        categories = {field.name: pl.Series(rng.choice(np.array(field.values), rows)) for field in FIELDS.categorical}
        score = rng.random(rows)
        frame = pl.DataFrame(
            {
                **given,
                **numbers,
                **categories,
                "version": np.ones(rows, np.int64),
                "score": score,
                "prediction": (score > 0.5).astype(np.int64),
            }
        )
        path = home / "lake" / "loans" / "predictions" / f"date={start.date()}" / f"hour={hour:02d}" / "part.parquet"
        path.parent.mkdir(parents=True)
        frame.write_parquet(path, compression="zstd")
    return home


def hours(folder: Path, reference: Path, count: int) -> tuple[Found, Found]:
    """Hundreds of hourly profiles, read and added up."""
    import polars as pl

    print(f"making {count} hourly profiles", flush=True)
    scales = {name: Scale(*scale) for name, scale in json.loads(reference.with_suffix(".json").read_text()).items()}
    spec = Spec("bench", scales)
    paths = [
        write(profile_frame(pl.DataFrame(columns(HOUR_ROWS, 100_000 + hour)), declared(), spec), folder / f"{hour}")
        for hour in range(count)
    ]
    runs = [measure("merge", paths, reference, 1) for _ in range(5)]
    middle = {key: statistics.median(run["answer"][key] for run in runs) for key in ("reading", "merging")}
    name = f"{count} hourly profiles of {HOUR_ROWS:,} rows x 40"
    about = {key: round(value, 4) for key, value in middle.items()}
    return {**row(f"{name}, read and merged", runs), "about": about}, goal(
        f"{name}: merging (s)", middle["merging"], 1.0
    )


if __name__ == "__main__":
    main()
