"""Statistics of vectors: did the embeddings of two samples move, and how far.

Notation: reference ``x`` ``[m, d]``, current ``y`` ``[n, d]``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.drift import stats
from pipelines.drift.profile.projections import HASHED
from pipelines.text import normalise

Floats = NDArray[np.float64]

KL_THRESHOLD = 0.15
"""Nats on the histogram of projections from which on embeddings count as moved."""
PROJECTIONS = 16


def squared_distances(x: Floats, y: Floats) -> Floats:
    """``[m, n]`` squared Euclidean distances.

    >>> squared_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[25.0, 0.0]]
    """
    found: Floats = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * (x @ y.T)
    return np.maximum(found, 0.0)


def mmd(x: Floats, y: Floats, *, permutations: int = 200, seed: int = 0) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy and its permutation p-value for H0 "one distribution".

    ``MMD2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)`` with the Gaussian
    kernel ``k(a, b) = exp(-|a - b|^2 / (2 s^2))``, ``s`` the median distance of the pooled sample; 0 to 2, may be
    just below 0. ``p = (1 + #{permuted >= found}) / (1 + permutations)``. Rows count as exchangeable, so repeated
    sessions make it too small. Memory ``8 (m + n)^2`` bytes. Source: Gretton et al., A Kernel Two-Sample Test,
    JMLR 13, 2012, equation 3 and section 8 (median heuristic).

    >>> rng = np.random.default_rng(0)
    >>> value, p = mmd(rng.normal(size=(100, 8)), rng.normal(0.5, 1.0, size=(100, 8)))
    >>> value > 0.05, p < 0.01
    (True, True)
    """
    m = len(x)
    n = len(y)
    if min(m, n) < 2:
        return 0.0, 1.0
    pooled = np.concatenate([x, y])
    squared = squared_distances(pooled, pooled)
    scale = float(np.median(squared[np.triu_indices(m + n, 1)])) or 1.0
    kernel = np.exp(squared / (-2 * scale))
    np.fill_diagonal(kernel, 0.0)
    rng = np.random.default_rng(seed)
    # Column 0 is the split as it is, the others are permutations of it: one product serves all.
    chosen = np.zeros((m + n, permutations + 1))
    chosen[:m, 0] = 1.0
    for column in range(1, permutations + 1):
        chosen[rng.permutation(m + n)[:m], column] = 1.0
    within = (chosen * (kernel @ chosen)).sum(axis=0)
    touching = kernel.sum(axis=1) @ chosen
    others = kernel.sum() - 2 * touching + within
    found = within / (m * (m - 1)) + others / (n * (n - 1)) - 2 * (touching - within) / (m * n)
    # A permutation that is the split itself must count as equal, whatever the order of the sums.
    return float(found[0]), float((1 + (found[1:] >= found[0] - 1e-12).sum()) / (1 + permutations))


def projection_kl(x: Floats, y: Floats, *, projections: int = PROJECTIONS, bins: int = 10, seed: int = 0) -> float:
    """Mean Kullback-Leibler divergence in nats of the current sample from the reference along fixed random directions.

    ``KL = sum_b q_b ln(q_b / p_b)`` on the reference's ``bins``-quantiles, smoothed as PSI is, averaged over
    ``projections`` directions that are the same for every call with one dimension and seed. About ``(bins - 1) / 2 (1/m
    + 1/n)`` without drift; above ``KL_THRESHOLD`` the embeddings moved. Source: Kullback and Leibler, Annals of
    Mathematical Statistics 22(1), 1951; directions as in Dasgupta and Gupta, Random Structures and Algorithms 22(1),
    2003.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 8))
    >>> same = rng.normal(size=(500, 8))
    >>> other = rng.normal(1.0, 1.0, size=(500, 8))
    >>> projection_kl(x, same) < 0.05 < KL_THRESHOLD < projection_kl(x, other)
    True
    """
    if not len(x) or not len(y):
        return 0.0
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    found = []
    for before, now in zip((x @ directions).T, (y @ directions).T, strict=True):
        edges = np.unique(np.quantile(before, np.arange(1, bins) / bins))
        m, n = (
            np.bincount(np.searchsorted(edges, values, side="left"), minlength=edges.size + 1)
            for values in (before, now)
        )
        p, q = ((counts + stats.SMOOTHING) / (counts.sum() + stats.SMOOTHING * counts.size) for counts in (m, n))
        found.append(float((q * np.log(q / p)).sum()))
    return float(np.mean(found))


def centroid_cosine(x: Floats, y: Floats) -> float:
    """Cosine between the means of the two samples: 1 the same direction, 0 unrelated; 1 if a mean is zero.

    >>> centroid_cosine(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0], [1.0, -1.0]]))
    1.0
    """
    a = x.mean(axis=0)
    b = y.mean(axis=0)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length == 0:
        return 1.0
    return float(a @ b / length)


def words_of(text: str) -> list[str]:
    """Lower-case words, at least two characters, punctuation left out.

    >>> words_of("A heap overflow in libpng-1.2 (CVE)")
    ['heap', 'overflow', 'in', 'libpng', 'cve']
    """
    split = "".join(char if char.isalnum() else " " for char in normalise(text).lower()).split()
    return [word for word in split if len(word) > 1]


def hashed(texts: Sequence[str], size: int = HASHED) -> Floats:
    """Cheap vectors of texts, ``[n, size]``, each of length 1 (0 without words): signed feature hashing of their words.

    A fixed sparse random projection of the bag of words: no model, no vocabulary, the same for ever. Source: Weinberger
    et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009.

    >>> alone = hashed(["heap overflow"]).sum().round(6)
    >>> hashed(["heap overflow", "overflow heap", ""]).sum(axis=1).round(6).tolist()[0::2] == [alone, 0.0]
    True
    """
    found = np.zeros((len(texts), size))
    for row, text in zip(found, texts, strict=True):
        for word in words_of(text):
            code = zlib.crc32(word.encode())
            row[code % size] += 1.0 if code >> 31 else -1.0
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Floats = found / np.where(lengths > 0, lengths, 1.0)
    return unit
