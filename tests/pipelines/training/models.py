"""Models and rows of the training tests: importable by name, as ranks read them from a job's files."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import torch
from torch import nn

from pipelines.cases.tabular import Tabular
from pipelines.config import ModelParams, TrainParams
from pipelines.training.rows import Rows, as_rows

TRAIN = TrainParams(epochs=4, batch_size=32, learning_rate=0.02, weight_decay=0.01, seed=3, ranks=1)
TEXT = TrainParams(epochs=2, batch_size=16, learning_rate=0.003, weight_decay=0.01, seed=5, ranks=1, pool=64, head_learning_rate=0.01, clip=1.0)
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


def texts(count: int = 75) -> Rows:
    """Rows of 2 to 20 tokens whose class is that of their commonest token modulo three; the last batch of an epoch has an odd size."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, CLASSES, count)
    tokens = [(3 * generator.integers(1, 8, generator.integers(2, 21)) + label).tolist() for label in labels]
    return as_rows({}, labels, [f"report-{i}" for i in range(count)], tokens=tokens, classes=CLASSES)


class Reader(nn.Module):
    """A transformer of two blocks with mean pooling and a head, in the shape of the text case's encoder."""

    def __init__(self, dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=True, activation="gelu") for _ in range(2)
        )
        self.head = nn.Linear(width, CLASSES)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, input_ids, attention_mask):
        hidden, unseen = self.embedding(input_ids), attention_mask == 0
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=unseen)
        share = (attention_mask / attention_mask.sum(1, keepdim=True)).to(hidden.dtype)
        return self.head((hidden * share[:, :, None]).sum(1))


def reader() -> Reader:
    """The transformer without dropout: what all strategies agree on."""
    return Reader()


def noisy() -> Reader:
    """The transformer with dropout."""
    return Reader(dropout=0.2)


class Troubled(Reader):
    """A reader to which ``trouble`` happens, in training, on the last rank, at the n-th forward of that rank's process."""

    def __init__(self, trouble: str, at: int) -> None:
        super().__init__(dropout=0.2)
        self.trouble, self.at, self.seen = trouble, at, 0

    def forward(self, input_ids, attention_mask):
        self.seen += self.training
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if self.seen == self.at and rank == int(os.environ.get("WORLD_SIZE", "1")) - 1:
            if self.trouble == "sleep":
                time.sleep(600)
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[self.trouble])
        return super().forward(input_ids, attention_mask)
