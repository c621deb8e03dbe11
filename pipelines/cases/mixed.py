"""The network of the cases with a text beside a table: the table's network, given what is read of the text.

The text is the mean over its tokens: of a pre-trained encoder's last states, or of embeddings that are learned from
nothing (Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015). These
are multiplied by the root of their size (Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.4): a
mean over many tokens is small, and would be learned too slowly.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from pipelines.cases import encoder, tabular
from pipelines.cases.pretrained import base_sha256, tokenizer
from pipelines.errors import ConfigError
from pipelines.fields import Fields
from pipelines.params import AnyModel, MixedModelParams
from pipelines.text import load_tokenizer

__all__ = ["Mixed", "MixedNumber", "base_sha256", "build", "tokenizer"]


class Mixed(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """Logits from token ids, category codes and raw numbers.

    ``reader`` makes states ``[B, S, H]`` of tokens, ``head`` is the network of tables, ``blocks`` are the encoder's.
    """

    def __init__(self, reader: nn.Module, head: tabular.Tabular, dropout: float) -> None:
        """``head`` has as many numbers ``beside`` its own as ``reader`` has states."""
        super().__init__()
        self.reader = reader
        self.dropout = nn.Dropout(dropout)
        self.head = head

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's transformer blocks, from below; none of learned tokens."""
        return encoder.blocks_of(self.reader)

    def adapt(self, numeric: Tensor, labels: Tensor) -> None:
        """As of :meth:`pipelines.cases.tabular.Tabular.adapt`."""
        self.head.adapt(numeric, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, categorical: Tensor, numeric: Tensor) -> Tensor:
        """Logits ``[B, 1]`` or ``[B, K]`` of int64 tokens ``[B, S]`` and codes ``[B, C]``, float32 numbers ``[B, N]``.

        A text without tokens counts as zeros.
        """
        mean = encoder.mean_of_tokens(self.reader(input_ids, attention_mask), attention_mask)
        logits: Tensor = self.head(categorical, numeric, self.dropout(mean))
        return logits


class MixedNumber(Mixed):
    """The same network for a number, which its head standardises."""

    def standardise(self, labels: Tensor) -> Tensor:
        """As of :meth:`pipelines.cases.standardised.Standardised.standardise`."""
        standardised: Tensor = self.head.standardise(labels)
        return standardised

    def restore(self, outputs: Tensor) -> Tensor:
        """As of :meth:`pipelines.cases.standardised.Standardised.restore`."""
        numbers: Tensor = self.head.restore(outputs)
        return numbers


class Tokens(nn.Module):  # type: ignore[misc]
    """An embedding of every token, learned from nothing: states ``[B, S, H]``."""

    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.factor = math.sqrt(size)
        # Zero, not random: a token that no training row has says nothing.
        nn.init.zeros_(self.embedding.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: ARG002 - as an encoder is called
        """The embeddings of int64 tokens ``[B, S]``."""
        states: Tensor = self.embedding(input_ids) * self.factor
        return states


class States(nn.Module):  # type: ignore[misc]
    """The last hidden states ``[B, S, H]`` of a Hugging Face encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The states of int64 tokens ``[B, S]``."""
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def build(params: AnyModel, fields: Fields, *, pretrained: bool = True) -> Mixed:
    """The network for a case's declared fields and target; the caller seeds torch.

    Without ``pretrained`` an encoder's weights are random, as of :func:`pipelines.cases.encoder.build`, which says what
    is raised. Raises ConfigError for parameters of another kind of model, and without a text or a table.
    """
    if fields.text is None or not fields.has_table:
        raise ConfigError(
            f"{fields.case} declares no text beside other fields: build its model by pipelines/cases/tabular.py, "
            "or of a text alone by pipelines/cases/encoder.py"
        )
    if not isinstance(params, MixedModelParams):
        raise ConfigError(f"model.kind is {params.kind}, and {fields.case} has a text beside a table: choose mixed")
    if params.tokens:
        size = params.tokens
        reader: nn.Module = Tokens(load_tokenizer(tokenizer(params)).get_vocab_size(), size)
    else:
        read: Any = encoder.load(params, pretrained=pretrained)
        encoder.tune(read, params)
        size, reader = read.config.hidden_size, States(read)
    kind = Mixed if fields.number is None else MixedNumber
    return kind(reader, tabular.build(params, fields, size), params.dropout)
