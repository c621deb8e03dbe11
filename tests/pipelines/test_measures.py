"""pipelines/measures.py: against scikit-learn, and one price for a sure and wrong row wherever a loss is taken."""

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, roc_auc_score

from pipelines import measures
from pipelines.cases import embedding
from pipelines.drift.labels.calibration import expected
from pipelines.evaluation.metrics import metrics
from pipelines.gating.paired import paired
from pipelines.params_file import load_params


class Sure:
    """Stands for a fitted regression of two classes that is sure of the first one."""

    classes_ = np.array([0, 1])

    def predict_proba(self, rows):
        """All chance to class 0."""
        return np.tile([1.0, 0.0], (len(rows), 1))


def test_a_saturated_row_costs_the_same_everywhere():
    """A score of 0 on a positive row costs 13.82 nats everywhere.

    To the gate, to the drift step and to the choice of an embedding's strength.
    """
    label = np.array([1, 1])
    score = np.array([0.0, 0.0])
    costs = [
        metrics(label, score)["log_loss"],
        metrics(label, np.array([[1.0, 0.0]] * 2))["log_loss"],
        float(measures.row_log_loss(label, score).mean()),
        float(expected({"score": [0.0], "rate": [1.0]}, score)[0].mean()),
        embedding._log_loss(Sure(), np.zeros((2, 1)), label),
    ]
    assert costs == pytest.approx([-math.log(1e-6)] * 5)


def test_the_loss_does_not_depend_on_the_scores_type():
    """A float32 score of exactly 1 costs a negative row what one of 0 costs a positive one."""
    losses = measures.row_log_loss(np.array([1, 0]), np.array([0.0, 1.0], np.float32))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_losses_areas_and_f1_are_scikit_learns():
    """Log-loss, AUC with ties, confusion and macro-F1 of random rows are scikit-learn's, the last two to the bit."""
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 500)
    score = np.round(rng.random(500), 2).clip(0.01, 0.99)
    assert measures.row_log_loss(label, score).mean() == pytest.approx(log_loss(label, score), rel=1e-12)
    assert measures.roc_auc(label, score) == roc_auc_score(label, score)
    of = rng.integers(0, 4, 500)
    scores = rng.dirichlet(np.ones(5), 500)
    table = measures.confusion(of, scores)
    answers = scores.argmax(1)
    assert (table == confusion_matrix(of, answers, labels=range(5))).all()
    assert measures.macro_f1(table) == f1_score(of, answers, labels=range(4), average="macro", zero_division=0)


def test_an_interval_of_the_auc_holds_the_truth():
    """Of 300 samples with a true AUC of .76 about 95% of the intervals hold it; of one class there is none."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        score = np.concatenate([rng.normal(1.0, 1.0, 80), rng.normal(size=120)])
        found = measures.roc_auc_interval(np.repeat([1, 0], [80, 120]), score, 0.95)
        held += found.low <= 0.7602 <= found.high
    assert 0.91 < held / 300 < 0.99
    assert measures.roc_auc_interval(np.ones(3), np.ones(3), 0.95) is None


@pytest.mark.parametrize(
    ("metric", "classes"),
    [
        *((metric, classes) for classes in (0, 3) for metric in ("log_loss", "brier", "macro_f1", "accuracy", "cost")),
        *((metric, 0) for metric in ("roc_auc", "pr_auc")),  # ranks are of binary labels
    ],
)
def test_a_metric_by_its_name_is_the_gates(metric, classes):
    """What candidates are compared by has the value that the gate's paired comparison gives the same answers."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, classes or 2, 300)
    score = generator.dirichlet(np.ones(classes), 300) if classes else generator.random(300).round(2)
    costs = tuple(tuple(float(abs(i - 2 * j)) for j in range(classes or 2)) for i in range(classes or 2))
    gate = load_params("bank").gate.model_copy(update={"metric": metric, "costs": costs})
    found = paired(metric, label, score, score, gate)
    assert measures.value(metric, label, score, costs) == pytest.approx(found.challenger, rel=1e-12)


@pytest.mark.parametrize(("metric", "expected"), [("mae", 2.0), ("rmse", 5.0**0.5), ("pinball", 1.4)])
def test_a_metric_of_numbers_by_its_name(metric, expected):
    """Of numbers the mean absolute error, the root of the mean squared one, and the pinball loss at a quantile."""
    found = measures.value(metric, np.array([3.0, 0.0]), np.array([0.0, 1.0]), quantile=0.9)
    assert found == pytest.approx(expected)
