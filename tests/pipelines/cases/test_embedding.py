"""pipelines/cases/embedding.py: a logistic regression written into the head, on embeddings that are computed once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.cases.embedding import embeddings, fit_head
from pipelines.cases.encoder import Classifier, NumberFromText, build, tokenizer
from pipelines.errors import DataError
from pipelines.fields import Fields, Number, Text
from pipelines.params import TextModelParams
from pipelines.params_file import load_params
from pipelines.text import load_tokenizer, pad, tokenise

FIELDS = Fields(case="x", label="team", classes=("web", "memory", "access", "nobody"), fields=(Text("text"),))
BINARY = Fields(case="x", label="urgent", fields=(Text("text"),))
TRAIN = load_params("triage").train.model_copy(update={"threads": 1})
TEXTS = [
    "cross site scripting via the web script",
    "buffer overflow and memory corruption",
    "password permission privilege",
]


@pytest.fixture
def model(text_params: TextModelParams) -> Classifier:
    """The tiny encoder, frozen."""
    return build(text_params.model_copy(update={"kind": "embedding"}), FIELDS)


@pytest.fixture
def rows(text_params: TextModelParams) -> tuple[list[list[int]], np.ndarray]:
    """Sixty texts of three of the four teams, told apart by their words."""
    labels = np.arange(60) % 3
    texts = [f"{TEXTS[label]} {number}" for number, label in enumerate(labels)]
    return tokenise(load_tokenizer(tokenizer(text_params)), texts), labels


def _scores(model: Classifier, tokens: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(
            model(**{name: torch.from_numpy(tensor) for name, tensor in pad(tokens).items()}), 1
        ).numpy()


def test_the_head_learns_and_the_encoder_stays(model: Classifier, rows, tmp_path: Path):
    """After the fit the model tells the teams apart, and no weight of the encoder has moved."""
    tokens, labels = rows
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    facts = fit_head(model, tokens, labels, TRAIN, tmp_path)
    assert (_scores(model, tokens).argmax(1) == labels).mean() == 1.0
    assert facts["rows"] == 60
    assert all(torch.equal(before[name], tensor) for name, tensor in model.encoder.state_dict().items())


def test_the_models_loss_is_the_regressions(model: Classifier, rows, tmp_path: Path):
    """The plain forward gives the log-loss that the regression had on its rows, but for the class that it never saw."""
    tokens, labels = rows
    facts = fit_head(model, tokens, labels, TRAIN, tmp_path)
    scores = _scores(model, tokens)
    assert -np.log(scores[np.arange(60), labels] / scores[:, :3].sum(1)).mean() == pytest.approx(
        facts["loss"], abs=1e-5
    )
    assert scores[:, 3].mean() == pytest.approx(1 / 64, rel=0.5)


def test_embeddings_are_computed_once(model: Classifier, rows, tmp_path: Path):
    """A second call finds them all, more rows cost only the new ones, and another encoder's are not mixed in."""
    tokens, _ = rows
    first, computed = embeddings(model, tokens[:40], tmp_path)
    assert computed == 40
    again, computed = embeddings(model, tokens, tmp_path)
    assert computed == 20
    assert np.array_equal(again[:40], first)
    assert embeddings(model, tokens, tmp_path)[1] == 0
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.mul_(3)
    other, computed = embeddings(model, tokens, tmp_path)
    assert computed == 60
    assert not np.allclose(other, again, atol=1e-3)


def test_an_embedding_depends_on_its_row_alone(model: Classifier, rows, tmp_path: Path):
    """A row's embedding has the same bits alone or among others, with one thread or two: the cache changes none."""
    tokens, _ = rows
    together, _ = embeddings(model, tokens, tmp_path / "together", threads=2)
    alone = np.concatenate([embeddings(model, [row], tmp_path / "alone")[0] for row in tokens[::7]])
    assert np.array_equal(together[::7], alone)


def test_two_classes_of_many_and_a_binary_label(text_params: TextModelParams, model: Classifier, rows, tmp_path: Path):
    """Rows of two of the classes, and a model with one output, are fitted as well."""
    tokens, labels = rows
    places = np.flatnonzero(labels < 2)
    fit_head(model, [tokens[place] for place in places], labels[places] + 1, TRAIN, tmp_path)
    assert (_scores(model, tokens).argmax(1)[places] == labels[places] + 1).all()
    binary = build(text_params.model_copy(update={"kind": "embedding"}), BINARY)
    fit_head(binary, tokens, (labels == 1).astype(np.float32), TRAIN, tmp_path)
    with torch.no_grad():
        logits = binary(**{name: torch.from_numpy(tensor) for name, tensor in pad(tokens).items()}).squeeze(1).numpy()
    assert ((logits > 0) == (labels == 1)).all()


def test_one_class_is_refused(model: Classifier, rows, tmp_path: Path):
    """A regression on rows of a single team says what to widen."""
    with pytest.raises(DataError, match="20 rows of one class"):
        fit_head(model, rows[0][:20], np.ones(20), TRAIN, tmp_path)


def test_the_head_of_a_number_is_a_ridge_regression(text_params: TextModelParams, rows, tmp_path: Path):
    """A number is learned from a text's embedding, in its unit, far from zero as it is; its loss is a share of 1."""
    tokens, kinds = rows
    labels = 5_000.0 + 40.0 * kinds
    fields = Fields("x", (Text("text"),), "minutes", target=Number("min", 0))
    network = build(text_params.model_copy(update={"kind": "embedding"}), fields)
    assert isinstance(network, NumberFromText)
    facts = fit_head(network, tokens, labels, TRAIN, tmp_path)
    with torch.no_grad():
        outputs = network(**{name: torch.from_numpy(tensor) for name, tensor in pad(tokens).items()})
    answers = network.restore(outputs).numpy()[:, 0]
    assert np.abs(answers - labels).mean() < 10
    assert facts["loss"] == pytest.approx(float(np.mean((answers - labels) ** 2) / labels.var()), rel=0.01)
