"""A case's tensors as the one matrix that an estimator reads: in numpy here, the same in ONNX in :mod:`.onnx`.

What is learned of the training rows (what fills in, mean and deviation, words) is part of the design. All is float32,
as serving has it: a tree's threshold between two numbers that float32 does not tell apart would split them otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.estimators.families import OF_TEXTS, Layout
from pipelines.estimators.words import Words
from pipelines.estimators.words import learn as learn_words
from pipelines.fields import Fields
from pipelines.params import WordsParams

Tensors = Mapping[str, NDArray[Any]]
Matrix = NDArray[np.float32]
SCALED_MOST = np.float32(5.0)
"""Scaled numbers are clamped to +-5 standard deviations, as those of the network are."""


@dataclass(frozen=True)
class Design:
    """How tensors become columns. ``sizes`` are the numbers of codes of the categories, in column order.

    - ``codes``: codes as numbers, then numbers with NaN for what is missing.
    - ``filled``: the same, but the training rows' mean fills in, and behind the numbers stands 1 where one was missing.
    - ``linear``: a column per code, and filled numbers by mean and deviation, indicators too.
    - ``words``: TF-IDF of a text (:class:`.words.Words`); what stands beside it follows as in ``linear``.
    - ``counts``: the same, but how often each word is there: whole numbers, which no rounding moves over a threshold.

    ``holes`` are the positions of numbers that may be missing, ``fill`` [N] what fills in, ``mean`` and ``scale`` [N+H]
    the scaling of numbers and indicators.
    """

    layout: Layout
    sizes: tuple[int, ...]
    width: int
    holes: tuple[int, ...]
    fill: Matrix
    mean: Matrix
    scale: Matrix
    words: Words | None = None

    @property
    def by_value(self) -> bool:
        """Whether a category has a column for each of its codes."""
        return self.layout in {"linear", *OF_TEXTS}

    @property
    def columns(self) -> int:
        """How many columns the matrix has."""
        categories = sum(self.sizes) if self.by_value else len(self.sizes)
        numbers = self.width
        if self.layout != "codes":
            numbers += len(self.holes)
        return (self.words.columns if self.words else 0) + categories + numbers

    @property
    def categories(self) -> list[int]:
        """The positions of columns that hold a category's code."""
        return [] if self.by_value else list(range(len(self.sizes)))


def learn(layout: Layout, fields: Fields, tensors: Tensors, reading: WordsParams) -> Design:
    """The design of training rows, given as the tensors of :func:`pipelines.encoding.encoder`.

    ``reading`` says how a text is read. Raises DataError if it has no words.
    """
    words = None
    if layout in OF_TEXTS:
        words = learn_words(tensors["input_ids"], reading, weighed=layout == "words")
    sizes = tuple(field.size for field in fields.categorical) if fields.has_table else ()
    width = fields.width if fields.has_table else 0
    holes = tuple(position for position, field in enumerate(fields.numeric) if field.missing)
    numbers = tensors.get("numeric", np.empty((0, 0), np.float32)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(numbers)
        count = np.maximum(known.sum(0), 1)
        fill = np.where(known, numbers, 0.0).sum(0) / count
    filled = np.where(known, numbers, fill)
    behind = np.concatenate([filled, ~known[:, list(holes)]], axis=1)
    mean = behind.mean(0) if len(behind) else np.zeros(behind.shape[1])
    deviation = behind.std(0) if len(behind) else np.ones(behind.shape[1])
    told = deviation > 1e-7 * np.abs(mean)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=told)
    return Design(
        layout, sizes, width, holes, fill.astype(np.float32), mean.astype(np.float32), scale.astype(np.float32), words
    )


def matrix(design: Design, tensors: Tensors) -> Any:
    """The matrix ``[B, columns]`` of rows, float32: dense, or sparse where there are words."""
    parts = []
    if design.sizes or design.width:
        parts = _table(design, tensors)
    if design.words is None:
        return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)
    from scipy import sparse

    beside = [sparse.csr_matrix(part) for part in parts]
    return sparse.hstack([design.words.matrix(tensors["input_ids"]), *beside]).tocsr().astype(np.float32)


def _table(design: Design, tensors: Tensors) -> list[Matrix]:
    codes, numbers = tensors["categorical"], tensors["numeric"]
    if design.layout == "codes":
        return [codes.astype(np.float32), numbers]
    missing = np.isnan(numbers)
    behind = np.concatenate([np.where(missing, design.fill, numbers), missing[:, list(design.holes)]], axis=1)
    if design.layout == "filled":
        return [codes.astype(np.float32), behind.astype(np.float32)]
    scaled = ((behind.astype(np.float32) - design.mean) * design.scale).clip(-SCALED_MOST, SCALED_MOST)
    return [*(one_hot(codes[:, column], size) for column, size in enumerate(design.sizes)), scaled]


def one_hot(codes: NDArray[np.int64], size: int) -> Matrix:
    """A column per code ``[B, size]``: 1 where a row has it."""
    found: Matrix = (codes[:, None] == np.arange(size)).astype(np.float32)
    return found
