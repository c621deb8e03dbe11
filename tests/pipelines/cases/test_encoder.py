"""pipelines/cases/encoder.py: a pre-trained encoder with a head, whatever its architecture."""

from pathlib import Path

import pytest
import torch

from pipelines.cases.encoder import LowRank, build
from pipelines.errors import ConfigError
from pipelines.fields import Fields, Text
from pipelines.params import TextModelParams
from pipelines.text import pad

FIELDS = Fields(case="x", label="team", classes=("a", "b", "c"), fields=(Text("text"),))
BINARY = Fields(case="x", label="urgent", fields=(Text("text"),))
IDS = [[2, 9, 86, 86, 3], [2, 40, 3], [2, 17, 30, 3]]


def _batch(ids: list[list[int]], to: int | None = None) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in pad(ids, to).items()}


def _headed(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def _trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_logits_do_not_depend_on_padding_or_company(text_params: TextModelParams):
    """A row's logits are the same alone, in a batch, and in a batch that is padded further."""
    model = _headed(build(text_params, FIELDS))
    together = model(**_batch(IDS))
    assert together.shape == (3, 3)
    assert torch.allclose(together, model(**_batch(IDS, to=20)), atol=1e-6)
    assert torch.allclose(together[1:2], model(**_batch(IDS[1:2])), atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_training_starts_at_even_odds(text_params: TextModelParams):
    """The untrained head gives every class the same logit, and a binary label one logit."""
    assert build(text_params, FIELDS)(**_batch(IDS)).tolist() == [[0.0] * 3] * 3
    assert build(text_params, BINARY)(**_batch(IDS)).shape == (3, 1)


def test_the_same_files_give_the_same_weights(text_params: TextModelParams):
    """Two builds hold the pre-trained weights; without ``pretrained`` they take trained ones and then answer alike."""
    first, second = build(text_params, FIELDS), build(text_params, FIELDS)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    empty = build(text_params, FIELDS, pretrained=False)
    assert not torch.equal(empty.blocks[0].attention.self.query.weight, first.blocks[0].attention.self.query.weight)
    empty.load_state_dict(_headed(first).state_dict())
    assert torch.equal(empty.eval()(**_batch(IDS)), first(**_batch(IDS)))


def test_dropout_is_the_declared_one_everywhere(text_params: TextModelParams):
    """At dropout 0 training's forward is that of evaluation; at .5 every dropout of encoder and head has .5."""
    model = _headed(build(text_params, FIELDS))
    calm = model(**_batch(IDS))
    assert torch.allclose(model.train()(**_batch(IDS)), calm, atol=1e-6)
    shaken = build(text_params.model_copy(update={"dropout": 0.5}), FIELDS)
    assert {module.p for module in shaken.modules() if isinstance(module, torch.nn.Dropout)} == {0.5}


def test_frozen_layers_are_counted_from_below(text_params: TextModelParams):
    """With one frozen layer the second block and the head learn; an encoder for embeddings learns the head alone."""
    names = _trainable(build(text_params.model_copy(update={"frozen_layers": 1}), FIELDS))
    assert all(name.startswith(("encoder.encoder.layer.1.", "head.")) for name in names)
    assert len(names) == 18
    assert _trainable(build(text_params.model_copy(update={"kind": "embedding"}), FIELDS)) == {
        "head.weight",
        "head.bias",
    }
    assert len(_trainable(build(text_params, FIELDS))) == len(list(build(text_params, FIELDS).parameters()))


def test_low_rank_updates_start_at_nothing_and_learn(text_params: TextModelParams):
    """Only the updates and the head learn; at the start the model is the pre-trained one, after a step it is not."""
    plain = _headed(build(text_params, FIELDS))
    torch.manual_seed(0)
    model = build(text_params.model_copy(update={"lora_rank": 2}), FIELDS)
    assert {name.rsplit(".")[-1] for name in _trainable(model) if "head" not in name} == {"down", "up"}
    assert sum(isinstance(module, LowRank) for module in model.modules()) == 12
    before = _headed(model)(**_batch(IDS))
    assert torch.allclose(before, plain(**_batch(IDS)), atol=1e-6)
    before.square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    assert not torch.allclose(model(**_batch(IDS)), before, atol=1e-3)


@pytest.fixture(scope="module", params=["DistilBert", "Roberta"])
def other_architecture(request, tmp_path_factory) -> Path:
    """A random encoder of another family."""
    import transformers

    sizes = {"vocab_size": 120, "max_position_embeddings": 64}
    config = {
        "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
        "Roberta": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "pad_token_id": 1,
        },
    }[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    getattr(transformers, f"{request.param}Model")(
        getattr(transformers, f"{request.param}Config")(**sizes, **config)
    ).save_pretrained(folder)
    return folder


def test_other_architectures_work_too(other_architecture: Path):
    """In DistilBERT and RoBERTa blocks are found, dropout obeyed, padding says nothing, all weights get gradients."""
    params = TextModelParams(kind="encoder", encoder=str(other_architecture), max_tokens=32, dropout=0.0)
    model = _headed(build(params, FIELDS))
    assert len(model.blocks) == 3
    logits = model.train()(**_batch(IDS))
    assert torch.allclose(logits, model(**_batch(IDS, to=9)), atol=1e-6)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(
        name.split(".")[1] != "embeddings"
        for name in _trainable(build(params.model_copy(update={"frozen_layers": 1}), FIELDS))
    )


def test_what_the_encoder_cannot_do_is_refused(text_params: TextModelParams, tmp_path: Path):
    """Too many tokens or frozen layers, and a folder that holds no model, are refused with their numbers and names."""
    with pytest.raises(ConfigError, match=r"max_tokens is 256.*at most 128"):
        build(text_params.model_copy(update={"max_tokens": 256}), FIELDS)
    with pytest.raises(ConfigError, match=r"frozen_layers is 3.*has 2 blocks"):
        build(text_params.model_copy(update={"frozen_layers": 3}), FIELDS)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(text_params.model_copy(update={"encoder": str(tmp_path)}), FIELDS)
