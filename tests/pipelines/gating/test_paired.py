"""Every metric's comparison against plain ways of getting the same: scikit-learn, the jackknife, resampled rows."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sk

from pipelines.errors import DataError
from pipelines.gating.compare import level, lift
from pipelines.gating.paired import CAP, Paired, paired, roc_auc
from pipelines.gating.power import rows_by_resampling
from pipelines.measures import roc_auc_interval
from pipelines.params import METRICS, MORE_IS_BETTER
from pipelines.params_file import load_params

COSTS = ((0.0, 1.0), (5.0, 0.0))
GATE = load_params("bank").gate.model_copy(update={"costs": COSTS, "quantile": 0.9})
ROWS = 160


def binary(ties: bool = False):
    """Labels and the scores of two models that agree in part."""
    generator = np.random.default_rng(3)
    label = (generator.random(ROWS) < 0.3).astype(np.int8)
    logits = generator.normal(size=(2, ROWS)) + 0.8 * generator.normal(size=ROWS) + label - 0.5
    scores = 1 / (1 + np.exp(-logits))
    return label, *(scores.round(1) if ties else scores)


def classes():
    """Labels of three classes, one of them rare, and the scores of two models."""
    generator = np.random.default_rng(4)
    label = generator.choice(3, ROWS, p=[0.6, 0.3, 0.1]).astype(np.int8)
    raw = generator.random((2, ROWS, 3)) + 0.6 * np.eye(3)[label]
    return label, *(raw / raw.sum(axis=2, keepdims=True))


def numbers():
    """Labels that are numbers, and two models with errors of heavy tails."""
    generator = np.random.default_rng(5)
    label = generator.normal(10, 3, ROWS)
    return label, *(label + generator.standard_t(3, (2, ROWS)))


def _f1(label, score):
    return sk.f1_score(label, score.argmax(1) if score.ndim == 2 else score >= 0.5, average="macro")


def _right(label, score):
    return sk.accuracy_score(label, score.argmax(1) if score.ndim == 2 else score >= 0.5)


def _brier(label, score):
    if score.ndim == 1:
        return sk.brier_score_loss(label, score)
    return ((score - np.eye(3)[label]) ** 2).sum(axis=1).mean()


def _cost(label, score):
    """A miss costs five false alarms, so a score above 1/6 is a yes."""
    yes = score > 1 / 6
    return np.mean(np.where(label > 0, np.where(yes, 0.0, 5.0), np.where(yes, 1.0, 0.0)))


PEERS: list[tuple[str, Callable, Callable]] = [
    ("log_loss", binary, sk.log_loss),
    ("log_loss", classes, lambda label, score: sk.log_loss(label, score, labels=[0, 1, 2])),
    ("brier", binary, _brier),
    ("brier", classes, _brier),
    ("roc_auc", binary, sk.roc_auc_score),
    ("roc_auc", lambda: binary(ties=True), sk.roc_auc_score),
    ("pr_auc", binary, sk.average_precision_score),
    ("pr_auc", lambda: binary(ties=True), sk.average_precision_score),
    ("macro_f1", binary, _f1),
    ("macro_f1", classes, _f1),
    ("accuracy", binary, _right),
    ("accuracy", classes, _right),
    ("cost", binary, _cost),
    ("mae", numbers, sk.mean_absolute_error),
    ("pinball", numbers, lambda label, said: sk.mean_pinball_loss(label, said, alpha=0.9)),
]
NAMES = [f"{metric}-{number}" for number, (metric, _, _) in enumerate(PEERS)]


def compared(metric, sample) -> Paired:
    """The comparison, which these rows allow."""
    found = paired(metric, *sample, GATE)
    assert found is not None
    return found


@pytest.mark.parametrize(("metric", "rows", "peer"), PEERS, ids=NAMES)
def test_values_are_those_of_scikit_learn(metric, rows, peer):
    """Both values are the peer's, and the lift is positive where the challenger is the better one."""
    label, opponent, challenger = rows()
    found = compared(metric, (label, opponent, challenger))
    theirs, ours = peer(label, opponent), peer(label, challenger)
    assert (found.opponent, found.challenger) == pytest.approx((theirs, ours), abs=1e-9)
    assert found.lift == pytest.approx(ours - theirs if metric in MORE_IS_BETTER else theirs - ours, abs=1e-9)


@pytest.mark.parametrize(("metric", "rows"), [one[:2] for one in PEERS], ids=NAMES)
def test_the_standard_error_is_the_jackknifes(metric, rows):
    """Leaving one row out after another gives the same standard error within a tenth."""
    sample = rows()
    without = np.array([compared(metric, [np.delete(part, row, 0) for part in sample]).lift for row in range(ROWS)])
    jackknife = np.sqrt((ROWS - 1) / ROWS * ((without - without.mean()) ** 2).sum())
    assert compared(metric, sample).se == pytest.approx(jackknife, rel=0.1)


