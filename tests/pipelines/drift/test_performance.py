"""pipelines/drift/labels/performance.py.

The metric on delayed labels, by slice, and what was estimated before they came.
"""

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from pipelines.contracts import Window
from pipelines.drift.labels import performance
from pipelines.drift.profile.spec import Spec
from pipelines.drift.reference import reference_profile
from pipelines.drift_report import Performance
from pipelines.fields import Attribute, Binary, Categorical, Classes, Fields, Flag, Numeric, Scale
from pipelines.measures import CLIP, row_log_loss
from pipelines.params import Bins
from tests.pipelines.drift.stream import PARAMS, START, Stream, midnight

DAY = datetime(2020, 1, 1, tzinfo=UTC)
WINDOWS = [Window(start=DAY + timedelta(days=number), end=DAY + timedelta(days=number + 1)) for number in range(3)]


def answers(
    rows: int, number: int = 0, *, version: int = 1, labelled: int | None = None, seed: int = 0, delay: float = 2.0
) -> pl.DataFrame:
    """Rows of one day with labels that fit their scores; all but the first ``labelled`` have none."""
    rng = np.random.default_rng([seed, number, version])
    score = rng.random(rows)
    known = np.arange(rows) < (rows if labelled is None else labelled)
    moment = DAY + timedelta(days=number, hours=1)
    return pl.DataFrame(
        {
            "id": [f"{number}-{version}-{row}" for row in range(rows)],
            "event_time": [moment] * rows,
            "version": np.full(rows, version),
            "score": score,
            "label": pl.Series((rng.random(rows) < score).astype(np.int64)).set(pl.Series(~known), None),
            "label_time": pl.Series([moment + timedelta(days=delay)] * rows).set(pl.Series(~known), None),
            "colour": rng.choice(["green", "red"], rows),
        }
    )


def test_figures_agree_with_their_definitions():
    """Loss, accuracy, ROC-AUC, coverage and delay are those of the labelled rows, each value inside of its interval."""
    rows = answers(300, labelled=200)
    own = rows.head(200)
    label = own["label"].to_numpy()
    score = own["score"].to_numpy()
    found = performance.figures(rows, PARAMS.drift, Binary())
    assert (found.rows, found.labelled, found.coverage, found.delay_days) == (
        300,
        200,
        pytest.approx(2 / 3),
        2.0,
    )
    assert found.log_loss == pytest.approx(row_log_loss(label, score).mean())
    assert found.accuracy == pytest.approx(((score >= 0.5) == label).mean())
    assert found.roc_auc == pytest.approx(roc_auc_score(label, score))
    assert found.low < found.log_loss < found.high
    assert found.accuracy_low < found.accuracy < found.accuracy_high
    assert found.roc_auc_low < found.roc_auc < found.roc_auc_high


def test_few_or_equal_labels_make_no_claim():
    """Without two labels there is no metric, and with one class no ROC-AUC; coverage is told all the same."""
    none = performance.figures(answers(40, labelled=1), PARAMS.drift, Binary())
    assert (none.labelled, none.log_loss, none.accuracy, none.roc_auc) == (1, None, None, None)
    alike = performance.figures(answers(40).with_columns(label=pl.lit(1)), PARAMS.drift, Binary())
    assert alike.roc_auc is None
    assert alike.accuracy is not None


def test_the_auc_interval_holds_the_truth():
    """Over 200 samples the 99% interval of the ROC-AUC holds its true value, 5/6, in at least 95% of them."""
    held = [
        found.roc_auc_low <= 5 / 6 <= found.roc_auc_high
        for found in (performance.figures(answers(200, seed=seed), PARAMS.drift, Binary()) for seed in range(200))
    ]
    assert np.mean(held) >= 0.95


