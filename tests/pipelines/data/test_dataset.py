"""pipelines/data/dataset.py: the window rule, its fallback, and a holdout that nobody was trained on."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipelines.data import dataset
from pipelines.params import DatasetParams

AS_OF = datetime(2020, 6, 1, tzinfo=UTC)
PARAMS = DatasetParams(
    window_days=10, min_rows=50, fallback_rows=80, holdout_share=0.2, min_holdout=10, max_bad_share=0.2
)


def _rows(per_day: int, days: int, labelled_until: int = 0) -> pl.DataFrame:
    """``per_day`` rows on each of the ``days`` days before AS_OF; the newest ``labelled_until`` days have no labels."""
    times = [AS_OF - timedelta(days=day, seconds=-600 * n) for day in range(days, 0, -1) for n in range(per_day)]
    frame = pl.DataFrame({"event_time": times}, schema={"event_time": pl.Datetime("us", "UTC")})
    old = pl.col("event_time") < AS_OF - timedelta(days=labelled_until)
    return frame.with_row_index().select(
        pl.format("r{}", pl.col("index").cast(pl.String).str.zfill(4)).alias("id"),
        "event_time",
        y=pl.when(old).then(pl.lit(1, pl.Int8)),
    )


def test_enough_rows_in_the_window_are_the_window():
    """With min_rows labelled rows in the newest days, those rows and no older ones are chosen."""
    chosen, _, rule = dataset.choose(_rows(10, 30), "y", AS_OF, PARAMS)
    assert rule == "window"
    assert chosen.height == 100
    assert chosen["event_time"].min() == AS_OF - timedelta(days=10)


def test_too_few_rows_fall_back_to_the_newest():
    """One labelled row too few in the window, and the newest fallback_rows count instead, however old."""
    assert dataset.choose(_rows(5, 30), "y", AS_OF, PARAMS)[2] == "window"
    chosen, _, rule = dataset.choose(_rows(5, 30).tail(149).filter(pl.col("id") != "r0149"), "y", AS_OF, PARAMS)
    assert rule == "fallback"
    assert chosen.height == 80


def test_rows_without_labels_do_not_count():
    """A row counts once its label has arrived: rows of the newest days are in neither rule."""
    chosen, _, rule = dataset.choose(_rows(10, 30, labelled_until=7), "y", AS_OF, PARAMS)
    assert rule == "fallback"
    assert chosen["event_time"].max() < AS_OF - timedelta(days=7)
    assert chosen.height == 80


def test_rows_from_as_of_on_do_not_count():
    """Nothing at or after as_of is chosen."""
    later = _rows(10, 30).with_columns(pl.col("event_time") + timedelta(days=2))
    assert dataset.choose(later, "y", AS_OF, PARAMS)[0]["event_time"].max() < AS_OF


def test_the_holdout_is_the_newest_share():
    """The newest fifth judges, the rest trains, and no row is in both or lost."""
    rows = _rows(10, 10)
    split = dataset.split(rows, rows.clear(), PARAMS)
    assert pl.concat([split.train, split.holdout]).equals(rows)
    assert split.holdout.height == 20
    assert split.excluded == 0


def test_rows_the_champion_learned_from_leave_the_holdout():
    """A row that the champion was trained on judges nobody, and is counted; it does not become a training row."""
    rows = _rows(10, 10)
    trained_on = rows.tail(5)
    split = dataset.split(rows, rows.clear(), PARAMS, trained_on)
    assert split.excluded == 5
    assert split.holdout.height == 15
    assert not set(trained_on["id"]) & set(split.holdout["id"])
    assert split.train.height == 80


def test_a_thinned_window_still_spans_the_window():
    """max_rows takes rows evenly spaced in time, the same ones every time, from the window alone."""
    params = PARAMS.model_copy(update={"max_rows": 30})
    chosen, older, rule = dataset.choose(_rows(10, 30), "y", AS_OF, params)
    assert (rule, chosen.height, older.height) == ("window", 30, 200)
    assert chosen.group_by(pl.col("event_time").dt.date()).len()["len"].to_list() == [3] * 10
    assert chosen.equals(dataset.choose(_rows(10, 30), "y", AS_OF, params)[0])


def test_a_sample_by_hash_is_the_same_everywhere():
    """The smallest hashes are kept, in the rows' order, on every machine; what a smaller sample keeps a larger does."""
    params = PARAMS.model_copy(update={"sampling": "hash"})
    by_size = {
        most: dataset.choose(_rows(10, 30), "y", AS_OF, params.model_copy(update={"max_rows": most}))[0]
        for most in (3, 30, 60, 100)
    }
    assert by_size[3]["id"].to_list() == SAMPLE
    kept = [set(rows["id"]) for rows in by_size.values()]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    assert [len(ids) for ids in kept] == [3, 30, 60, 100]
    assert all(rows.equals(rows.sort("event_time", "id")) for rows in by_size.values())
    # A window a day later shares all of its sample but what the hashes of its own day take the place of.
    later = dataset.choose(_rows(10, 30), "y", AS_OF - timedelta(days=1), params.model_copy(update={"max_rows": 30}))[0]
    assert len(set(later["id"]) & kept[1]) >= 20


