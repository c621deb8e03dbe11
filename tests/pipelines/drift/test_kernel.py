"""pipelines/drift/profile/kernel.py: profiles of Parquet files are those of their rows."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.drift.profile import bits
from pipelines.drift.profile.bits import BINS
from pipelines.drift.profile.counts import profile_frame, to_bytes
from pipelines.drift.profile.kernel import profile_parquet
from pipelines.drift.profile.spec import Scale
from pipelines.errors import DataError
from tests.pipelines.drift.test_profile import FIELDS, SPEC, TEXT_SPEC, TEXTS

ROWS = 3 * bits.CHUNK + 17


def odd_values(rows: int, seed: int = 0) -> np.ndarray:
    """Numbers with everything that a column may hold: NaN, infinities, signed zeros, what float32 cannot."""
    values = np.random.default_rng(seed).normal(2.0, 3.0, rows)
    odd = [
        np.nan,
        np.inf,
        -np.inf,
        2.0,
        np.nextafter(2.0, 0),
        -0.0,
        1e300,
        -1e300,
        5e-324,
        3.5e38,
        np.float64(np.finfo(np.float32).max) * 2,
    ]
    values[:: rows // len(odd) // 3][: len(odd)] = odd
    return values


def frame(rows: int) -> pl.DataFrame:
    """Rows of the mock case with nulls, undeclared categories and two champions."""
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "colour": rng.choice(np.array(["red", "green", "blue", None]), rows),
            "size": pl.Series(odd_values(rows)).set(pl.Series(rng.random(rows) < 0.01), None),
            "count": rng.integers(-5, 5, rows).astype(float),
            "version": rng.integers(1, 3, rows),
            "score": rng.random(rows),
        },
        schema_overrides={"colour": pl.String},
    )


@pytest.mark.parametrize(
    "values",
    [
        odd_values(ROWS),
        np.full(ROWS, 2.0),
        np.empty(0),
        np.full(20, np.nan),
        np.random.default_rng(2).normal(size=ROWS),
    ],
)
def test_the_fast_count_is_the_definition(values):
    """Counting in few passes gives the bins of the definition, whatever the values."""
    scale = Scale(2.0, 0.5)
    counts, missing = bits.count([values[:70_000], values[70_000:]], scale)
    expected = np.bincount(bits.histogram(values[np.isfinite(values)], scale), minlength=BINS)
    assert (counts == expected).all()
    assert missing == (0, np.isnan(values).sum(), np.isposinf(values).sum(), np.isneginf(values).sum())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_files_profile_is_that_of_its_rows(tmp_path, threads):
    """One file in small row groups, or a folder of files, of any writer's string type.

    The profile of the frame, to the bit.
    """
    rows = frame(ROWS)
    expected = to_bytes(profile_frame(rows, FIELDS, SPEC))
    pq.write_table(rows.to_arrow(), tmp_path / "one.parquet", row_group_size=40_000, compression="zstd")
    assert to_bytes(profile_parquet([tmp_path / "one.parquet"], FIELDS, SPEC, threads)) == expected
    for number, part in enumerate(rows.iter_slices(30_000)):
        target = tmp_path / "many" / f"hour={number:02d}" / "part.parquet"
        target.parent.mkdir(parents=True)
        part.with_columns(pl.col("colour").cast(pl.Categorical) if number % 2 else pl.col("colour")).write_parquet(
            target
        )
    assert to_bytes(profile_parquet([tmp_path / "many"], FIELDS, SPEC, threads)) == expected


def test_what_the_fast_way_does_not_know_takes_the_slow_one(tmp_path):
    """Whole numbers, numbers as text, a missing column and texts are counted as in frames.

    Text that is no number is missing.
    """
    rows = frame(500).with_columns(pl.col("count").cast(pl.Int32)).drop("colour")
    rows.write_parquet(tmp_path / "rows.parquet")
    assert to_bytes(profile_parquet([tmp_path / "rows.parquet"], FIELDS, SPEC)) == to_bytes(
        profile_frame(rows, FIELDS, SPEC)
    )
    rows.with_columns(count=pl.Series(["1", "one"] * 250)).write_parquet(tmp_path / "rows.parquet")
    column = profile_parquet([tmp_path / "rows.parquet"], FIELDS, SPEC).columns["count"]
    assert (column.n, column.missing) == (250, (250, 0, 0, 0))
    texts = pl.DataFrame(
        {"text": ["one two", None, "three"], "score": [0.5, 0.6, 0.7], "prediction": [0, 2, 9], "version": [1, 1, 2]}
    )
    texts = texts.with_columns(scores=pl.Series([[0.5, 0.3, 0.2], None, [0.7, 0.2, 0.1]]))
    texts.write_parquet(tmp_path / "texts.parquet")
    for spec in (TEXT_SPEC, replace(TEXT_SPEC, vocabulary=("one", "three"))):
        assert to_bytes(profile_parquet([tmp_path / "texts.parquet"], TEXTS, spec)) == to_bytes(
            profile_frame(texts, TEXTS, spec)
        )


def test_no_rows_and_no_file(tmp_path):
    """A folder without rows has an empty profile of all declared fields; a damaged file is refused by name."""
    empty = profile_parquet([tmp_path], FIELDS, SPEC)
    assert (empty.rows, set(empty.columns)) == (0, set(FIELDS.names))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1torn")
    with pytest.raises(DataError, match=r"torn|cannot be read"):
        profile_parquet([tmp_path], FIELDS, SPEC)
