"""pipelines/headroom/probe.py: each family learns, is the same twice, and is broken by no row that can be logged."""

import numpy as np
import polars as pl
import pytest

from pipelines.errors import DataError
from pipelines.fields import Categorical, Fields, Numeric, Text
from pipelines.headroom import probe
from pipelines.headroom.gain import difference
from pipelines.measures import around, clustered_mean, row_log_loss
from pipelines.params import HeadroomParams
from tests.texts import WORDS

TABLE = Fields(
    case="shop",
    label="sold",
    fields=(Categorical("colour", ("red", "blue", "green")), Numeric("price", 0, 1000), Numeric("weight")),
)
MANY = Fields(case="shop", label="sold", fields=(Categorical("zip", tuple(f"z{place}" for place in range(400))),))
TEXTS = Fields(case="desk", label="team", fields=(Text("text"),), classes=("memory", "web", "files", "keys"))
MIXED = Fields(case="desk", label="team", fields=(*TABLE.fields, *TEXTS.fields), classes=TEXTS.classes)
TEAMS = {"memory": WORDS[:4], "web": WORDS[4:8], "files": WORDS[8:10]}


def goods(rows: int, seed: int = 0) -> pl.DataFrame:
    """Red and cheap goods sell; a tenth of every column is missing, a hundredth not declared."""
    rng = np.random.default_rng(seed)
    colour = rng.choice(["red", "blue", "green", None, "mauve"], rows, p=[0.3, 0.3, 0.29, 0.1, 0.01])
    price = np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(0, 1000, rows))
    logit = 2.0 * (colour == "red") - 0.004 * np.nan_to_num(price, nan=500.0) + 1.0
    return pl.DataFrame(
        {
            "colour": pl.Series(colour.tolist(), dtype=pl.String),
            "price": price,
            "weight": pl.Series([None] * rows, dtype=pl.Float64),
            "sold": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
        }
    )


def reports(rows: int, seed: int = 0) -> pl.DataFrame:
    """Texts of three teams' words; nothing for the fourth."""
    rng = np.random.default_rng(seed)
    team = rng.integers(0, 3, rows)
    words = list(TEAMS.values())
    texts = [" ".join(rng.choice([*words[own], "in", "via"], 6)) for own in team]
    return pl.DataFrame({"text": texts, "team": team.astype(np.int8)})


def mixed(rows: int, seed: int = 0) -> pl.DataFrame:
    """Texts of two kinds, which a number splits into two teams each; a column that nobody fills stands beside."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, rows)
    large = rng.random(rows) < 0.5
    price = np.where(large, rng.uniform(500, 1000, rows), rng.uniform(0, 500, rows))
    words = [WORDS[:4], WORDS[4:8]]
    texts = [" ".join(rng.choice([*words[own], "in", "via"], 6)) for own in kind]
    return pl.DataFrame({"text": texts, "price": price, "team": (2 * kind + large).astype(np.int8)}).with_columns(
        weight=pl.lit(None, pl.Float64), colour=pl.lit("red")
    )


CASES = [
    (TABLE, goods, "boosting"),
    (TABLE, goods, "logistic"),
    (TEXTS, reports, "logistic"),
    (MIXED, mixed, "logistic"),
]
IDS = ["trees", "logistic", "words", "words and columns"]


@pytest.mark.parametrize(("fields", "rows", "family"), CASES, ids=IDS)
def test_a_probe_learns(fields, rows, family):
    """On later rows of the same kind its log-loss is clearly below that of the classes' shares."""
    before, after = rows(1500), rows(500, seed=1)
    label = after[fields.label].to_numpy()
    found = probe.checked(probe.fit(before, fields, family)(after), 500, fields)
    shares = np.bincount(before[fields.label].to_numpy(), minlength=len(fields.classes) or 2) / 1500
    blind = np.tile(shares, (500, 1)) if fields.classes else np.full(500, shares[1])
    assert row_log_loss(label, found).mean() < row_log_loss(label, blind).mean() - 0.1


@pytest.mark.parametrize(("fields", "rows", "family"), CASES, ids=IDS)
def test_a_probe_is_the_same_twice(fields, rows, family):
    """Fitted again on the same rows it gives the same bits, and an answer does not hang on the rows beside it."""
    before, after = rows(600), rows(200, seed=1)
    one, two = (probe.fit(before, fields, family) for _ in range(2))
    assert (one(after) == two(after)).all()
    assert one(after)[:1] == pytest.approx(one(after.head(1)), abs=1e-12)


