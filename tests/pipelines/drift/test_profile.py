"""pipelines/drift/profile/counts.py: counts that add up, whatever the values."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.drift.profile.bits import BINS, bounds, histogram
from pipelines.drift.profile.counts import Profile, merge, number_column, profile_frame, read, to_bytes, write
from pipelines.drift.profile.spec import Scale, Spec, freeze, load_spec, main
from pipelines.drift.reference import reference_profile
from pipelines.errors import ConfigError, IntegrityError
from pipelines.fields import Categorical, Fields, Numeric, Text

FIELDS = Fields(
    "mock", (Categorical("colour", ("red", "green")), Numeric("size"), Numeric("count", integer=True)), "bought"
)
SPEC = Spec("mock", {"size": Scale(2.0, 0.5), "count": Scale(0.0, 1.0), "score": Scale(0.0, 1.0)})

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["red", "green", "blue", None]),
        st.none() | st.floats(allow_nan=True),
        st.integers(-5, 5),
        st.integers(1, 2),
        st.floats(0, 1),
    ),
    max_size=20,
)


def frame(rows: list[tuple]) -> pl.DataFrame:
    """Rows as a frame of the mock case, scored by two versions."""
    schema = {"colour": pl.String, "size": pl.Float64, "count": pl.Float64, "version": pl.Int64, "score": pl.Float64}
    return pl.DataFrame([(*row[:2], float(row[2]), *row[3:]) for row in rows], schema=schema, orient="row")


def same(one: Profile, other: Profile) -> bool:
    """Whether two profiles hold the same counts."""
    return to_bytes(one) == to_bytes(other)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, ROWS, st.randoms())
def test_merging_is_addition(a: list, b: list, c: list, random):
    """Profiles of parts add up to the profile of the whole, in any order and grouping.

    The order of the rows does not matter either.
    """
    pa, pb, pc = (profile_frame(frame(rows), FIELDS, SPEC) for rows in (a, b, c))
    whole = [*a, *b, *c]
    random.shuffle(whole)
    expected = merge([profile_frame(frame(whole), FIELDS, SPEC)], "mock")
    assert same(merge([pa, pb, pc], "mock"), expected)
    assert same(merge([pa, merge([pb, pc], "mock")], "mock"), merge([merge([pc, pa], "mock"), pb], "mock"))
    assert same(merge([merge([], "mock"), expected], "mock"), expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_bins_follow_the_values(values: list[float]):
    """A larger value is never in a smaller bin, and every bin is one of the 65,536."""
    bins = histogram(np.sort(np.array(values)), Scale(3.0, 0.25))
    assert (np.diff(bins) >= 0).all()
    assert ((bins >= 0) & (bins < BINS)).all()


def test_bounds_hold_their_values():
    """Every value lies within the bounds of its bin, as far as float32 can tell."""
    values = np.random.default_rng(0).normal(50, 20, 5000)
    scale = Scale(50.0, 0.05)
    low, high = bounds(histogram(values, scale), scale)
    assert (low - 1e-4 <= values).all()
    assert (values <= high + 1e-4).all()
    assert ((high - low) <= 0.01 * np.maximum(1, np.abs(values - 50))).all()


def test_many_and_few_rows_are_counted_alike():
    """A column longer than the histogram gives the counts of its halves together."""
    values = np.random.default_rng(1).normal(size=BINS + 1000)
    whole = number_column(pl.Series(values), Scale(0.0, 1.0))
    halves = [
        Profile("s", 0, {"x": number_column(pl.Series(part), Scale(0.0, 1.0))}) for part in np.array_split(values, 2)
    ]
    assert same(merge(halves, "s"), Profile("s", 0, {"x": whole}))


def test_what_is_no_number_is_counted_apart():
    """Nulls, NaN and infinities are in no bin; an undeclared category is one bin; a missing column is all null."""
    profile = profile_frame(
        pl.DataFrame({"colour": ["red", "blue", None], "size": [1.0, float("nan"), float("-inf")]}), FIELDS, SPEC
    )
    assert profile.columns["size"].missing == (0, 1, 0, 1)
    assert profile.columns["size"].n == 1
    assert profile.columns["count"].missing == (3, 0, 0, 0)
    colour = profile.columns["colour"]
    assert (colour.bins.tolist(), colour.counts.tolist(), colour.missing) == ([0, 2], [1, 1], (1, 0, 0, 0))


def test_scores_are_kept_by_version():
    """The score of each version is a feature of its own, so that a window with two champions can be told apart."""
    profile = profile_frame(
        frame([("red", 1.0, 1, 1, 0.5), ("red", 1.0, 1, 2, 0.5), ("red", 1.0, 1, 2, 0.7)]), FIELDS, SPEC
    )
    assert {name: column.n for name, column in profile.columns.items() if "@" in name} == {
        "score@1": 1,
        "score@2": 2,
        "entropy@1": 1,
        "entropy@2": 2,
    }


def test_the_entropy_is_that_of_the_predicted_distribution():
    """A coin is ln 2, a certain answer 0, K equal classes ln K.

    A row without an answer is missing, and so are all without probabilities.
    """
    binary = profile_frame(pl.DataFrame({"score": [0.5, 1.0, 0.0, None]}), FIELDS, SPEC).columns["entropy"]
    low, high = bounds(binary.bins, SPEC.scales["score"])
    assert (binary.counts.tolist(), binary.missing) == ([2, 1], (1, 0, 0, 0))
    assert low[0] == 0
    assert low[1] <= np.log(2) <= high[1]
    rows = pl.DataFrame(
        {
            "text": ["x"] * 3,
            "version": [1, 1, 2],
            "score": [1 / 3, 1.0, 0.5],
            "scores": [[1 / 3] * 3, [0.0, 1.0, 0.0], None],
        }
    )
    classes = profile_frame(rows, TEXTS, TEXT_SPEC).columns
    low, high = bounds(classes["entropy@1"].bins, SPEC.scales["score"])
    assert low[1] <= np.log(3) <= high[1]
    assert (classes["entropy@1"].n, classes["entropy@2"].missing) == (2, (1, 0, 0, 0))
    assert "entropy" not in profile_frame(rows.drop("scores", "version"), TEXTS, TEXT_SPEC).columns


def test_profiles_of_different_specs_do_not_merge():
    """Profiles made with another spec are refused by name."""
    with pytest.raises(IntegrityError, match="feature spec old, not mock"):
        merge([Profile("old", 0, {})], "mock")


def test_a_profile_is_kept_under_its_hash(tmp_path):
    """Equal profiles are one file, read back as they were; a damaged file is refused."""
    profile = profile_frame(frame([("red", 1.5, 1, 1, 0.5), (None, None, 2, 1, 0.25)]), FIELDS, SPEC)
    path = write(profile, tmp_path)
    assert write(merge([profile], "mock"), tmp_path) == path
    assert same(read(path), profile)
    path.write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="is not a profile"):
        read(path)


def test_a_flipped_bit_of_a_profile_is_found(tmp_path):
    """No bit of a kept profile can be flipped without an error that names the file."""
    path = write(profile_frame(frame([("red", 1.5, 1, 1, 0.5), (None, None, 2, 1, 0.25)]), FIELDS, SPEC), tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(IntegrityError, match=rf"{path.name} is not a profile"):
            read(path)


def test_a_reference_keeps_its_days_and_its_baseline(tmp_path):
    """The reference of two days remembers that they differed, what its holdout's errors were, and survives the file."""
    days = [datetime(2020, 1, 1 + n // 50, tzinfo=UTC) for n in range(100)]
    train = pl.DataFrame(
        {
            "event_time": days,
            "colour": ["red"] * 50 + ["green"] * 50,
            "size": [float(n % 7) for n in range(100)],
            "count": [1.0] * 100,
        }
    )
    train = train.with_columns(bought=pl.lit(1, pl.Int8), version=pl.lit(7), score=pl.lit(0.9))
    reference = reference_profile(train, np.array([0.9, 0.8, 0.2, 0.1]), FIELDS, SPEC, train.head(4))
    assert set(reference.columns) == {"colour", "size", "count", "score", "entropy"}
    assert reference.days["colour"].tolist() == [[50, 0], [0, 50]]
    assert reference.baseline["errors"] == 2
    assert 0.5 < reference.baseline["error_rate"] <= 1
    (tmp_path / "reference.parquet").write_bytes(to_bytes(reference))
    again = read(tmp_path / "reference.parquet")
    assert again.days["colour"].tolist() == reference.days["colour"].tolist()
    assert again.baseline == reference.baseline


def test_the_spec_is_frozen_from_rows(tmp_path):
    """The command writes a scale for every number; a spec that lacks one is refused by name."""
    pl.DataFrame({"id": ["a", "b", "c"], "size": [1.0, 2.0, 9.0], "pdays": [999.0] * 3}).write_parquet(
        tmp_path / "rows.parquet"
    )
    main(tmp_path / "rows.parquet", tmp_path / "profile.json")
    assert json.loads((tmp_path / "profile.json").read_text()) == {
        "size": {"loc": 2.0, "scale": 0.25},
        "pdays": {"loc": 999.0, "scale": 1.0},
    }
    with pytest.raises(ConfigError, match="no scale for count"):
        load_spec(FIELDS, tmp_path / "profile.json")
    pl.DataFrame({"size": [1.0, 2.0], "entropy": [1.0, 2.0]}).write_parquet(tmp_path / "rows.parquet")
    main(tmp_path / "rows.parquet", tmp_path / "alike.json")
    with pytest.raises(ConfigError, match="a field is named entropy"):
        load_spec(Fields("mock", (Numeric("size"), Numeric("entropy")), "bought"), tmp_path / "alike.json")
    with pytest.raises(ConfigError, match="does not exist"):
        load_spec(FIELDS, tmp_path / "nowhere.json")


def test_the_scale_falls_back_to_the_deviation():
    """A number with most of its mass at one value is scaled by its standard deviation."""
    values = np.array([999.0] * 96 + [3.0] * 4)
    assert freeze(values) == Scale(999.0, float(f"{1 / values.std():.6g}"))


TEXTS = Fields("mock", (Text("text"),), "team", classes=("a", "b", "c"))
TEXT_SPEC = Spec("texts", {"text.words": Scale(3.0, 0.5), "score": Scale(0.0, 1.0)})


def test_a_text_is_counted_by_its_words(tmp_path):
    """A text's profile is that of its number of words, missing texts apart; the command freezes its scale from rows."""
    frame = pl.DataFrame({"text": ["one two three", "one\tword  more", "one", None, ""]})
    column = profile_frame(frame, TEXTS, TEXT_SPEC).columns["text.words"]
    low, high = bounds(column.bins, TEXT_SPEC.scales["text.words"])
    assert [(round(a), round(b), count) for a, b, count in zip(low, high, column.counts, strict=True)] == [
        (0, 0, 1),
        (1, 1, 1),
        (3, 3, 2),
    ]
    assert column.missing == (1, 0, 0, 0)
    frame.write_parquet(tmp_path / "rows.parquet")
    main(tmp_path / "rows.parquet", tmp_path / "profile.json", "text")
    spec = load_spec(TEXTS, tmp_path / "profile.json")
    projected = {f"text.projection{number}" for number in range(1, 9)}
    assert projected <= spec.scales.keys()
    own = {name: scale for name, scale in spec.scales.items() if name not in projected}
    assert own == {"text.words": Scale(2.0, float(f"{1 / 2.25:.6g}")), "score": Scale(0.0, 1.0)}
    assert spec.vocabulary == ("one", "more", "three", "two", "word")
    (tmp_path / "profile.json").write_text(json.dumps({"text.words": {"loc": 2.0, "scale": 1.0}}))
    with pytest.raises(ConfigError, match="no vocabulary for text"):
        load_spec(TEXTS, tmp_path / "profile.json")
    (tmp_path / "profile.json").write_text(
        json.dumps({"text.words": {"loc": 2.0, "scale": 1.0}, "text.tokens": {"vocabulary": ["one"]}})
    )
    with pytest.raises(ConfigError, match=r"no scales for text\.projection1"):
        load_spec(TEXTS, tmp_path / "profile.json")


def test_words_are_counted_over_the_frozen_vocabulary():
    """Known words are counted each, all others together; the unknown share is a text's own.

    Parts add up to the whole.
    """
    spec = replace(TEXT_SPEC, vocabulary=("heap", "overflow"))
    frame = pl.DataFrame({"text": ["Heap overflow, HEAP!", "a leak in libpng", None, "...", "heap leak"]})
    columns = profile_frame(frame, TEXTS, spec).columns
    assert columns["text.tokens"].vocabulary == ("heap", "overflow")
    assert (columns["text.tokens"].bins.tolist(), columns["text.tokens"].counts.tolist()) == ([0, 1, 2], [3, 1, 4])
    assert columns["text.tokens"].missing == (1, 0, 0, 0)
    low, high = bounds(columns["text.unknown"].bins, Scale(0.0, 1.0))
    assert (columns["text.unknown"].counts.tolist(), columns["text.unknown"].missing) == ([1, 1, 1], (2, 0, 0, 0))
    assert (low <= [0.0, 0.5, 1.0]).all()
    assert (high >= [0.0, 0.5, 1.0]).all()
    parts = [profile_frame(part, TEXTS, spec) for part in (frame.head(2), frame.tail(3))]
    assert same(merge(parts, "texts"), profile_frame(frame, TEXTS, spec))


def test_predicted_classes_are_kept_by_version():
    """Of classes the predictions are categories, one column per version.

    A position that is none of them is everything else.
    """
    frame = pl.DataFrame(
        {"text": ["x"] * 5, "version": [1, 1, 1, 2, 2], "score": [0.5] * 5, "prediction": [0, 2, 2, 1, 7]}
    )
    columns = profile_frame(frame, TEXTS, TEXT_SPEC).columns
    assert set(columns) == {"text.words", "score@1", "score@2", "prediction@1", "prediction@2"}
    assert columns["prediction@1"].vocabulary == ("a", "b", "c")
    assert (columns["prediction@1"].bins.tolist(), columns["prediction@1"].counts.tolist()) == ([0, 2], [1, 2])
    assert columns["prediction@2"].bins.tolist() == [1, 3]
    parts = [profile_frame(part, TEXTS, TEXT_SPEC) for part in (frame.head(2), frame.tail(3))]
    assert same(merge(parts, "texts"), profile_frame(frame, TEXTS, TEXT_SPEC))


def test_a_reference_of_classes_holds_scores_and_predictions():
    """The likeliest class of each holdout row is its prediction, the probability of it the score.

    Errors and loss are those of all classes.
    """
    rows = pl.DataFrame(
        {
            "event_time": [datetime(2020, 1, 1 + n, tzinfo=UTC) for n in range(3)],
            "text": ["a b", "c", "d"],
            "team": [0, 1, 1],
        }
    )
    given = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.3, 0.5, 0.2]])
    reference = reference_profile(rows, given, TEXTS, TEXT_SPEC, rows)
    assert set(reference.columns) == set(reference.days) == {"text.words", "score", "prediction", "entropy"}
    undecided = number_column(pl.Series([0.639032, 0.950271, 1.029653]), TEXT_SPEC.scales["score"])  # by hand
    assert same(Profile("", 0, {"x": reference.columns["entropy"]}), Profile("", 0, {"x": undecided}))
    assert reference.columns["prediction"].counts.tolist() == [2, 1]
    assert reference.days["prediction"].tolist() == [[1, 0], [1, 0], [0, 1]]
    assert same(
        Profile("", 0, {"x": reference.columns["score"]}),
        Profile("", 0, {"x": number_column(pl.Series([0.8, 0.6, 0.5]), TEXT_SPEC.scales["score"])}),
    )
    assert reference.baseline["errors"] == 1
    assert reference.baseline["loss"] == pytest.approx(-np.log([0.8, 0.2, 0.5]).mean())
    assert reference_profile(rows, np.empty((0, 3)), TEXTS, TEXT_SPEC, rows.head(0)).baseline == {}