@pytest.mark.parametrize(("metric", "rows"), [one[:2] for one in PEERS], ids=NAMES)
def test_resampled_lifts_are_those_of_resampled_rows(metric, rows):
    """Comparing on rows that were drawn again has the same mean and spread; four times the rows halve the spread."""
    sample, generator = rows(), np.random.default_rng(6)
    drawn = generator.integers(0, ROWS, (400, ROWS))
    plain = [compared(metric, [part[own] for part in sample]).lift for own in drawn]
    found = compared(metric, sample)
    own = found.resample(np.random.default_rng(7), 2000, ROWS)
    assert own.std() == pytest.approx(np.std(plain), rel=0.15)
    assert own.mean() == pytest.approx(np.mean(plain), abs=4 * own.std() / np.sqrt(400))
    more = found.resample(np.random.default_rng(8), 1000, 4 * ROWS)
    assert more.std() == pytest.approx(own.std() / 2, rel=0.12)


def test_rmse_caps_what_is_beyond_its_quantile():
    """A single huge error counts as the 99% quantile, and the others as they are."""
    label = np.zeros(ROWS)
    errors = np.random.default_rng(9).normal(size=(2, ROWS))
    plain = compared("rmse", (label, *errors))
    errors[1, 0] = 1e6
    wild = compared("rmse", (label, *errors))
    assert abs(wild.challenger - plain.challenger) < 0.1
    squared = np.minimum(errors**2, np.quantile(errors**2, CAP))
    assert (wild.opponent, wild.challenger) == pytest.approx(np.sqrt(squared.mean(axis=1)))
    own = wild.resample(np.random.default_rng(0), 4000, ROWS)
    assert own.std() == pytest.approx(wild.se, rel=0.06)


def test_the_standard_error_of_an_auc_is_delongs():
    """Against scores that are all alike the lift is the AUC less a half, and its error the one of DeLong's interval."""
    for ties in (False, True):
        label, _, challenger = binary(ties)
        found = roc_auc(label, np.full(ROWS, 0.3), challenger)
        known = roc_auc_interval(label, challenger, 0.95)
        assert known is not None
        assert found.lift == pytest.approx(known.value - 0.5)
        assert found.se == pytest.approx((known.high - known.value) / 1.959963984540054)


@pytest.mark.parametrize("metric", ["log_loss", "accuracy", "roc_auc", "pr_auc", "macro_f1"])
def test_the_order_of_rows_is_of_no_account(metric):
    """The same rows in another order have the same interval within rounding."""
    sample = binary(ties=True)
    drawn = np.random.default_rng(1).permutation(ROWS)
    one, other = (
        lift(compared(metric, rows), confidence=0.95, draws=200, seed=0)
        for rows in (sample, tuple(part[drawn] for part in sample))
    )
    assert (one.low, one.value, one.high) == pytest.approx((other.low, other.value, other.high), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS["binary"])
def test_a_model_against_itself_differs_nowhere(metric):
    """Equal answers have no lift, no error and no row that differs."""
    label, scores, _ = binary()
    found = compared(metric, (label, scores, scores))
    assert (found.lift, found.se, found.differ) == (0, 0, 0)
    interval = lift(found, confidence=0.95, draws=100, seed=0)
    assert (interval.low, interval.high) == (0, 0)


def test_rows_that_differ_are_counted_as_the_metric_sees_them():
    """Ranks see every other score, accuracy only decisions that are right in one model and wrong in the other."""
    label = np.array([0, 1, 1, 0])
    opponent, challenger = np.array([0.1, 0.2, 0.7, 0.6]), np.array([0.2, 0.6, 0.7, 0.55])
    assert compared("roc_auc", (label, opponent, challenger)).differ == 3
    assert compared("accuracy", (label, opponent, challenger)).differ == 1
    assert compared("macro_f1", (label, opponent, challenger)).differ == 1


def test_ranks_need_both_classes():
    """Rows of one class have no AUC, and are told so only where they were not asked for before."""
    one = np.zeros(4, np.int8)
    assert paired("roc_auc", one, np.arange(4) / 4, np.arange(4) / 8, GATE) is None
    assert paired("log_loss", one[:0], np.zeros(0), np.zeros(0), GATE) is None
    with pytest.raises(DataError, match="one class"):
        roc_auc(one, np.arange(4) / 4, np.arange(4) / 8)


def test_resampling_says_how_many_rows_would_decide():
    """With the rows that it asks for, the normal interval just leaves min_lift; on min_lift no number would."""
    found = compared("roc_auc", binary())
    least = found.lift - 0.01
    more = rows_by_resampling(found, min_lift=least, confidence=0.95, seed=0)
    assert more is not None
    half = 1.96 * found.se * np.sqrt(ROWS / (ROWS + more))
    assert half == pytest.approx(0.01, rel=0.15)
    assert rows_by_resampling(found, min_lift=found.lift, confidence=0.95, seed=0) is None


def test_metrics_that_err_more_often_are_asked_for_more():
    """The level of an interval is the declared one, and higher where the declared one would not hold."""
    assert level("roc_auc", 0.95) == 0.95
    assert level("pr_auc", 0.95) == level("rmse", 0.95) == pytest.approx(0.98)
    assert level("log_loss", 0.9) == pytest.approx(0.93)
