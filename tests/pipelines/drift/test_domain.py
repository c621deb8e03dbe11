"""pipelines/drift/why/domain.py and explain.py: on samples of which it is known what moved."""

import numpy as np
import polars as pl
import pytest

from pipelines.drift.why import domain
from pipelines.drift.why.explain import explain
from pipelines.drift_report import Sides
from pipelines.fields import Categorical, Fields, Numeric, Text

FIELDS = Fields(
    "mock",
    (Numeric("a"), Numeric("b"), Numeric("spread"), Categorical("colour", ("red", "green")), Numeric("month")),
    "label",
)
TEXTS = Fields("mock", (Text("text"),), "label")


def rows(
    count: int, seed: int, *, a: float = 0.0, spread: float = 1.0, red: float = 0.5, month: float = 1.0
) -> pl.DataFrame:
    """Independent fields; a tenth of ``b`` is missing."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "a": rng.normal(a, 1.0, count),
            "b": [
                value if keep else None
                for value, keep in zip(rng.normal(size=count), rng.random(count) > 0.1, strict=True)
            ],
            "spread": rng.normal(0.0, spread, count),
            "colour": np.where(rng.random(count) < red, "red", "green"),
            "month": np.full(count, month),
        }
    )


def texts(count: int, seed: int, extra: str = "", share: float = 0.0) -> pl.DataFrame:
    """Texts of eight words out of thirty, some of which also have the word ``extra``."""
    rng = np.random.default_rng(seed)
    found = [" ".join(f"word{number:02d}" for number in rng.integers(0, 30, 8)) for _ in range(count)]
    return pl.DataFrame({"text": [f"{text} {extra}" if rng.random() < share else text for text in found]})


def test_without_a_shift_the_interval_holds_one_half():
    """Of 40 pairs of equal samples nearly all intervals hold one half."""
    held = 0
    for seed in range(40):
        auc, _ = domain.culprits(rows(300, seed), rows(200, 1000 + seed), FIELDS)
        held += auc.low <= 0.5 <= auc.high
    assert held >= 35


def test_undeclared_values_in_the_place_of_missing_ones_are_a_change():
    """A category whose missing values became undeclared ones tells the samples apart."""
    before, now = rows(800, 0), rows(800, 1)
    third = pl.int_range(pl.len()) % 3 == 0
    before, now = (
        frame.with_columns(colour=pl.when(third).then(pl.lit(value, pl.String)).otherwise("colour"))
        for frame, value in ((before, None), (now, "blue"))
    )
    auc, shares = domain.culprits(before, now, FIELDS)
    assert auc.low > 0.6
    assert next(iter(shares)) == "colour"


def test_a_sample_of_one_row_is_told_from_nothing():
    """One row has no half to fit on: the AUC is unknown, and no field is to blame."""
    auc, shares = domain.culprits(rows(1, 0), rows(200, 1), FIELDS)
    assert (auc, set(shares.values())) == (domain.UNKNOWN, {0.0})


@pytest.mark.parametrize(
    ("moved", "culprit"),
    [({"a": 0.7}, "a"), ({"spread": 2.0}, "spread"), ({"red": 0.85}, "colour"), ({"month": 2.0}, "month")],
)
def test_the_culprit_is_the_field_that_moved(moved: dict, culprit: str):
    """A shift of a mean, of a spread, of a category's share, of a constant: the classifier names that field."""
    auc, shares = domain.culprits(rows(1000, 0), rows(800, 1, **moved), FIELDS)
    assert auc.low > 0.55
    assert next(iter(shares)) == culprit
    assert shares[culprit] > 0.5
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_missing_value_counts_and_an_outlier_is_one_row():
    """Values that are no longer missing name their field; a million in one row changes the answer hardly at all."""
    before = rows(1000, 0)
    now = rows(1000, 1)
    _, shares = domain.culprits(before, now.with_columns(pl.col("b").fill_null(0.0)), FIELDS)
    assert next(iter(shares)) == "b"
    spoilt = now.with_columns(a=pl.when(pl.int_range(pl.len()) == 0).then(1e6).otherwise("a"))
    plain, with_it = (domain.culprits(before, frame, FIELDS)[0].value for frame in (now, spoilt))
    assert with_it == pytest.approx(plain, abs=0.01)