SAMPLE = ["r0201", "r0240", "r0295"]


def test_parameters_without_sampling_keep_their_keys():
    """What is not declared is in no dump, and so in no key."""
    assert "sampling" not in PARAMS.model_dump(mode="json")
    assert PARAMS.model_copy(update={"sampling": "hash"}).model_dump(mode="json")["sampling"] == "hash"


def test_replay_and_history_come_from_before_the_window_and_share_no_row():
    """A declared share of the training rows is older; the history holdout has none of them, nor of the champion's."""
    params = PARAMS.model_copy(update={"replay_share": 0.2, "history_rows": 50})
    rows, older, _ = dataset.choose(_rows(10, 30), "y", AS_OF, params)
    known = older.head(100)
    split = dataset.split(rows, older, params, known)
    assert (split.replayed, split.train.height, split.holdout.height, split.history.height) == (20, 100, 20, 50)
    replayed = set(split.train["id"].head(20))
    assert replayed <= set(older["id"])
    assert not set(split.history["id"]) & (replayed | set(known["id"]) | set(rows["id"]))


def test_a_text_that_is_trained_on_judges_nobody():
    """Rows with the text of a training row, or of one of the champion's, leave holdout and history, and are counted."""
    params = PARAMS.model_copy(update={"history_rows": 200})
    rows, older, _ = dataset.choose(
        _rows(10, 30).with_columns(text=pl.format("report  {}", pl.int_range(pl.len()) % 95)), "y", AS_OF, params
    )
    again = rows.with_columns(text=pl.col("text").str.replace("  ", " "))
    split = dataset.split(pl.concat([rows.head(80), again.tail(20)]), older, params, repeats=("text",))
    assert (split.excluded, split.holdout.height) == (5, 15)
    trained = set(split.train["text"])
    assert split.history.height == 200 - sum(text in trained for text in older["text"])
    assert not set(split.history["text"]) & trained
    champions = pl.DataFrame({"id": ["of the champion"], "text": [split.holdout["text"][0].replace(" ", "\n")]})
    assert dataset.split(pl.concat([rows.head(80), again.tail(20)]), older, params, champions, ("text",)).excluded == 6


def test_replay_and_history_look_back_to_the_beginning():
    """No day is early enough when rows from before the window are wanted."""
    for wanted in ({"replay_share": 0.1}, {"history_rows": 10}):
        assert (
            dataset.first_needed_day(dataset.labelled_on(_rows(10, 30), "y"), AS_OF, PARAMS.model_copy(update=wanted))
            is None
        )


@pytest.mark.parametrize(("per_day", "days", "expected"), [(10, 30, 10), (5, 30, 20), (2, 30, None)])
def test_the_look_back_covers_both_rules(per_day: int, days: int, expected: int | None):
    """The first day needed is the window's, or that of the fallback's last row; None if rows end before."""
    found = dataset.first_needed_day(dataset.labelled_on(_rows(per_day, days), "y"), AS_OF, PARAMS)
    assert found == (None if expected is None else AS_OF - timedelta(days=expected))


def test_a_repeat_has_the_same_text_and_the_same_values_beside_it():
    """Equal texts beside other values are rows of their own; so is a row that one without a column cannot repeat."""
    known = pl.DataFrame(
        {"text": ["heap  overflow", "script", None], "age": [1.0, None, 2.0], "face": [[0.5], [0.5], []]}
    )
    asked = pl.DataFrame(
        {
            "text": ["heap overflow", "heap overflow", "script", "script", None],
            "age": [1.0, 2.0, None, 0.0, 2.0],
            "face": [[0.5], [0.5], [0.5], [0.5], []],
        }
    )
    names = ("text", "age", "face")
    left = dataset.without_repeats(asked, names, dataset.known_rows((known, None), names))
    assert left["age"].to_list() == [2.0, 0.0, 2.0]
    before = dataset.known_rows((known.drop("face"),), names)
    assert dataset.without_repeats(asked, names, before).height == asked.height
