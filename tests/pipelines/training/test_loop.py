"""The training loop in one process."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.errors import ConfigError, DataError, TrainingDiverged
from pipelines.training.ema import clone_weights, update_ema
from pipelines.training.fit import fit, threads
from pipelines.training.loop import optimise
from pipelines.training.metrics import read
from pipelines.training.rows import order
from pipelines.training.strategies import adamw
from pipelines.training.weights import fits, load_weights, save_weights, weights_sha256
from tests.pipelines.training.models import TEXT, TRAIN, plain, reader, table, tabular, texts


def test_training_learns():
    """The mean loss falls well below that of the base rate on rows that can be learned, tabular and text."""
    rows = table()
    curve = fit(tabular, rows, TRAIN.model_copy(update={"epochs": 20})).curve
    rate = float(rows.labels.mean())
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert curve[-1] < 0.6 * entropy
    assert len(curve) == 20
    assert fit(reader, texts(), TEXT.model_copy(update={"epochs": 5})).curve[-1] < 0.3 * np.log(3)


def test_same_inputs_give_the_same_bits_with_dropout():
    """Two trainings from equal rows and parameters end in equal weights, another seed ends elsewhere."""
    rows = table()
    first = weights_sha256(fit(tabular, rows, TRAIN).model)
    torch.rand(5)
    assert weights_sha256(fit(tabular, rows, TRAIN).model) == first
    assert weights_sha256(fit(tabular, rows, TRAIN.model_copy(update={"seed": 4})).model) != first


def test_threads_are_given_back():
    """Training runs on the threads that it was given and leaves the caller's number as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(tabular, table(40), TRAIN)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_loss_that_is_not_finite_names_its_step_and_rows():
    """A number that is not finite stops the training at the first step that sees it; the error names the row."""
    rows = table(64)
    numeric = rows.dense["numeric"].clone()
    seen_last = int(order(64, TRAIN.seed, 0)[-1])
    model = tabular()
    model.adapt(numeric, rows.labels)
    numeric[seen_last, 0] = float("nan")
    with threads(1), pytest.raises(TrainingDiverged, match=rf"loss is nan at step 1 \(epoch 0; rows .*\b{seen_last}\b"):
        optimise(
            model, replace(rows, dense={**rows.dense, "numeric": numeric}), TRAIN.model_copy(update={"batch_size": 60})
        )


class _Steep(torch.nn.Module):
    """The loss is finite, its gradient is not: the slope of a square root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, categorical, numeric):
        return numeric[:, :1] * self.weight.sqrt()


def test_a_gradient_that_is_not_finite_stops_training():
    """A gradient that is not finite is never stepped along, even where the loss is finite."""
    model = _Steep()
    with threads(1), pytest.raises(TrainingDiverged, match=r"gradient is (nan|inf) at step 0"):
        optimise(model, table(64), TRAIN)
    assert float(model.weight.detach()) == 0.0


def test_no_rows_is_a_data_error():
    """Training without rows says which parameters to widen."""
    with pytest.raises(DataError, match="window_days"):
        fit(tabular, table(0), TRAIN)


def test_early_stopping_keeps_the_best_weights(tmp_path):
    """When every epoch makes validation worse, training stops early, with the weights of the best epoch."""
    # The labels of the validation rows contradict the others.
    rows = table(200)
    labels = rows.labels.clone()
    labels[160:] = 1 - labels[160:]
    params = TRAIN.model_copy(update={"epochs": 30, "validation_share": 0.2, "patience": 2})
    found = fit(plain, replace(rows, labels=labels), params, tmp_path)
    validation = found.facts["validation"]
    best = validation.index(min(validation))
    assert found.facts["stopped"] == "early"
    assert len(validation) == best + 3 < 30
    shorter = params.model_copy(update={"epochs": best + 1})
    assert weights_sha256(fit(plain, replace(rows, labels=labels), shorter).model) == weights_sha256(found.model)


def test_the_average_of_the_weights():
    """The EMA follows the weights by the share that its decay leaves; the decay is lower in the first steps."""
    live = {"w": torch.ones(3)}
    average = {"w": torch.zeros(3)}
    update_ema(average, live, decay=0.999, step=1)
    assert average["w"].tolist() == pytest.approx([1 - 2 / 11] * 3)
    before = clone_weights(average)
    update_ema(average, {"w": torch.full((3,), 2.0)}, decay=0.5, step=10_000)
    assert average["w"].tolist() == pytest.approx(((before["w"] + 2) / 2).tolist())


def test_the_head_has_a_learning_rate_of_its_own():
    """The head has its rate, other trainable weights the common one, frozen ones none; a model needs a head for it."""
    model = reader()
    model.embedding.weight.requires_grad = False
    body, head = adamw(model, TEXT).param_groups
    assert ({id(weight) for weight in head["params"]}, head["lr"], body["lr"]) == (
        {id(w) for w in model.head.parameters()},
        0.01,
        0.003,
    )
    assert len(body["params"]) == len(list(model.parameters())) - 3
    with pytest.raises(ConfigError, match=r"head_learning_rate is 0\.01, but Tabular has no"):
        adamw(tabular(), TEXT)


def test_metrics_follow_the_schedule(tmp_path):
    """Each step's line holds the learning rate that it was done with, and samples and seconds add up."""
    params = TEXT.model_copy(update={"warmup": 0.2, "schedule": "linear"})
    with threads(1):
        optimise(reader(), texts(), params, work=tmp_path)
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["lr"] for line in lines][:3] == pytest.approx([0.0015, 0.003, 0.003])
    assert lines[-1]["samples"] == 150
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(lines))


def test_a_warm_start_begins_at_the_given_weights(tmp_path):
    """Initial weights replace the first ones, scaling included; weights of another architecture do not fit."""
    trained = fit(tabular, table(), TRAIN).model
    save_weights(trained, tmp_path / "weights.pt")
    cold = fit(tabular, table(), TRAIN.model_copy(update={"epochs": 1}))
    warm = fit(tabular, table(), TRAIN.model_copy(update={"epochs": 1}), initial=tmp_path / "weights.pt")
    assert warm.curve[0] < 0.8 * cold.curve[0]
    assert torch.equal(warm.model.mean, trained.mean)
    assert fits(tabular(), tmp_path / "weights.pt")
    assert not fits(reader(), tmp_path / "weights.pt")


def test_weights_come_back_from_disk(tmp_path):
    """Saved and loaded weights have the same identity, and equal weights give equal files."""
    model = fit(tabular, table(64), TRAIN).model
    save_weights(model, tmp_path / "weights.pt")
    other = tabular()
    assert weights_sha256(other) != weights_sha256(model)
    load_weights(other, tmp_path / "weights.pt")
    assert weights_sha256(other) == weights_sha256(model)
    (tmp_path / "again").mkdir()
    save_weights(other, tmp_path / "again" / "weights.pt")
    assert (tmp_path / "again" / "weights.pt").read_bytes() == (tmp_path / "weights.pt").read_bytes()