def test_classes_are_judged_by_macro_f1():
    """With classes macro-F1 is scikit-learn's over the labels' classes.

    Rows without full scores have a label and no loss.
    """
    rng = np.random.default_rng(0)
    given = rng.dirichlet(np.ones(3), 100)
    label = np.where(rng.random(100) < 0.7, given.argmax(1), rng.integers(0, 2, 100))
    rows = answers(100).with_columns(
        label=pl.Series(label),
        prediction=pl.Series(given.argmax(1)),
        scores=pl.Series(given.tolist(), dtype=pl.List(pl.Float64)),
    )
    found = performance.figures(rows, PARAMS.drift, Classes(("a", "b", "c")))
    assert found.macro_f1 == pytest.approx(f1_score(label, given.argmax(1), labels=np.unique(label), average="macro"))
    assert found.macro_f1_low < found.macro_f1 < found.macro_f1_high
    blind = performance.figures(rows.drop("scores"), PARAMS.drift, Classes(("a", "b", "c")))
    assert (blind.labelled, blind.log_loss, blind.macro_f1) == (100, None, None)


def test_labels_count_from_their_arrival():
    """A label that has not arrived by the end of the window is unknown.

    No label is asked of rows that have none.
    """
    rows = answers(10)
    served = rows.drop("label", "label_time")
    labels = rows.select("id", "label", "label_time").head(6)
    assert performance.known(served, labels, DAY + timedelta(days=1))["label"].count() == 0
    assert performance.known(served, labels, DAY + timedelta(days=9))["label"].count() == 6


def test_rolling_keeps_versions_and_windows_apart():
    """Every version has a line of its own in every window in which it answered; a window without rows has none."""
    rows = pl.concat([answers(60, 0), answers(40, 0, version=2), answers(50, 2, version=2, labelled=0)])
    found = performance.rolling(rows, WINDOWS, PARAMS.drift, Binary())
    assert [(f"{one.end:%Y-%m-%d}", one.version, one.rows, one.coverage) for one in found] == [
        ("2020-01-02", 1, 60, 1.0),
        ("2020-01-02", 2, 40, 1.0),
        ("2020-01-04", 2, 50, 0.0),
    ]
    assert found[-1].log_loss is None


def test_only_the_slice_that_dropped_is_named():
    """Where the labels of one colour are turned around that colour has dropped, with an interval.

    The other has not.
    """
    rows = answers(1200)
    whole = performance.figures(rows, PARAMS.drift, Binary()).log_loss
    baseline = {
        "slices": {f"colour={colour}": {"rows": 500, "loss": whole, "loss_se": 0.02} for colour in ("green", "red")}
    }
    turned = rows.with_columns(label=pl.when(pl.col("colour") == "red").then(1 - pl.col("label")).otherwise("label"))
    found = {
        one.value: one
        for one in performance.by_slice(turned, ["colour", "absent"], baseline, PARAMS.drift, Binary(), {})
    }
    assert {value: one.dropped for value, one in found.items()} == {"green": False, "red": True}
    assert found["red"].drop.low > 0.1
    assert found["red"].coverage == 1.0
    # What the holdout did not have, and what has few labels, is shown and makes no claim.
    assert not any(
        one.dropped or one.drop for one in performance.by_slice(turned, ["colour"], {}, PARAMS.drift, Binary(), {})
    )
    assert not any(
        one.drop for one in performance.by_slice(turned.head(60), ["colour"], baseline, PARAMS.drift, Binary(), {})
    )


@pytest.mark.parametrize(("score", "was", "dropped"), [(1.0, 0.0, False), (1.0, 0.6, False), (0.5, 0.0, True)])
def test_a_slice_without_any_error_has_not_dropped(score, was, dropped):
    """Without any doubt, a slice dropped if its loss rose by more than the declared drop, and only then.

    Neither holdout nor window leave any doubt here.
    """
    rows = answers(200).with_columns(colour=pl.lit("red"), score=pl.lit(score), label=pl.lit(1))
    baseline = {"slices": {"colour=red": {"rows": 100, "loss": was, "loss_se": 0.0}}}
    [found] = performance.by_slice(rows, ["colour"], baseline, PARAMS.drift, Binary(), {})
    assert found.drop.value == pytest.approx(-math.log(min(score, 1 - CLIP)) - was, abs=1e-9)
    assert found.dropped is dropped


