"""pipelines/cases/mixed.py: a text beside a table, its tokens learned from nothing or read by an encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.cases.mixed import MixedNumber, build
from pipelines.errors import ConfigError
from pipelines.fields import Categorical, Fields, Number, Numeric, Text
from pipelines.params import MixedModelParams, ModelParams, TrainParams
from pipelines.text import pad
from pipelines.training.fit import fit
from pipelines.training.rows import as_rows

FIELDS = Fields(
    case="x",
    label="team",
    classes=("a", "b", "c"),
    fields=(Categorical("kind", ("x", "y")), Text("text"), Numeric("age", missing=True)),
)
IDS = [[2, 9, 86, 86, 3], [], [2, 17, 30, 3]]
TRAIN = TrainParams(epochs=12, batch_size=32, learning_rate=0.02, weight_decay=0.0, seed=0, ranks=1)


@pytest.fixture
def params(encoder_folder: Path) -> MixedModelParams:
    """Parameters of a mixed model on the tiny encoder, which gives its tokenizer alone."""
    return MixedModelParams(
        kind="mixed", encoder=str(encoder_folder), max_tokens=32, dropout=0.0, hidden=(8,), embedding=2, tokens=4
    )


def _batch(ids: list[list[int]], to: int | None = None) -> dict[str, torch.Tensor]:
    table = {
        "categorical": torch.arange(len(ids))[:, None] % 2,
        "numeric": torch.tensor([[1.0], [float("nan")], [3.0]])[: len(ids)],
    }
    return {name: torch.from_numpy(tensor) for name, tensor in pad(ids, to).items()} | table


def _moved(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for weights in model.head.parameters():
        torch.nn.init.normal_(weights)
    return model.eval()


@pytest.mark.parametrize("tokens", [4, 0])
def test_outputs_do_not_depend_on_padding_or_company(params: MixedModelParams, tokens: int):
    """A row has the same outputs alone, in a batch and padded further; without tokens or a number it has some, too."""
    model = _moved(build(params.model_copy(update={"tokens": tokens}), FIELDS))
    together = model(**_batch(IDS))
    assert together.shape == (3, 3)
    assert torch.isfinite(together).all()
    assert torch.allclose(together, model(**_batch(IDS, to=20)), atol=1e-6)
    assert torch.allclose(together[:1], model(**_batch(IDS[:1])), atol=1e-6)


def test_training_starts_at_the_base_rates(params: MixedModelParams):
    """Before the first step every row has the training rows' base rates, whatever its text."""
    model = build(params, FIELDS)
    model.adapt(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 0]))
    assert torch.allclose(torch.softmax(model(**_batch(IDS)), 1), torch.tensor([[3.0, 1, 1]] * 3) / 5)


def test_what_learns_is_what_the_parameters_say(params: MixedModelParams):
    """Of an encoder with all layers frozen the head learns alone, of one with none everything; blocks are its own."""
    frozen = build(params.model_copy(update={"tokens": 0, "frozen_layers": 2}), FIELDS)
    assert {name.split(".")[0] for name, weight in frozen.named_parameters() if weight.requires_grad} == {"head"}
    assert len(frozen.blocks) == 2
    whole = build(params.model_copy(update={"tokens": 0}), FIELDS)
    assert all(weight.requires_grad for weight in whole.parameters())
    whole(**_batch(IDS)).square().sum().backward()
    assert [name for name, weight in whole.named_parameters() if weight.grad is None] == []
    assert build(params, FIELDS).blocks == []


def test_it_learns_from_the_text_and_from_what_is_beside_it(params: MixedModelParams):
    """A label that token and category tell together, and neither of them alone, is learned."""
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 2, 400), generator.integers(0, 2, 400)
    rows = as_rows(
        {"categorical": second[:, None], "numeric": generator.normal(size=(400, 1)).astype(np.float32)},
        first ^ second,
        tokens=[[2, 10 + int(own), 3] for own in first],
    )
    fields = Fields(case="x", label="odd", fields=FIELDS.fields)
    assert fit(lambda: build(params, fields), rows, TRAIN).curve[-1] < 0.1 * np.log(2)


def test_a_number_is_standardised_by_its_head(params: MixedModelParams):
    """What the network learns of a number is what its head makes of it, and comes back in the unit."""
    model = build(params, Fields(case="x", label="cost", fields=FIELDS.fields, target=Number("EUR")))
    assert isinstance(model, MixedNumber)
    labels = torch.tensor([1e6, 1e6 + 20.0], dtype=torch.float64)
    model.adapt(torch.tensor([[1.0], [2.0]]), labels)
    assert model.standardise(labels).tolist() == [-1.0, 1.0]
    assert model.restore(torch.ones(1, 1)).tolist() == [[1e6 + 20.0]]


def test_what_does_not_fit_is_refused(params: MixedModelParams):
    """A text beside a table needs the parameters of both, and a declaration of both."""
    with pytest.raises(ConfigError, match="choose mixed"):
        build(ModelParams(hidden=(8,), embedding=2, dropout=0.0), FIELDS)
    for own in (FIELDS.fields[1:2], FIELDS.fields[::2]):
        with pytest.raises(ConfigError, match="no text beside other fields"):
            build(params, Fields(case="x", label="team", fields=own))
