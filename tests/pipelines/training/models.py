"""Models and rows of the training tests: importable by name, as ranks read them from a job's files."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from pipelines.cases.mixed import Mixed
from pipelines.cases.tabular import Tabular, TabularNumber
from pipelines.params import ModelParams, TrainParams
from pipelines.training.rows import Rows, as_rows

TRAIN = TrainParams(epochs=4, batch_size=32, learning_rate=0.02, weight_decay=0.01, seed=3, ranks=1)
TEXT = TrainParams(
    epochs=2,
    batch_size=16,
    learning_rate=0.003,
    weight_decay=0.01,
    seed=5,
    ranks=1,
    pool=64,
    head_learning_rate=0.01,
    clip=1.0,
)
"""Ten steps on :func:`texts`, with every part of the optimisation that all strategies share."""
CLASSES = 3


def table(count: int = 301) -> Rows:
    """Rows whose label depends on a category and a number."""
    generator = np.random.default_rng(0)
    categorical = generator.integers(0, 3, (count, 2))
    numeric = generator.normal(50, 10, (count, 2)).astype(np.float32)
    labels = ((categorical[:, 0] == 1) | (numeric[:, 0] > 55)).astype(np.int8)
    return as_rows({"categorical": categorical, "numeric": numeric}, labels)


def tabular() -> Tabular:
    """A small network with dropout."""
    return Tabular((3, 3), 2, ModelParams(hidden=(8,), embedding=2, dropout=0.2))


def plain() -> Tabular:
    """A small network without dropout."""
    return Tabular((3, 3), 2, ModelParams(hidden=(8,), embedding=2, dropout=0.0))


def numbers(count: int = 160) -> Rows:
    """Rows whose label, a number far from zero, depends on a category and a number; as training standardises them."""
    generator = np.random.default_rng(2)
    categorical = generator.integers(0, 3, (count, 2))
    numeric = generator.normal(50, 10, (count, 2)).astype(np.float32)
    labels = 1e6 + 30 * categorical[:, 0] + numeric[:, 0] + generator.normal(0, 3, count)
    rows = as_rows({"categorical": categorical, "numeric": numeric}, labels, number=True)
    return replace(rows, labels=number().standardise(rows.labels))


def number() -> TabularNumber:
    """A small network of a number, adapted to such rows."""
    model = TabularNumber((3, 3), 2, ModelParams(hidden=(8,), embedding=2, dropout=0.0))
    model.adapt(torch.tensor([[40.0, 40.0], [60.0, 60.0]]), torch.tensor([1e6, 1e6 + 160], dtype=torch.float64))
    return model


def texts(count: int = 75) -> Rows:
    """Rows of 2 to 20 tokens whose class is that of their commonest token modulo three.

    The last batch of an epoch has an odd size.
    """
    generator = np.random.default_rng(1)
    labels = generator.integers(0, CLASSES, count)
    tokens = [(3 * generator.integers(1, 8, generator.integers(2, 21)) + label).tolist() for label in labels]
    return as_rows({}, labels, [f"report-{i}" for i in range(count)], tokens=tokens, classes=CLASSES)


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.threefold, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden, seen):
        """Hidden states [B, S, width] of those before, looking at positions that are ``seen`` [B, S]."""
        query, key, value = (
            part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.threefold(self.before(hidden)).chunk(3, dim=2)
        )
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
        hidden = hidden + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.down(gelu(self.up(self.between(hidden)))))


class Reader(nn.Module):
    """A transformer of two blocks with mean pooling and a head, in the shape of the text case's encoder."""

    def __init__(self, dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.layers = nn.ModuleList(Block(width, dropout) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    @property
    def blocks(self) -> list[nn.Module]:
        """What is sharded and computed again one by one."""
        return list(self.layers)

    def forward(self, input_ids, attention_mask):
        """Logits [B, 3]."""
        hidden, seen = self.embedding(input_ids), attention_mask == 1
        for layer in self.layers:
            hidden = layer(hidden, seen)
        share = attention_mask / attention_mask.sum(1, keepdim=True)
        # float32 into the head, as the text case's encoder does it, whatever the blocks compute in.
        return self.head((hidden.float() * share[:, :, None]).sum(1))


class States(nn.Module):
    """The states [B, S, width] of the same transformer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.layers = nn.ModuleList(Block(width, 0.0) for _ in range(2))

    def forward(self, input_ids, attention_mask):
        """Hidden states of tokens [B, S]."""
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask == 1)
        return hidden


def mixed() -> Mixed:
    """The transformer beside a small network of a table, adapted to such rows."""
    head = Tabular((3,), 1, ModelParams(hidden=(8,), embedding=2, dropout=0.0), beside=16)
    model = Mixed(States(), head, dropout=0.0)
    model.adapt(torch.tensor([[999.0], [1001.0]]), torch.tensor([0.0, 1.0]))
    return model


def both(count: int = 75) -> Rows:
    """The texts with a table beside them: what a label of 0 or 1 depends on is in both.

    The number is far from zero for how little it varies: half precision would lose it.
    """
    generator = np.random.default_rng(3)
    read = texts(count)
    categorical = generator.integers(0, 3, (count, 1))
    numeric = generator.normal(1000, 1, (count, 1)).astype(np.float32)
    labels = (numeric[:, 0] > 1000) & (read.labels.numpy() != categorical[:, 0])
    table = as_rows({"categorical": categorical, "numeric": numeric}, labels.astype(np.int8), read.ids)
    return replace(table, tokens=read.tokens)


def reader() -> Reader:
    """The transformer without dropout: what all strategies agree on."""
    return Reader()


def noisy() -> Reader:
    """The transformer with dropout."""
    return Reader(dropout=0.2)


class Troubled(Reader):
    """A reader with dropout to which ``trouble`` happens once.

    It happens on the rank ``who``, at the ``at``-th forward of that rank's process; the file ``marker`` says that it
    has happened.
    """

    def __init__(self, trouble: str, at: int, marker: Path, who: int = 1) -> None:
        super().__init__(dropout=0.2)
        self.trouble, self.at, self.marker, self.who, self.seen = trouble, at, marker, who, 0

    def forward(self, input_ids, attention_mask):
        """Logits [B, 3], or none."""
        self.seen += self.training
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if self.seen == self.at and rank == self.who and not self.marker.exists():
            self.marker.touch()
            if self.trouble == "sleep":
                time.sleep(600)
            if self.trouble == "wait":
                time.sleep(1)  # for the test to see the marker and do something
            elif self.trouble != "none":
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[self.trouble])
        return super().forward(input_ids, attention_mask)
