"""Rows from a source to a split data set, beside a bare scan and write of the same rows by polars.

Rows are drawn with a seed, 8 numbers and 4 categories each, in no order of time; they lie in Parquet, in CSV and in a
PostgreSQL that the benchmark starts. ``ingest``, ``validate`` and ``dataset`` take them in as the line does, each in a
process of its own, whose time is taken and whose peak memory (the resident set's high-water mark) is its own. Beside
them polars scans the source and writes one Parquet file, and at the smallest size pandas with pandera does what the
three steps do. Goals are in seconds of the processor, as a machine may be busy with other work; rows a second are by
the clock. `make bench-data`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.record import goal, record
from pipelines.cases.columns import batches
from pipelines.errors import ConfigError

HOME = Path("runs/bench-data")
CASE = "orders"
AS_OF = datetime(2024, 1, 1, tzinfo=UTC)
NUMBERS = [f"x{number}" for number in range(8)]
CATEGORIES = [f"c{number}" for number in range(4)]
VALUES = [f"value-{number}" for number in range(12)]
DAYS = 90
BLOCK = 250_000
SMALL, LARGE = 1_000_000, 10_000_000
STEPS = ("ingest", "validate", "dataset")
SOURCES = ("parquet", "csv", "postgresql")
WITHIN = 3.0
"""How much longer than the bare scan and write the three steps may take together."""
MEMORY = 1000.0
"""MB that a step may take for the large window."""
FLAT = 1.5
"""How much more memory ten times the days may take, of as many rows a day."""
SCHEMA = f'''"""Orders as the benchmark draws them."""

from pipelines.fields import Categorical, Fields, Numeric

FIELDS = Fields(
    case="{CASE}",
    label="kept",
    fields=(
        *(Categorical(name, {tuple(VALUES)!r}) for name in {tuple(CATEGORIES)!r}),
        *(Numeric(name, -100, 100) for name in {tuple(NUMBERS)!r}),
    ),
)
'''


def main() -> None:
    """Measure, and write benchmarks/results/data.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.data", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a million rows at most; nothing is written")
    parser.add_argument("--large", default=",".join(SOURCES), help="the sources of ten million rows, if not all")
    parser.add_argument("--one", help="what a process of its own measures, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(**json.loads(options.one))))
        return
    began = time.perf_counter()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    large = [kind for kind in SOURCES if kind in options.large.split(",")]
    sizes = [(SMALL, DAYS, list(SOURCES))]
    if not options.quick:
        sizes += [(LARGE, DAYS, large), (LARGE, DAYS * LARGE // SMALL, ["parquet"])]
    rows: list[dict[str, Any]] = []
    left_out = [f"{kind}, {LARGE} rows: not asked for" for kind in SOURCES if kind not in large]
    for count, days, kinds in sizes:
        path = draw(count, days)
        for kind in kinds:
            try:
                with source(kind, path) as (declared, more):
                    rows += of_source(kind, count, days, declared, more)
            except ConfigError as error:
                left_out.append(f"{kind}, {count} rows: {error}")
        if count == SMALL:
            rows.append(_row("pandas with pandera", "parquet", count, days, child(what="pandas", path=str(path))))
        path.unlink()
        # After each size: the large ones take long, and what is measured stays.
        record(
            "data",
            rows=rows,
            goals=goals(rows),
            seconds=time.perf_counter() - began,
            packages=("polars", "pandera", "pandas", "pyarrow", "psycopg", "sqlalchemy"),
            more={"left_out": left_out, "load": os.getloadavg()},
            keep=not options.quick,
        )
    shutil.rmtree(HOME)


def draw(count: int, days: int) -> Path:
    """A Parquet file of so many rows, drawn block by block over the ``days`` before AS_OF, in no order of time."""
    import pyarrow.parquet as pq

    path = HOME / f"{count}-{days}.parquet"
    rng = np.random.default_rng(count + days)
    span = int(timedelta(days=days) / timedelta(microseconds=1))
    writer = None
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        ago = pl.Series(rng.integers(1, span, size)).cast(pl.Duration("us"))
        numbers = {name: rng.normal(size=size).round(3) for name in NUMBERS}
        texts = {name: np.array(VALUES)[rng.integers(0, len(VALUES), size)] for name in CATEGORIES}
        kept = rng.random(size) < 1 / (1 + np.exp(-numbers["x0"]))
        block = pl.DataFrame(
            {
                "id": pl.Series(np.arange(start, start + size)).cast(pl.String).str.pad_start(12, "0"),
                "event_time": pl.select(pl.lit(AS_OF) - ago).to_series().dt.cast_time_unit("us"),
                **texts,
                **numbers,
                "kept": kept.astype(np.int8),
            }
        ).to_arrow()
        writer = writer or pq.ParquetWriter(path, block.schema, compression="zstd")
        writer.write_table(block)
    assert writer is not None
    writer.close()
    return path


@contextmanager
def source(kind: str, path: Path) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """The rows of ``path`` as a declared source of a kind, and what must stand in the environment for it.

    Raises ConfigError where PostgreSQL is not installed.
    """
    if kind == "parquet":
        yield {"kind": "files", "url": str(path.resolve())}, {}
    elif kind == "csv":
        text = path.with_suffix(".csv")
        pl.scan_parquet(path).with_columns(_iso()).sink_csv(text)
        yield {"kind": "files", "url": str(text.resolve())}, {}
        text.unlink()
    else:
        from embedded import postgres

        postgres.find()
        with postgres.server() as urls:
            _load(path, urls["ledger"])
            yield (
                {"kind": "sql", "url_from": {"env": "BENCH_DATA_URL"}, "table": CASE},
                {"BENCH_DATA_URL": urls["ledger"]},
            )


def _iso() -> pl.Expr:
    return pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00")


def _load(path: Path, url: str) -> None:
    import psycopg

    kinds = {"event_time": "timestamptz", "kept": "smallint"} | dict.fromkeys(NUMBERS, "double precision")
    names = pl.scan_parquet(path).collect_schema().names()
    with psycopg.connect(url.replace("+psycopg", "", 1)) as connection, connection.cursor() as cursor:
        columns = ", ".join(f"{name} {kinds.get(name, 'text')}" for name in names)
        cursor.execute(f"CREATE TABLE {CASE} ({columns})".encode())
        with cursor.copy(f"COPY {CASE} FROM STDIN (FORMAT csv)".encode()) as copy:
            for block in batches(pl.scan_parquet(path).with_columns(_iso()), BLOCK):
                copy.write(block.write_csv(include_header=False).encode())
        cursor.execute(f"CREATE INDEX ON {CASE} (event_time)".encode())


def of_source(kind: str, count: int, days: int, declared: dict[str, Any], more: dict[str, str]) -> list[dict[str, Any]]:
    """The bare scan and write, and the three steps, of one source."""
    bare = child(more, what="bare", declared=declared)
    found = [_row("bare polars", kind, count, days, bare)]
    write_case(declared, days)
    steps = {step: child(more, what="step", step=step) for step in STEPS}
    found += [_row(step, kind, count, days, one) for step, one in steps.items()]
    whole = {
        "seconds": sum(one["seconds"] for one in steps.values()),
        "processor": sum(one["processor"] for one in steps.values()),
        "memory": max(one["memory"] for one in steps.values()),
    }
    times = whole["processor"] / bare["processor"]
    found.append(_row("three steps", kind, count, days, whole) | {"times": round(times, 2)})
    shutil.rmtree(HOME / "state")
    return found


def _row(name: str, kind: str, count: int, days: int, one: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "source": kind,
        "rows": count,
        "days": days,
        "seconds": round(one["seconds"], 2),
        "processor": round(one["processor"], 2),
        "rows a second": round(count / one["seconds"]),
        "peak MB": round(one["memory"]),
    }


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, of what was measured."""
    whole = [row for row in rows if row["name"] == "three steps"]
    usual = [row for row in whole if row["days"] == DAYS]
    found = [
        goal(f"{row['source']}, {row['rows']:,} rows: times the bare scan and write", row["times"], WITHIN)
        for row in usual
    ]
    found += [
        goal(f"{row['source']}, {LARGE:,} rows in {DAYS} days: MB", row["peak MB"], MEMORY)
        for row in usual
        if row["rows"] == LARGE
    ]
    memory = {(row["rows"], row["days"]): row["peak MB"] for row in whole if row["source"] == "parquet"}
    few, many = (SMALL, DAYS), (LARGE, DAYS * LARGE // SMALL)
    if many in memory:
        found.append(
            goal(f"memory of {many[1]} days beside {DAYS}, as many rows a day", memory[many] / memory[few], FLAT)
        )
    took = {row["name"]: row["processor"] for row in rows if row["rows"] == SMALL and row["source"] == "parquet"}
    found.append(goal("times pandas with pandera", took["three steps"] / took["pandas with pandera"], 1.0))
    return found


# --- a case ---------------------------------------------------------------------------------------


def write_case(declared: dict[str, Any], days: int) -> None:
    """The case of these rows, with a declared source and a window of so many days."""
    from pipelines.case_files import CASES_ROOT

    folder = HOME / "cases" / CASE
    folder.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((CASES_ROOT / "bank" / "params.yaml").read_text())
    params |= {
        "case": CASE,
        "period": [str(AS_OF - timedelta(days=days)), None],
        "label_delay_days": 1,
        "replay": None,
        "source": declared,
    }
    params["dataset"] |= {"window_days": days, "min_rows": 1000, "fallback_rows": 3000}
    params["gate"] |= {"slices": [CATEGORIES[0]]}
    params["drift"] |= {"ignore": []}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "__init__.py").write_text('"""A case."""\n')
    (folder / "schema.py").write_text(SCHEMA)
    (folder / "model.py").write_text(
        '"""A network."""\n\nfrom pipelines.cases.tabular import build\n\n__all__ = ["build"]\n'
    )


# --- in a process of its own ------------------------------------------------------------------------


def child(more: dict[str, str] | None = None, **asked: Any) -> dict[str, Any]:
    """What :func:`measured` finds in a process of its own."""
    environment = {
        **os.environ,
        "PERENNIAL_HOME": str((HOME / "state").resolve()),
        "PERENNIAL_CASES": str((HOME / "cases").resolve()),
        **(more or {}),
    }
    command = [sys.executable, "-m", "benchmarks.bench.data", "--one", json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{asked} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(what: str, **asked: Any) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory (MB) of one piece of work, imports left out of the seconds."""
    works: dict[str, Callable[..., Callable[[], object]]] = {"bare": _bare, "step": _step, "pandas": _pandas}
    work = works[what](**asked)
    before, began = time.process_time(), time.perf_counter()
    work()
    return {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - before,
        "memory": _peak(),
    }


def _peak() -> float:
    """The most memory that this process has had, in MB. What getrusage tells is no less than what its parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def _step(step: str) -> Callable[[], object]:
    from pipelines.line import order, runner
    from pipelines.line.step import Run
    from pipelines.params_file import load_params
    from pipelines.settings import read_settings

    own = next(one for one in order.STEPS if one.name == step)
    runner.home(own)
    if step == "validate":
        import pandera.polars  # noqa: F401 - which it imports once it has rows, and pandas with it
    run = Run(load_params(CASE), read_settings(), AS_OF)
    return lambda: runner.run(own, run)


def _bare(declared: dict[str, Any]) -> Callable[[], object]:
    target = HOME / "bare.parquet"
    if declared["kind"] == "sql":
        return lambda: _bare_table(os.environ["BENCH_DATA_URL"], target)
    path = declared["url"]
    scan = pl.scan_csv(path) if path.endswith(".csv") else pl.scan_parquet(path)
    return lambda: scan.sink_parquet(target, compression="zstd")


def _bare_table(url: str, target: Path) -> None:
    import sqlalchemy as sa

    with sa.create_engine(url).connect() as connection:
        batches = pl.read_database(
            f"SELECT * FROM {CASE}",
            connection.execution_options(stream_results=True),
            iter_batches=True,
            batch_size=100_000,
        )
        pl.concat(list(batches)).write_parquet(target, compression="zstd")


def _pandas(path: str) -> Callable[[], object]:
    import pandas as pd
    import pandera.pandas as pa

    columns: dict[str, Any] = {"id": pa.Column(str, unique=True), "event_time": pa.Column("datetime64[us, UTC]")}
    columns |= {name: pa.Column(str, pa.Check.isin(VALUES)) for name in CATEGORIES}
    columns |= {name: pa.Column(float, pa.Check.in_range(-100, 100)) for name in NUMBERS}
    contract = pa.DataFrameSchema(columns | {"kept": pa.Column("int8", pa.Check.isin([0, 1]))})

    def work() -> None:
        rows = contract.validate(pd.read_parquet(path), lazy=True).sort_values(["event_time", "id"])
        rows.to_parquet(HOME / "rows.parquet", compression="zstd")
        known = rows[rows["event_time"] <= pd.Timestamp(AS_OF) - pd.Timedelta(days=1)]
        newest = round(len(known) * 0.2)
        known.iloc[:-newest].to_parquet(HOME / "train.parquet", compression="zstd")
        known.iloc[-newest:].to_parquet(HOME / "holdout.parquet", compression="zstd")

    return work


if __name__ == "__main__":
    main()