def test_ignored_fields_take_no_part():
    """A field that moves by construction is left out: without it the samples cannot be told apart."""
    auc, shares = domain.culprits(rows(1000, 0), rows(1000, 1, month=2.0), FIELDS, ignore=("month",))
    assert auc.low <= 0.5
    assert "month" not in shares


def test_words_that_came_and_went_are_named():
    """The word that only the window has leads with a positive sign.

    The other way round it is negative, and equal samples have no AUC to speak of.
    """
    auc, words = domain.telling_words(
        texts(500, 0)["text"].to_list(), texts(500, 1, "ransomware", 0.4)["text"].to_list()
    )
    assert auc.low > 0.6
    assert next(iter(words.items()))[0] == "ransomware"
    assert words["ransomware"] > 0
    _, gone = domain.telling_words(texts(500, 1, "ransomware", 0.4)["text"].to_list(), texts(500, 0)["text"].to_list())
    assert gone["ransomware"] < 0
    same, _ = domain.telling_words(texts(500, 0)["text"].to_list(), texts(500, 1)["text"].to_list())
    assert same.low <= 0.5 <= same.high
    assert domain.telling_words(["?"] * 30, ["!"] * 30) == (
        same.model_copy(update={"value": 0.5, "low": 0.0, "high": 1.0}),
        {},
    )


def test_an_explanation_of_a_table_and_of_texts():
    """Both name what moved in one sentence, whatever the types in the log.

    Texts also have their vectors; few rows, or no field, are said to be too few.
    """
    table = explain(rows(3000, 0), rows(1000, 1, a=1.0).with_columns(pl.col("month").cast(pl.Int64)), FIELDS)
    assert table.rows == Sides(reference=2000, current=1000)
    assert table.about.startswith("a classifier tells the window from the training rows with AUC 0.7")
    assert table.features[0].feature == "a"
    text = explain(texts(600, 0), texts(600, 1, "ransomware", 0.5), TEXTS)
    assert "more of ransomware" in text.about
    assert text.vectors.p_value < 0.01
    assert text.vectors.mmd > 0.005
    assert "cannot tell" in explain(texts(600, 0), texts(600, 1), TEXTS).about
    assert explain(rows(3000, 0), rows(10, 1), FIELDS).model_fields_set == {"about"}
    assert explain(rows(100, 0), rows(100, 1), FIELDS, ignore=FIELDS.names).model_fields_set == {"about"}


def test_an_explanation_of_a_text_beside_a_table():
    """Fields and text are told apart together: whichever moved is named first, words and vectors stand beside them.

    An ignored text takes no part.
    """
    mixed = Fields("mock", (*FIELDS.fields, Text("text")), "label")

    def both(count: int, seed: int, extra: str = "", **moved: float) -> pl.DataFrame:
        return rows(count, seed, **moved).hstack(texts(count, seed, extra, 0.5))

    before = both(600, 0)
    spoken = explain(before, both(600, 1, "ransomware"), mixed)
    assert spoken.features[0].feature == "text"
    assert spoken.features[0].share > 0.5
    assert spoken.words[0].word == "ransomware"
    assert spoken.vectors.p_value < 0.01
    counted = explain(before, both(600, 1, a=1.5), mixed)
    assert counted.features[0].feature == "a"
    assert counted.vectors.p_value > 0.01
    assert "cannot tell" in explain(before, both(600, 1), mixed).about
    silent = explain(before, both(600, 1, "ransomware"), mixed, ignore=["text.words"])
    assert "cannot tell" in silent.about
    assert not silent.words
    everything = [name for name in mixed.measured if name != "score"]
    assert explain(before, before, mixed, ignore=everything).model_fields_set == {"about"}
