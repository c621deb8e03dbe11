"""steps/train with a head start: fine-tuning begins where the regression on untouched embeddings ends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.params import Params
from pipelines.settings import Settings
from tests.encoders import write_encoder
from tests.pipelines.reproduction.runs import AS_OF, made_rows, small_text
from tests.pipelines.verbs import train


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny pre-trained encoder."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def _params(encoder: Path, **model) -> Params:
    """The triage case on the tiny encoder, with a learning rate that moves nothing visibly."""
    params = small_text(encoder)
    still = params.train.model_copy(update={"learning_rate": 1e-12, "head_learning_rate": None, "clip": None})
    return params.model_copy(update={"model": params.model.model_copy(update=model), "train": still})


def _trained(params: Params, settings: Settings, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights and facts of the train step on 160 made-up reports."""
    run_dir = settings.root / name

    def dataset(folder: Path) -> dict:
        made_rows(load_fields("triage"), 160).write_parquet(folder / "train.parquet")
        return {}

    storage.commit(
        run_dir / "dataset", case="triage", as_of=AS_OF, key=storage.digest("rows"), inputs={}, build=dataset
    )
    facts = train.run(params, settings, run_dir, AS_OF).facts
    return torch.load(run_dir / "train" / "weights.pt", weights_only=True), facts


def test_fine_tuning_starts_with_the_fitted_head(encoder: Path, tmp_path: Path):
    """With a head start the head is the one that kind embedding fits, and the first loss is below even odds.

    Without, it starts at nothing.
    """
    settings = Settings(home=tmp_path)
    fitted, _ = _trained(_params(encoder, kind="embedding"), settings, "embedding")
    started, facts = _trained(_params(encoder, head_start=True), settings, "started")
    assert torch.allclose(started["head.weight"], fitted["head.weight"], atol=1e-6)
    assert facts["loss_first"] < np.log(11) - 0.3
    plain, facts = _trained(_params(encoder, head_start=False), settings, "plain")
    assert plain["head.weight"].abs().max() < 1e-6
    assert facts["loss_first"] == pytest.approx(np.log(11), abs=1e-3)


def test_a_kept_embedding_changes_no_weight(encoder: Path, tmp_path: Path):
    """A training that finds the embeddings of an earlier one ends with the same weights as one without."""
    params = _params(encoder, head_start=True)
    cold, facts = _trained(params, Settings(home=tmp_path / "cold"), "first")
    _, _ = _trained(params, Settings(home=tmp_path / "warm"), "first")
    warm, again = _trained(params, Settings(home=tmp_path / "warm"), "second")
    assert facts["weights_sha256"] == again["weights_sha256"]
    assert all(torch.equal(tensor, warm[name]) for name, tensor in cold.items())
