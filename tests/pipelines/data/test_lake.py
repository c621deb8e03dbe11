"""pipelines/data/lake.py: day partitions are named by what they hold and checked when they are read."""

import hashlib
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipelines.cases.loans import source as loans
from pipelines.data import lake
from pipelines.data.rows_hash import rows_sha256
from pipelines.errors import IntegrityError
from pipelines.settings import Settings

ROWS = pl.concat([loans.generate(date(2020, 5, 1) + timedelta(days=n), rows_per_day=12) for n in range(3)])


def test_days_come_back_as_they_were_written(tmp_path: Path):
    """Three days are three partitions, which together are the rows."""
    settings = Settings(home=tmp_path)
    partitions = lake.write_days(settings, "loans", ROWS)
    assert [part["date"] for part in partitions] == ["2020-05-01", "2020-05-02", "2020-05-03"]
    assert lake.read_days(settings, partitions).equals(ROWS)


def test_late_rows_change_one_day_only(tmp_path: Path):
    """A changed day gets a new file beside its first one; the other days keep theirs."""
    settings = Settings(home=tmp_path)
    before = lake.write_days(settings, "loans", ROWS)
    after = lake.write_days(settings, "loans", ROWS.filter(pl.col("id") != "loans-20200502-0003"))
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]
    assert lake.read_days(settings, before).equals(ROWS)
    assert len(list((tmp_path / "lake").rglob("*.parquet"))) == 4


def test_the_hash_is_of_the_rows():
    """Equal rows hash alike however they came to be; another value, type or order does not."""
    assert lake.content_sha256(ROWS) == lake.content_sha256(pl.concat([ROWS.head(5), ROWS.tail(-5)]))
    for other in (
        ROWS.reverse(),
        ROWS.with_columns(pl.col("age") + 1),
        ROWS.with_columns(pl.col("age").cast(pl.Int64)),
    ):
        assert lake.content_sha256(other) != lake.content_sha256(ROWS)


def test_a_changed_partition_is_refused(tmp_path: Path):
    """A file with other rows than its manifest names, or none, stops the reader and is named."""
    settings = Settings(home=tmp_path)
    [first, *_] = partitions = lake.write_days(settings, "loans", ROWS)
    for other in (ROWS.head(2), ROWS.with_columns(pl.col("id").cast(pl.Categorical))):
        other.write_parquet(tmp_path / first["path"])
        with pytest.raises(IntegrityError, match="does not hold the rows"):
            lake.read_days(settings, partitions)
    (tmp_path / first["path"]).unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        lake.read_days(settings, partitions)


def test_what_is_no_number_is_told_apart(tmp_path: Path):
    """Null, NaN and the infinities are kept apart: mended rows are read back mended, not as they were before."""
    settings = Settings(home=tmp_path)
    values = (None, float("nan"), float("inf"), float("-inf"))
    sound = pl.when(pl.int_range(pl.len()) != 3).then("salary")
    frames = [ROWS.with_columns(salary=sound.otherwise(pl.lit(value))) for value in values]
    frames += [ROWS, ROWS.with_columns(commission=frames[2]["salary"], salary=pl.col("commission"))]
    assert len({lake.content_sha256(frame) for frame in frames}) == len(frames)
    for frame, partitions in [(frame, lake.write_days(settings, "loans", frame)) for frame in frames]:
        assert lake.read_days(settings, partitions).equals(frame)


def test_partitions_of_before_are_still_read(tmp_path: Path):
    """A manifest with a hash from before null and infinity were told apart still finds its rows; new rows never do."""
    settings = Settings(home=tmp_path)
    broken = ROWS.head(12).with_columns(salary=pl.lit(float("inf")))
    mended = broken.with_columns(salary=pl.lit(None, pl.Float64))
    schema = ",".join(f"{name}:{kind}" for name, kind in broken.schema.items())
    sha256 = hashlib.sha256(f"{schema}\n{broken.write_ndjson()}".encode()).hexdigest()
    path = tmp_path / "lake" / "loans" / "rows" / "date=2020-05-01" / f"{sha256[:16]}.parquet"
    path.parent.mkdir(parents=True)
    broken.write_parquet(path)
    old = [{"date": "2020-05-01", "path": str(path.relative_to(tmp_path)), "rows": 12, "sha256": sha256}]
    assert lake.read_days(settings, old).equals(broken)
    assert lake.read_days(settings, lake.write_days(settings, "loans", mended)).equals(mended)
    for other in (lake.content_sha256(mended), rows_sha256(mended)):
        with pytest.raises(IntegrityError, match="does not hold the rows"):
            lake.read_days(settings, [{**old[0], "sha256": other}])


def test_a_day_that_was_named_by_its_content_keeps_its_name(tmp_path: Path):
    """Rows in a file of the former hash are not written again: a run that is repeated finds its partitions and key."""
    settings = Settings(home=tmp_path)
    old = []
    for (day,), rows in ROWS.group_by(pl.col("event_time").dt.date(), maintain_order=True):
        sha256 = lake.content_sha256(rows)
        path = tmp_path / "lake" / "loans" / "rows" / f"date={day}" / f"{sha256[:16]}.parquet"
        path.parent.mkdir(parents=True)
        rows.write_parquet(path)
        old.append({"date": str(day), "path": str(path.relative_to(tmp_path)), "rows": rows.height, "sha256": sha256})
    assert lake.write_days(settings, "loans", ROWS) == old
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    assert lake.read_days(settings, old).equals(ROWS)
    late = ROWS.filter(pl.col("id") != "loans-20200502-0003")
    first, second, third = lake.write_days(settings, "loans", late)
    assert (first, third) == (old[0], old[2])
    assert second["sha256"] == rows_sha256(late.filter(pl.col("event_time").dt.date() == date(2020, 5, 2)))
    assert lake.read_days(settings, old).equals(ROWS)


@pytest.mark.parametrize("damage", [b"", None])
def test_the_mend_of_a_partition_works(tmp_path: Path, damage: bytes | None):
    """A partition that cannot be read, or holds other rows, comes back when it is removed and written again."""
    settings = Settings(home=tmp_path)
    [first, *_] = partitions = lake.write_days(settings, "loans", ROWS)
    path = tmp_path / first["path"]
    path.write_bytes(damage) if damage is not None else ROWS.head(2).write_parquet(path)
    with pytest.raises(IntegrityError, match="remove it and run the step 'ingest' again"):
        lake.read_days(settings, partitions)
    path.unlink()
    assert lake.write_days(settings, "loans", ROWS) == partitions
    assert lake.read_days(settings, partitions).equals(ROWS)
