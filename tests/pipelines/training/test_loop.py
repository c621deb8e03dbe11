"""The training loop in one process."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.cases.tabular import Tabular
from pipelines.config import ModelParams, TrainParams
from pipelines.errors import DataError, TrainingDiverged
from pipelines.training.fit import fit
from pipelines.training.loop import Rows, as_rows, order
from pipelines.training.weights import load_weights, save_weights, weights_sha256

MODEL = ModelParams(hidden=(8,), embedding=2, dropout=0.2)
TRAIN = TrainParams(epochs=4, batch_size=32, learning_rate=0.02, weight_decay=0.01, seed=3, ranks=1)


def made_rows(count: int = 301) -> Rows:
    """Rows whose label depends on a category and a number."""
    generator = np.random.default_rng(0)
    categorical = generator.integers(0, 3, (count, 2))
    numeric = generator.normal(50, 10, (count, 2)).astype(np.float32)
    labels = ((categorical[:, 0] == 1) | (numeric[:, 0] > 55)).astype(np.int8)
    return as_rows({"categorical": categorical, "numeric": numeric}, labels)


def build() -> Tabular:
    """A small network with dropout."""
    return Tabular((3, 3), 2, MODEL)


def test_order_is_a_function_of_seed_and_epoch():
    """Every epoch visits every row once, in an order that (seed, epoch) fixes and that no generator state can change."""
    torch.manual_seed(1)
    first = order(100, seed=0, epoch=1)
    torch.rand(10)
    assert torch.equal(first, order(100, seed=0, epoch=1))
    assert not torch.equal(first, order(100, seed=0, epoch=2))
    assert not torch.equal(first, order(100, seed=1, epoch=1))
    assert torch.equal(first.sort().values, torch.arange(100))


def test_training_learns():
    """The mean loss falls well below that of the base rate on rows that can be learned."""
    rows = made_rows()
    _, curve = fit(build, rows, TRAIN.model_copy(update={"epochs": 20}))
    rate = float(rows.labels.mean())
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert curve[-1] < 0.6 * entropy
    assert len(curve) == 20


def test_same_inputs_give_the_same_bits_with_dropout():
    """Two trainings from equal rows and parameters end in equal weights, another seed ends elsewhere."""
    rows = made_rows()
    first = weights_sha256(fit(build, rows, TRAIN)[0])
    torch.rand(5)
    assert weights_sha256(fit(build, rows, TRAIN)[0]) == first
    assert weights_sha256(fit(build, rows, TRAIN.model_copy(update={"seed": 4}))[0]) != first


def test_threads_are_given_back():
    """Training runs on one thread and leaves the caller's number of threads as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(build, made_rows(40), TRAIN)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_loss_that_is_not_finite_names_its_step():
    """A number that is not finite stops the training at the first step that sees it."""
    rows = made_rows(64)
    numeric = rows.numeric.clone()
    seen_last = int(order(64, TRAIN.seed, 0)[-1])
    model = build()
    model.adapt(numeric, rows.labels)
    numeric[seen_last, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="nan at step 1 "):
        fit(lambda: _adapted(model), replace(rows, numeric=numeric), TRAIN)


def _adapted(model: Tabular) -> torch.nn.Module:
    """The same network without ``adapt``, so that a broken row cannot spoil the scaling before the first step."""

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, categorical, numeric):
            return self.inner(categorical, numeric)

    return Fixed()


def test_no_rows_is_a_data_error():
    """Training without rows says which parameters to widen."""
    with pytest.raises(DataError, match="window_days"):
        fit(build, made_rows(0), TRAIN)


def test_weights_come_back_from_disk(tmp_path):
    """Saved and loaded weights have the same identity, and equal weights give equal files."""
    model, _ = fit(build, made_rows(64), TRAIN)
    save_weights(model, tmp_path / "weights.pt")
    other = build()
    assert weights_sha256(other) != weights_sha256(model)
    load_weights(other, tmp_path / "weights.pt")
    assert weights_sha256(other) == weights_sha256(model)
    (tmp_path / "again").mkdir()
    save_weights(other, tmp_path / "again" / "weights.pt")
    assert (tmp_path / "again" / "weights.pt").read_bytes() == (tmp_path / "weights.pt").read_bytes()
