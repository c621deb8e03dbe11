"""The network of the tabular cases."""

import pytest
import torch

from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields, part
from pipelines.cases.tabular import SCALED_LIMIT, Tabular, TabularNumber, build
from pipelines.fields import Categorical, Fields, Numeric
from pipelines.params import ModelParams
from pipelines.params_file import load_params

PARAMS = ModelParams(hidden=(8,), embedding=2, dropout=0.0)


def adapted() -> Tabular:
    """A network that was fitted to three rows, its second number constant, and has weights of its own."""
    torch.manual_seed(0)
    model = Tabular((3,), 2, PARAMS)
    torch.nn.init.normal_(model.output.weight)
    model.adapt(torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]]), torch.tensor([0.0, 0.0, 1.0]))
    return model.eval()


def test_scaling_is_part_of_the_model():
    """Mean and scale of the training rows are buffers, so they are saved, hashed and exported with the weights."""
    state = adapted().state_dict()
    assert state["mean"].tolist() == [3.0, 7.0]
    assert state["scale"][0].item() == pytest.approx((8 / 3) ** -0.5)
    assert state["scale"][1].item() == 0.0


def test_a_column_that_never_varied_says_nothing():
    """A first change of a constant column does not move the score."""
    model = adapted()
    code = torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(model(code, torch.tensor([[3.0, 7.0]])), model(code, torch.tensor([[3.0, 900.0]])))


def test_numbers_far_outside_saturate():
    """Beyond the limit in standard deviations a number changes nothing any more."""
    model = adapted()
    code = torch.zeros(1, 1, dtype=torch.int64)
    edge = 3.0 + SCALED_LIMIT / model.scale[0].item() + 1
    assert torch.equal(model(code, torch.tensor([[edge, 7.0]])), model(code, torch.tensor([[edge * 100, 7.0]])))


def test_an_unseen_category_is_neutral():
    """Before training all categories score alike, so one that the training rows lack adds no noise."""
    codes = torch.tensor([[0], [1], [2]])
    scores = adapted()(codes, torch.tensor([[3.0, 7.0]]).repeat(3, 1))
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_training_starts_at_the_base_rate():
    """An adapted, untrained network answers its rows' base rate (one row of each class added) for every row."""
    model = Tabular((3,), 1, PARAMS)
    model.adapt(torch.randn(98, 1), (torch.arange(98) < 9).float())
    scores = torch.sigmoid(model(torch.arange(3)[:, None], torch.tensor([[-3.0], [0.0], [9.0]])))
    assert scores.flatten().tolist() == pytest.approx([0.1] * 3)


def test_a_network_of_a_number_starts_at_the_mean():
    """An adapted, untrained network answers the training labels' mean, and float32 keeps what is far from zero."""
    labels = 1e9 + torch.tensor([0.0, 100.0, 200.0], dtype=torch.float64)
    model = TabularNumber((3,), 1, PARAMS)
    model.adapt(torch.randn(3, 1), labels)
    learned = model.standardise(labels)
    assert learned.dtype == torch.float32
    assert learned.tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])
    answers = model.restore(model(torch.arange(3)[:, None], torch.tensor([[-3.0], [0.0], [9.0]])))
    assert answers.flatten().tolist() == [float(torch.tensor(1e9 + 100))] * 3
    assert model.state_dict().keys() >= {"target_mean", "target_scale"}


def test_equal_labels_have_a_deviation_of_one():
    """Rows with one label teach that number: nothing is divided by zero."""
    model = TabularNumber((3,), 1, PARAMS)
    model.adapt(torch.randn(3, 1), torch.full((3,), 7.0, dtype=torch.float64))
    assert model.standardise(torch.tensor([7.0, 9.0])).tolist() == [0.0, 2.0]


def test_a_table_of_classes_starts_at_their_base_rates():
    """With classes there is an output for each, and an untrained network answers their shares."""
    fields = Fields("x", (Categorical("a", ("b", "c", "d")), Numeric("n")), "y", classes=("p", "q", "r"))
    model = build(PARAMS, fields)
    model.adapt(torch.randn(17, 1), torch.tensor([0] * 9 + [1] * 5 + [2] * 3))
    shares = torch.softmax(model(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)), 1)
    assert shares.flatten().tolist() == pytest.approx([10 / 20, 6 / 20, 4 / 20])


@pytest.mark.parametrize(("case", "file"), [("bank", "variants/network/bank.yaml"), ("loans", "params.yaml")])
def test_every_case_builds_its_network(case, file):
    """A case's model takes the tensors of its declared fields and answers one logit per row."""
    fields = load_fields(case)
    model = part(case, "model").build(load_params(case, CASES_ROOT / case / file).model, fields)
    answer = model(torch.zeros(4, len(fields.categorical), dtype=torch.int64), torch.zeros(4, len(fields.numeric)))
    assert answer.shape == (4, 1)


def with_holes() -> Tabular:
    """A network of two numbers that may be missing, the second never was in the training rows; random weights."""
    torch.manual_seed(0)
    model = Tabular((3,), 2, PARAMS, holes=(0, 1))
    for weights in model.parameters():
        torch.nn.init.normal_(weights)
    rows = torch.tensor([[1.0, 7.0], [torch.nan, 8.0], [5.0, 9.0], [torch.nan, 8.0]])
    model.adapt(rows, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    return model.eval()


def test_a_missing_number_is_the_training_rows_mean_and_an_indicator():
    """Mean and deviation are those of the numbers that are there; whether one is missing is a number of its own."""
    model = with_holes()
    assert model.mean.tolist() == pytest.approx([3.0, 8.0, 0.5, 0.0])
    assert model.scale.tolist() == pytest.approx([1 / 2, 2**0.5, 2.0, 0.0])
    code = torch.zeros(1, 1, dtype=torch.int64)
    missing = model(code, torch.tensor([[torch.nan, 7.0]]))
    assert missing.isfinite().all()
    assert not torch.allclose(missing, model(code, torch.tensor([[3.0, 7.0]])))


def test_a_number_that_was_never_missing_is_filled_silently():
    """What no training row lacked says nothing when it is missing for the first time: it counts as the mean."""
    model = with_holes()
    code = torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(model(code, torch.tensor([[1.0, torch.nan]])), model(code, torch.tensor([[1.0, 8.0]])))


def test_a_column_without_any_number_is_finite():
    """Training rows that lack a number altogether give a network that answers, with or without it."""
    model = Tabular((), 1, PARAMS, holes=(0,))
    model.adapt(torch.full((4, 1), torch.nan), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    none = torch.zeros(1, 0, dtype=torch.int64)
    answers = [model(none, torch.tensor([[value]])) for value in (torch.nan, 3.0)]
    assert answers[0].isfinite().all()
    assert torch.equal(*answers)
