"""How a declared file is read: how much of it is held, how much is looked at, and the forms of its times."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.cases import columns, declared_files, row_groups
from pipelines.cases.columns import Asked
from pipelines.contracts import Window
from pipelines.errors import DataError
from pipelines.fields import Fields, Numeric
from pipelines.params import FilesSource
from pipelines.settings import Settings

START = datetime(2024, 1, 1, tzinfo=UTC)
YEAR = Window(start=START, end=START + timedelta(days=365))
FIELDS = Fields(case="shop", label="sold", fields=tuple(Numeric(f"x{number}", -100, 100) for number in range(6)))
MORE = {"parquet": 100, "csv": 250}
"""MB that reading may take. As polars reads by itself it is more than 120 and 390."""
READING = """
import sys, time
from tests.pipelines.cases import test_row_groups as own

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000

name = sys.argv[1]
sum(piece.height for piece in own.read(name + ".small"))
before, rows = peak(), 0
for piece in own.read(name):
    rows += piece.height
    time.sleep(0.02)
print(rows, peak() - before)
"""


def drawn(rows: int) -> pl.DataFrame:
    """Rows of a year in the order of time, one number as an id."""
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=rows).round(3) for name in FIELDS.names}
    times = pl.Series([START]).dt.cast_time_unit("us").new_from_index(0, rows) + pl.Series(
        np.arange(rows) * (365 * 86_400_000_000 // rows)
    ).cast(pl.Duration("us"))
    return pl.DataFrame({"id": np.arange(rows), "event_time": times, **numbers, "sold": rng.integers(0, 2, rows)})


def read(path: str | Path, window: Window = YEAR) -> list[pl.DataFrame]:
    """The pieces of a declared file, one by one."""
    declared = FilesSource(kind="files", url=str(path), format="csv" if ".csv" in str(path) else "parquet")
    source = declared_files.resolve(declared, Settings(home=Path(path).parent), "shop")
    return declared_files.pieces(source, Asked(FIELDS, declared, window))


@pytest.mark.parametrize("size", [1, 7, 20, 1000])
def test_groups_of_any_size_are_the_rows_in_their_order(tmp_path, monkeypatch, size):
    """A file gives its rows once and in order however its groups are cut, those without a time among them."""
    monkeypatch.setattr(row_groups, "AT_ONCE", 20)
    rows = drawn(100)
    rows = rows.with_columns(event_time=pl.when(pl.col("id") != 55).then("event_time"))
    rows.write_parquet(tmp_path / "a.parquet", row_group_size=size)
    found = list(read(tmp_path / "a.parquet"))
    assert max(piece.height for piece in found) <= 20
    assert pl.concat(found)["id"].to_list() == list(range(100))


def test_groups_outside_of_the_window_are_not_read(tmp_path):
    """What statistics leave out may be anything; a group that has rows without a time is read whatever they say."""
    path = tmp_path / "a.parquet"
    rows = drawn(365).with_columns(event_time=pl.when(pl.col("id") != 305).then("event_time"))
    rows.write_parquet(path, row_group_size=10)
    window = Window(start=START + timedelta(days=100), end=START + timedelta(days=115))
    expected = [*range(100, 115), 305]
    assert pl.concat(read(path, window))["id"].to_list() == expected
    metadata = pq.read_metadata(path)
    damaged = bytearray(path.read_bytes())
    for number in set(range(metadata.num_row_groups)) - {9, 10, 11, 30}:
        group = metadata.row_group(number)
        begin = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
        damaged[begin : begin + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    assert pl.concat(read(path, window))["id"].to_list() == expected
    with pytest.raises(DataError):
        list(read(path))


@pytest.mark.parametrize(("form", "size"), [("parquet", 50_000), ("parquet", 2_500_000), ("csv", None)])
def test_reading_a_large_file_holds_little_of_it(tmp_path, form, size):
    """A process that takes rows slowly does not have the rest of the file in memory meanwhile, nor of a row group."""
    path = tmp_path / f"a.{form}"
    rows = drawn(2_500_000)
    for some, name in ((rows.head(1000), f"{path}.small"), (rows, path)):
        if form == "csv":
            text = pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00")
            some.with_columns(text).write_csv(name)
        else:
            some.write_parquet(name, row_group_size=size)
    done = subprocess.run(
        [sys.executable, "-c", READING, str(path)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    count, more = done.stdout.split()
    assert int(count) == rows.height
    assert float(more) < MORE[form]


def test_each_text_of_a_time_is_read_in_the_form_that_it_has():
    """One column may hold times with a zone, local ones, days and numbers, and missing ones among them."""
    texts = ["2024-01-02T03:04:05Z", "2024-01-02 04:04+01:00", "2024-01-02T03:04", None, "2024-01-02", "1704164645"]
    declared = FilesSource(kind="files", url="a.csv", time_zone="UTC", time_unit="s")
    found = columns.moments(texts, "event_time", Asked(FIELDS, declared, YEAR), "a.csv")
    second, minute = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2024, 1, 2, 3, 4, tzinfo=UTC)
    assert found == [second, minute, minute, None, datetime(2024, 1, 2, tzinfo=UTC), second]
