"""A request's tensors, cut into the inferences that Triton answers one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.text import TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BATCH = 1024
"""Rows per inference: Triton's ``max_batch_size`` in every case's config.pbtxt."""
STEP = 8
"""Texts of one inference have their lengths between two multiples of this; they are padded to the upper one."""
MAX_TOKENS = 1024
"""Tokens per inference, padding included.

On a CPU more of them are not faster a piece: they only keep others waiting.
"""


class Part(NamedTuple):
    """One inference: its tensors, and which rows of the request they are."""

    rows: Sequence[int]
    tensors: Mapping[str, NDArray[Any]]


def cut(tensors: Mapping[str, NDArray[Any]], longest: int = 0) -> list[Part]:
    """The inferences for the tensors of :func:`pipelines.encoding.encoder`.

    Dense rows keep their order. Rows with tokens are grouped by length, padded to a multiple of ``STEP`` (but not
    beyond ``longest``, the tokenizer's truncation): a transformer's work grows with its tokens, padding included.
    """
    count = len(next(iter(tensors.values())))
    if "attention_mask" in tensors:
        return _by_length(tensors, longest)
    if count <= MAX_BATCH:
        return [Part(range(count), tensors)]
    pieces = [range(start, min(start + MAX_BATCH, count)) for start in range(0, count, MAX_BATCH)]
    return [Part(rows, {name: tensor[rows.start : rows.stop] for name, tensor in tensors.items()}) for rows in pieces]


def together(part: Part) -> int:
    """How many rows like those of ``part`` one inference may have."""
    for name in TOKENS:
        if name in part.tensors:
            return most_of(part.tensors[name].shape[1])
    return MAX_BATCH


def most_of(width: int) -> int:
    """How many texts of so many tokens one inference may have."""
    return min(MAX_BATCH, max(1, MAX_TOKENS // width))


def _by_length(tensors: Mapping[str, NDArray[Any]], longest: int) -> list[Part]:
    lengths = tensors["attention_mask"].sum(1)
    widths = np.clip(-(-lengths // STEP) * STEP, 1, longest)
    parts = []
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        most = most_of(width)
        for start in range(0, len(rows), most):
            share = rows[start : start + most]
            own = {name: tensor[share] for name, tensor in tensors.items()}
            parts.append(Part(share.tolist(), own | {name: _fitted(own[name], width) for name in TOKENS}))
    return parts


def _fitted(tokens: NDArray[Any], width: int) -> NDArray[Any]:
    """Token ids or a mask as ``[B, width]``: padding cut off, or zeros added."""
    if tokens.shape[1] >= width:
        return np.ascontiguousarray(tokens[:, :width])
    return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
