"""pipelines/measures.py: the slices of strange columns."""

import polars as pl

from pipelines.measures import MOST_SLICES, slices


def _rows(frame, by, bins=()):
    return {name: int(mask.sum()) for name, mask in slices(frame, (by,), {by: bins} if bins else {}).items()}


def test_bins_of_large_numbers_keep_their_own_names():
    """Edges that agree in six digits are told apart: each bin is a slice, and no rows of two bins are one."""
    days = pl.DataFrame({"day": [20130131.0, 20130132.0, 20130133.0, 20130133.0, None]})
    assert _rows(days, "day", (20130131.0, 20130132.0, 20130133.0)) == {
        "day=20130131 to below 20130132": 1,
        "day=20130132 to below 20130133": 1,
        "day=20130133 or more": 2,
        "day=missing": 1,
    }


def test_a_value_called_missing_is_not_lost_beside_rows_without_one():
    """Rows whose value is the word and rows without a value are one slice: neither takes the other's place."""
    frame = pl.DataFrame({"team": ["missing", "missing", None, "a"]})
    assert _rows(frame, "team") == {"team=a": 1, "team=missing": 3}


def test_of_a_customers_key_the_commonest_values_are_slices():
    """Ten thousand values are no ten thousand masks and metrics: those with most rows are kept, all rows of each."""
    keys = [f"c{number:05d}" for number in range(10_000)]
    found = _rows(pl.DataFrame({"customer": [*keys, *keys[-300:]]}), "customer")
    assert len(found) == MOST_SLICES
    assert [found[f"customer={key}"] for key in keys[-300:]] == [2] * 300
    assert list(found) == sorted(found)
