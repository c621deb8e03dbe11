"""The network of the text cases: a pre-trained encoder, the mean over its tokens, a linear head.

Mean pooling after Reimers and Gurevych, "Sentence-BERT", 2019 (arXiv:1908.10084). Low-rank updates after Hu
et al., "LoRA", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipelines.cases.pretrained import base_sha256, locate, tokenizer
from pipelines.cases.standardised import Standardised
from pipelines.errors import ConfigError
from pipelines.fields import Fields
from pipelines.params import EncoderParams, TextModelParams

__all__ = ["Classifier", "LowRank", "NumberFromText", "base_sha256", "build", "tokenizer"]


class Classifier(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """Logits from token ids.

    ``blocks`` are the encoder's transformer blocks from below, ``head`` is what learns from nothing.
    """

    def __init__(self, encoder: nn.Module, outputs: int, dropout: float) -> None:
        """``encoder`` is a Hugging Face model that returns ``last_hidden_state`` [B, S, H]; ``outputs`` is K."""
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, outputs)
        # Training starts at even odds; random first logits would be noise that the first steps must undo.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, from below; empty if the encoder keeps them in no list."""
        return blocks_of(self.encoder)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean of the last hidden states over a row's own tokens: float32 ``[B, H]``."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_of_tokens(hidden, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``[B, K]`` (K = 1 for a binary label) of int64 ``input_ids`` and ``attention_mask`` ``[B, S]``."""
        logits: Tensor = self.head(self.dropout(self.embed(input_ids, attention_mask)))
        return logits


class NumberFromText(Classifier, Standardised):
    """The same network for a number: its one output is the standardised number."""

    def __init__(self, encoder: nn.Module, dropout: float) -> None:
        """As of :class:`Classifier`."""
        super().__init__(encoder, 1, dropout)
        self.keep_target()


class LowRank(nn.Module):  # type: ignore[misc]
    """A linear layer that stays as it is, plus an update of rank r that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """``rank`` is r; the update is not scaled, so the learning rate alone says how fast it grows."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        y: Tensor = self.base(x) + (x @ self.down.t()) @ self.up.t()
        return y


def build(params: TextModelParams, fields: Fields, *, pretrained: bool = True) -> Classifier:
    """The network for a case's declared fields; the caller seeds torch.

    Without ``pretrained`` the weights are random: enough where trained ones will be loaded into it. All weights
    are float32. Raises what :func:`pipelines.cases.pretrained.locate` raises, ConfigError if the encoder
    cannot do what the parameters ask.
    """
    encoder = load(params, pretrained=pretrained)
    if fields.number is not None:
        model: Classifier = NumberFromText(encoder, params.dropout)
    else:
        model = Classifier(encoder, fields.outputs, params.dropout)
    tune(model.encoder, params, frozen=params.kind == "embedding")
    return model


def tune(encoder: nn.Module, params: EncoderParams, *, frozen: bool = False) -> None:
    """Let of an encoder learn what the parameters say, nothing if it is ``frozen``.

    Raises ConfigError if it cannot do what they ask.
    """
    longest = getattr(encoder.config, "max_position_embeddings", params.max_tokens)
    if params.max_tokens > longest:
        raise ConfigError(
            f"model.max_tokens is {params.max_tokens}, {params.encoder} takes at most {longest}: lower it"
        )
    blocks = blocks_of(encoder)
    if params.frozen_layers > len(blocks):
        raise ConfigError(
            f"model.frozen_layers is {params.frozen_layers}, {params.encoder} has {len(blocks)} blocks: lower it"
        )
    if frozen:
        _freeze(encoder)
    elif params.lora_rank:
        _freeze(encoder)
        for block in blocks[params.frozen_layers :]:
            _adapt(block, params.lora_rank)
    elif params.frozen_layers:
        _freeze(encoder)
        for block in blocks[params.frozen_layers :]:
            block.requires_grad_(True)


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """An encoder's transformer blocks, from below; empty if it keeps them in no list."""
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over a row's own tokens of ``hidden`` ``[B, S, H]``, float32 ``[B, H]``; 0 without any."""
    own = attention_mask.unsqueeze(-1).float()
    mean: Tensor = (hidden.float() * own).sum(1) / own.sum(1).clamp(min=1.0)
    return mean


def load(params: EncoderParams, *, pretrained: bool = True) -> nn.Module:
    """The encoder that parameters name, float32, as :func:`build` says. Raises what it raises."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder = locate(params.encoder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        for name, value in config.to_dict().items():
            # "hidden_dropout_prob" of BERT, "dropout" of DistilBERT, "mlp_dropout" of ModernBERT: one knob for all.
            if "dropout" in name and isinstance(value, float):
                setattr(config, name, params.dropout)
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        if pretrained:
            encoder = AutoModel.from_pretrained(folder, config=config, local_files_only=True, **options)
        else:
            encoder = AutoModel.from_config(config, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.encoder {params.encoder!r} cannot be loaded ({str(error).splitlines()[0]}): "
            "give an encoder like BERT, RoBERTa or DistilBERT"
        ) from error
    if getattr(encoder, "pooler", None) is not None:
        # Nothing reads it, and parameters without a gradient stop DDP.
        encoder.pooler = None
    return encoder


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _adapt(block: nn.Module, rank: int) -> None:
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank))
