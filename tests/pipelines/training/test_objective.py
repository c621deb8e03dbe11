"""The loss and the learning rate's course."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipelines.errors import ConfigError
from pipelines.training.objective import class_weights, learning_rate_factor, objective
from tests.pipelines.training.models import TRAIN

CPU = torch.device("cpu")


def test_class_weights_have_a_mean_of_one_over_the_rows():
    """Balanced weights give all classes the same share of the loss, square roots go half the way; their mean is 1."""
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    balanced, root = class_weights(labels, 1.0), class_weights(labels, 0.5)
    shares = [float(balanced[label] * (labels == label).sum()) for label in range(3)]
    assert shares == pytest.approx([10 / 3] * 3)
    assert float(root[2] / root[0]) == pytest.approx(math.sqrt(6))
    for weights in (balanced, root):
        assert float(weights[labels].mean()) == pytest.approx(1)


def test_smoothing_and_weights_of_classes():
    """The loss of classes is torch's own with smoothing, summed, each row times its class's weight."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 2, 1, 1])
    smoothed = objective(TRAIN.model_copy(update={"label_smoothing": 0.1}), labels, CPU)
    assert float(smoothed(logits, labels)) == pytest.approx(
        float(cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum"))
    )
    weighted = objective(TRAIN.model_copy(update={"class_weights": "balanced"}), labels, CPU)
    rows = cross_entropy(logits, labels, reduction="none") * class_weights(labels, 1.0)[labels]
    assert float(weighted(logits, labels)) == pytest.approx(float(rows.sum()))


def test_smoothing_of_a_binary_label():
    """A smoothed binary label is pulled towards one half: at logit z the loss is that of the soft label."""
    smoothed = objective(TRAIN.model_copy(update={"label_smoothing": 0.2}), torch.tensor([0.0, 1.0]), CPU)
    z = 1.3
    expected = -(0.9 * math.log(1 / (1 + math.exp(-z))) + 0.1 * math.log(1 / (1 + math.exp(z))))
    assert float(smoothed(torch.tensor([[z]]), torch.tensor([1.0]))) == pytest.approx(expected)


def test_the_loss_of_a_number():
    """It is the squared error, summed over the rows; what is about classes is refused with its parameter's name."""
    labels, outputs = torch.tensor([0.5, -1.0]), torch.tensor([[1.5], [1.0]])
    assert float(objective(TRAIN, labels, CPU, number=True)(outputs, labels)) == pytest.approx(1 + 4)
    for change in ({"label_smoothing": 0.1}, {"class_weights": "sqrt"}):
        with pytest.raises(ConfigError, match=f"train.{next(iter(change))} is .* remove it"):
            objective(TRAIN.model_copy(update=change), labels, CPU, number=True)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 1 / 80), ("cosine", 0.5, (1 - math.cos(math.pi / 80)) / 2)],
)
def test_the_course_of_the_learning_rate(schedule, middle, last):
    """It rises in a line over the warm-up, is at its base right after it, and then follows the schedule towards 0."""
    params = TRAIN.model_copy(update={"warmup": 0.2, "schedule": schedule})
    course = [learning_rate_factor(params, step, 100) for step in range(100)]
    assert course[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert (course[20], course[60], course[99]) == pytest.approx((1.0, middle, last))
    assert learning_rate_factor(TRAIN, 0, 100) == 1.0