def test_a_probe_reads_text_and_table_together():
    """What only both tell is found: words alone leave two teams, the number alone two others."""
    found = probe.fit(mixed(1500), MIXED, "logistic")(after := mixed(500, seed=1))
    assert (found.argmax(1) == after["team"].to_numpy()).mean() > 0.8
    with pytest.raises(DataError, match="does not read texts"):
        probe.fit(after, MIXED, "boosting")


@pytest.mark.parametrize("family", ["boosting", "logistic"])
def test_missing_and_undeclared_values_break_nothing(family):
    """A row without any value, or with values that nobody declared, has a probability like others."""
    strange = pl.DataFrame(
        {"colour": [None, "mauve", ""], "price": [None, float("inf"), 1e300], "weight": [float("nan"), None, 7.0]}
    )
    probe.checked(probe.fit(goods(600), TABLE, family)(strange), 3, TABLE)


def test_texts_of_every_kind_are_read():
    """Empty and missing texts, and one of half a million characters, have probabilities like others."""
    strange = pl.DataFrame({"text": [None, "", "?!", "heap overflow " * 40_000]})
    probe.checked(probe.fit(reports(300), TEXTS, "logistic")(strange), 4, TEXTS)


def test_a_class_that_was_not_seen_is_improbable_and_not_impossible():
    """The fourth team, which sent nothing, has a floor: a row of it costs 7 nats, and not the most there is."""
    found = probe.fit(reports(300), TEXTS, "logistic")(reports(50, seed=1))
    assert found.sum(1) == pytest.approx(1.0)
    assert found[:, 3] == pytest.approx(probe.FLOOR, rel=0.01)


def test_a_long_vocabulary_is_bounded():
    """Trees tell the commonest values of a category apart; the others count as missing and are scored all the same."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, 40, 2000)
    rows = pl.DataFrame({"zip": [f"z{own}" for own in place], "sold": (place % 2).astype(np.int8)})
    found = probe.fit(rows, MANY, "boosting")(pl.DataFrame({"zip": ["z2", "z3", "z399"]}))
    assert found[0] < 0.1
    assert found[1] > 0.9
    assert 0 < found[2] < 1


def test_one_class_teaches_nothing():
    """Rows of one class only are refused, with what to do about it."""
    with pytest.raises(DataError, match="one class: send labels of the others too"):
        probe.fit(goods(100).with_columns(sold=pl.lit(1, pl.Int8)), TABLE, "boosting")


def test_trees_do_not_read_texts():
    """A family that cannot read the case's fields is refused by name; ``auto`` chooses one that can."""
    with pytest.raises(DataError, match=r"headroom\.family boosting does not read texts"):
        probe.fit(reports(100), TEXTS, "boosting")
    assert [probe.family_of(fields, "auto") for fields in (TABLE, TEXTS)] == ["boosting", "logistic"]
    assert probe.family_of(TEXTS, "own") == "own"


def test_of_many_classes_a_probe_is_still_fitted_in_seconds():
    """Trees grow with the classes; beyond those that there were before, ``auto`` is logistic regression."""
    codes = [
        Fields(case="shop", label="sold", fields=TABLE.fields, classes=tuple(f"code {at}" for at in range(count)))
        for count in (probe.MANY_CLASSES, probe.MANY_CLASSES + 1)
    ]
    assert [probe.family_of(fields, "auto") for fields in codes] == ["boosting", "logistic"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([0.5], "answered \\(1,\\) for 2 rows"),
        ([[0.5, 0.5]] * 2, "answered \\(2, 2\\) for 2 rows"),
        ([0.5, float("nan")], "no probability"),
        ([0.5, 1.5], "no probability"),
        ([-0.1, 0.5], "no probability"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(answer, words):
    """What a case's own probe answers is checked before it is compared with anything."""
    with pytest.raises(DataError, match=words):
        probe.checked(answer, 2, TABLE)


def test_probes_of_one_world_promise_nothing():
    """Ten probes, each of its own thousand rows of one world, held against each other: none pays its price."""
    probes = [probe.fit(goods(1000, seed=seed), TABLE, "logistic") for seed in range(10)]
    days, lows = np.arange(300) // 10, []
    for seed in range(100, 104):
        window = goods(300, seed=seed)
        label, answers = window["sold"].to_numpy(), [own(window) for own in probes]
        for before in answers:
            lows += [around(clustered_mean(difference(label, before, after), days), 0.95).low for after in answers]
    assert len(lows) == 400
    assert max(lows) < HeadroomParams().price