def test_every_slice_of_the_gate_has_a_drop():
    """Missing and undeclared values, flags, bins of a number and attributes are held against the holdout's loss.

    The reference's slices and the window's are cut alike: none is left without its drop.
    """
    fields = Fields(
        "mock",
        (
            Categorical("colour", ("red",), missing=True, other=True),
            Flag("member"),
            Numeric("size", missing=True),
            Attribute("region"),
        ),
        "label",
    )
    rows = answers(1200).with_columns(
        colour=pl.Series([("red", "blue", None)[row % 3] for row in range(1200)]),
        member=pl.int_range(1200) % 2 == 0,
        size=pl.Series([(1.0, 5.0, None)[row // 2 % 3] for row in range(1200)]),
        region=pl.Series([("north", "south")[row // 6 % 2] for row in range(1200)]),
    )
    cuts = ("colour", "member", Bins(field="size", bins=(3,)), "region")
    spec = Spec("mock", {"size": Scale(0.0, 1.0), "score": Scale(0.0, 1.0)})
    holdout = rows.drop("score", "version")
    reference = reference_profile(holdout, rows["score"].to_numpy(), fields, spec, holdout, cuts)
    gate = PARAMS.gate.model_copy(update={"slices": cuts})
    found = performance.by_slice(rows, gate.slice_fields, reference.baseline, PARAMS.drift, Binary(), gate.bins)
    assert {f"{one.field}={one.value}" for one in found} == {
        *("colour=red", "colour=blue", "colour=missing", "member=false", "member=true"),
        *("size=below 3", "size=3 or more", "size=missing", "region=north", "region=south"),
    }
    assert all(one.drop is not None and one.drop.value == pytest.approx(0) for one in found)
    turned = rows.with_columns(label=pl.when(pl.col("size").is_null()).then(1 - pl.col("label")).otherwise("label"))
    worse = performance.by_slice(turned, gate.slice_fields, reference.baseline, PARAMS.drift, Binary(), gate.bins)
    strongest = max(worse, key=lambda one: one.drop.low)
    assert (strongest.field, strongest.value, strongest.dropped) == ("size", "missing", True)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion on the loans stream."""
    return Stream(seed=31)


def told(stream: Stream, kind: str) -> Performance:
    """What is known of four days under a drift once all their labels are in."""
    days = [START + timedelta(days=number) for number in range(4)]
    generated = pl.concat([stream.generated(day, kind, START) for day in days])
    rows = generated.with_columns(
        version=pl.lit(1, pl.Int64),
        score=pl.Series(stream.scores(generated)),
        label=pl.col("granted"),
        label_time=pl.col("event_time") + timedelta(days=7),
    )
    windows = [Window(start=midnight(day), end=midnight(day) + timedelta(days=1)) for day in days]
    return performance.summary(
        rows, windows, 1, stream.reference.baseline, PARAMS.gate.slices, PARAMS.drift, Binary(), {}
    )


def test_the_estimate_holds_under_covariate_shift(stream):
    """Under another distribution of the inputs, which changes the true loss, every window's loss was foretold."""
    found = told(stream, "covariate")
    assert [one.inside for one in found.earlier] == [True] * 4
    assert {one.coverage for one in found.earlier} == {1.0}
    assert found.estimate.log_loss == pytest.approx(found.earlier[-1].estimated)


def test_concept_drift_blinds_the_estimate_and_earlier_shows_it(stream):
    """Under another rule the estimate says that all is well.

    Once the labels are in its error is plain in every window.
    """
    quiet = told(stream, "none")
    found = told(stream, "concept")
    assert found.estimate == quiet.estimate
    assert [one.inside for one in quiet.earlier] == [True] * 4
    assert [one.inside for one in found.earlier] == [False] * 4
    assert all(one.error > 0.3 for one in found.earlier)


def test_without_a_calibration_nothing_is_estimated(stream):
    """A reference that was written before there were calibrations gives no estimate.

    Its champion's metric is there all the same.
    """
    old = {name: stream.reference.baseline[name] for name in ("rows", "errors", "error_rate", "loss", "loss_se")}
    rows = answers(100).with_columns(education=pl.lit("none"))
    found = performance.summary(rows, WINDOWS, 1, old, ["education"], PARAMS.drift, Binary(), {})
    assert (found.estimate, found.earlier) == (None, ())
    assert found.rolling[0].labelled == 100
    assert found.rolling[0].end.date() == date(2020, 1, 2)
