"""Training rows in memory, and the order in which they are seen.

The order is a function of (seed, epoch), so there is no loader's state to save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRIDE = 1_000_003
"""A prime that keeps the seeds of different (seed, epoch) and (seed, step) apart."""


@dataclass(frozen=True)
class Tokens:
    """Ragged token ids: row ``i`` is ``flat[starts[i]:starts[i + 1]]``.

    ``flat`` is int32 [sum of lengths], ``starts`` int64 [n + 1].
    """

    flat: Tensor
    starts: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens per row, int64 [n]."""
        return self.starts.diff()

    def take(self, index: Tensor) -> Tokens:
        """The rows at ``index``, int64 [m]."""
        lengths = self.lengths[index]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        # Position within its own row, plus where that row began.
        source = torch.arange(int(starts[-1])) + (self.starts[index] - starts[:-1]).repeat_interleave(lengths)
        return Tokens(self.flat[source], starts)

    def padded(self) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 [n, longest]: zeros behind each row.

        They are what :func:`pipelines.text.pad` makes of the same ids.
        """
        lengths = self.lengths
        longest = 1
        if len(lengths):
            longest = int(lengths.max())
        mask = torch.arange(longest)[None, :] < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = self.flat.long()
        return {"input_ids": ids, "attention_mask": mask.long()}


@dataclass(frozen=True)
class Rows:
    """Training rows in time order.

    ``ids`` name them in messages; ``labels`` are float32 [n] of 0 and 1, or int64 [n] class positions, or where the
    target is a ``number`` floats [n], float64 in its unit until a model has standardised them (fit.py);
    ``dense`` maps an input's name to its tensor [n, ...]; ``tokens`` are the ids of texts.
    """

    ids: Sequence[str]
    labels: Tensor
    dense: Mapping[str, Tensor]
    tokens: Tokens | None = None
    number: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor | None:
        """Tokens per row, int64 [n]; None for rows that are all of one size."""
        if self.tokens is None:
            return None
        return self.tokens.lengths

    def take(self, index: Tensor) -> Rows:
        """The rows at ``index``, int64 [m]."""
        tokens = self.tokens
        if tokens is not None:
            tokens = tokens.take(index)
        return replace(
            self,
            ids=[self.ids[i] for i in index.tolist()],
            labels=self.labels[index],
            dense={name: tensor[index] for name, tensor in self.dense.items()},
            tokens=tokens,
        )

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The model's inputs of the rows at ``index`` by name; tokens are padded to the longest row of the batch."""
        inputs = {name: tensor[index] for name, tensor in self.dense.items()}
        if self.tokens is not None:
            inputs |= self.tokens.take(index).padded()
        return inputs

    def save(self, path: Path) -> None:
        """Write the rows to ``path``; :func:`load_rows` reads them."""
        tokens = None
        if self.tokens is not None:
            tokens = [self.tokens.flat, self.tokens.starts]
        parts = {"ids": list(self.ids), "labels": self.labels, "dense": dict(self.dense), "tokens": tokens}
        torch.save(parts | {"number": self.number}, path)


def load_rows(path: Path) -> Rows:
    """The rows that :meth:`Rows.save` wrote, mapped into memory: ranks of one machine share the pages."""
    found = torch.load(path, weights_only=True, mmap=True)
    tokens = None
    if found["tokens"] is not None:
        tokens = Tokens(*found["tokens"])
    return Rows(found["ids"], found["labels"], found["dense"], tokens, found.get("number", False))


def as_rows(
    tensors: Mapping[str, NDArray[Any]],
    labels: NDArray[Any],
    ids: Sequence[str] | None = None,
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    classes: int = 0,
    number: bool = False,
) -> Rows:
    """Rows from encoded columns, from ``tokens``, or from both.

    Columns are encoded by :func:`pipelines.encoding.encode`, tokens made by :func:`pipelines.text.tokenise`.
    ``labels`` [n] are 0 and 1, positions among ``classes``, or where the target is a ``number`` that; without ``ids`` a
    row is named by its position.
    """
    label_type = torch.float32
    if classes:
        label_type = torch.int64
    elif number:
        label_type = torch.float64
    if ids is None:
        ids = [str(position) for position in range(len(labels))]
    ragged = None
    if tokens is not None:
        ragged = _ragged(tokens)
    dense = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    return Rows(list(ids), torch.tensor(labels, dtype=label_type), dense, ragged, number)


def _ragged(tokens: Sequence[Sequence[int]]) -> Tokens:
    starts = np.concatenate([[0], np.cumsum([len(own) for own in tokens], dtype=np.int64)])
    flat = np.fromiter((token for own in tokens for token in own), np.int32, int(starts[-1]))
    return Tokens(torch.from_numpy(flat), torch.from_numpy(starts))


def order(rows: int, seed: int, epoch: int) -> Tensor:
    """The permutation of ``rows`` rows in one epoch: the same for every rank and every try."""
    return torch.randperm(rows, generator=_generator(seed, epoch))


def batches(rows: Rows, size: int, pool: int, seed: int, epoch: int) -> list[Tensor]:
    """The global batches of one epoch, each int64 [at most ``size`` positions]; every row is in one of them.

    With ``pool`` rows above 0 and rows of different lengths, pools of the permutation are sorted by length before they
    are cut, so that a batch needs little padding, and the batches are shuffled ("bucketing" as in Khomenko
    et al., 2016, arXiv:1708.05604).
    """
    permutation = order(len(rows), seed, epoch)
    lengths = rows.lengths
    if not pool or lengths is None:
        return list(permutation.split(size))
    pools = permutation.split(max(1, pool // size) * size)
    cut = [batch for own in pools for batch in own[lengths[own].argsort(stable=True)].split(size)]
    shuffled = torch.randperm(len(cut), generator=_generator(seed, -1 - epoch))
    return [cut[i] for i in shuffled.tolist()]


def micro_batches(batch: Tensor, rank: int, world_size: int, accumulate: int) -> list[Tensor]:
    """A rank's micro-batches of a global batch: exactly ``accumulate`` on every rank, of which late ones may be empty.

    A rank gets every ``world_size``-th row of a batch that is sorted by length, so that all have the same work.
    """
    return list(batch[rank::world_size].tensor_split(accumulate))


def train_validation_split(rows: Rows, validation_share: float) -> tuple[Rows, Rows | None]:
    """The rows to train on, and the newest share of all (at least one row) to validate on; None at share 0."""
    if not validation_share:
        return rows, None
    cut = len(rows) - max(1, int(len(rows) * validation_share))
    positions = torch.arange(len(rows))
    return rows.take(positions[:cut]), rows.take(positions[cut:])


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * STRIDE + epoch)
