"""The domain classifier: can a logistic regression tell current rows from reference rows, and by what.

A held-out AUC of one half says no. It explains and never decides: with enough rows any change is found.
Source: Rabanser, Guennemann and Lipton, Failing Loudly, NeurIPS 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import Interval
from pipelines.drift.why.embeddings import words_of
from pipelines.fields import Categorical, Fields
from pipelines.measures import roc_auc_interval

Floats = NDArray[np.float64]
Matrix = Any
"""A sparse matrix ``[n, d]`` of scipy's."""

STRENGTH = 1.0
"""Inverse of the ridge penalty, as scikit-learn's C."""
BINS = 10
MAX_WORDS = 5_000
MIN_TEXTS = 5
CONFIDENCE = 0.95
UNKNOWN = Interval(value=0.5, low=0.0, high=1.0)
"""The AUC where nothing could be measured."""


@dataclass(frozen=True)
class Separation:
    """How well two samples are told apart.

    ``auc`` on held-out rows, and the ``coefficients`` ``[d]`` (positive: more in the current).
    """

    auc: Interval
    coefficients: Floats
    held: Matrix
    """The held-out rows of the design, to weigh its columns by."""


def logistic(rows: Matrix, label: NDArray[np.int64], strength: float = STRENGTH) -> tuple[Floats, float]:
    """Coefficients ``[d]`` and intercept of a logistic regression.

    They minimise ``|w|^2 / 2 + strength * sum_i log(1 + exp(-s_i (x_i w + b)))``, ``s = +-1``, by L-BFGS; the same
    optimum as scikit-learn's LogisticRegression. Source: Hastie, Tibshirani and Friedman, The Elements of Statistical
    Learning, 2009, section 4.4.

    >>> import scipy.sparse as sp
    >>> w, b = logistic(sp.csr_matrix(np.array([[1.0], [1.0], [0.0], [0.0]])), np.array([1, 1, 0, 0]))
    >>> w[0] > 0 > b
    True
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    sign = np.where(label > 0, 1.0, -1.0)

    def loss(at: Floats) -> tuple[float, Floats]:
        margin = sign * (rows @ at[:-1] + at[-1])
        slope = -strength * sign * expit(-margin)
        value = 0.5 * at[:-1] @ at[:-1] + strength * np.logaddexp(0.0, -margin).sum()
        return float(value), np.append(rows.T @ slope + at[:-1], slope.sum())

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x[:-1], float(found.x[-1])


def separate(before: Matrix, now: Matrix, seed: int = 0) -> Separation:
    """Fit on a random half of both samples (rows of one design), measure on the other half."""
    from scipy import sparse

    rows = sparse.vstack([before, now]).tocsr()
    label = np.repeat([0, 1], [before.shape[0], now.shape[0]])
    rng = np.random.default_rng(seed)
    fitted = np.concatenate(
        [rng.permutation(np.flatnonzero(label == kind))[: int((label == kind).sum()) // 2] for kind in (0, 1)]
    )
    held = np.setdiff1d(np.arange(label.size), fitted)
    # Of unequal samples the intercept takes care: the AUC does not see it.
    coefficients, intercept = logistic(rows[fitted], label[fitted])
    auc = roc_auc_interval(label[held], rows[held] @ coefficients + intercept, CONFIDENCE)
    return Separation(auc or UNKNOWN, coefficients, rows[held])


# --- tables -------------------------------------------------------------------------------------


def culprits(
    before: pl.DataFrame, now: pl.DataFrame, fields: Fields, ignore: Sequence[str] = ()
) -> tuple[Interval, dict[str, float]]:
    """The held-out AUC on declared fields, and each field's share of what tells the samples apart, largest first.

    A number is cut at the reference's deciles and a category taken by value, with a column for missing, so that any
    change of a field counts, and one outlier as one row. A field's share is the variance of its part of the score.
    """
    from scipy import sparse

    chosen = [field for field in fields.fields if field.name not in ignore]
    parts = [
        _by_value(before[field.name], now[field.name], field.values)
        if isinstance(field, Categorical)
        else _by_decile(before[field.name], now[field.name])
        for field in chosen
    ]
    found = separate(*(sparse.hstack([part[side] for part in parts]).tocsr() for side in (0, 1)))
    weights = {}
    start = 0
    for field, part in zip(chosen, parts, strict=True):
        columns = slice(start, start + part[0].shape[1])
        weights[field.name] = float(np.var(found.held[:, columns] @ found.coefficients[columns]))
        start = columns.stop
    total = sum(weights.values()) or 1.0
    return found.auc, {
        name: weight / total for name, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    }


def _by_decile(before: pl.Series, now: pl.Series) -> tuple[Matrix, Matrix]:
    known, new = (series.cast(pl.Float64, strict=False).fill_nan(None) for series in (before, now))
    both = pl.concat([known, new])
    edges = (
        np.unique(np.quantile(known.drop_nulls().to_numpy(), np.arange(1, BINS) / BINS))
        if known.null_count() < known.len()
        else np.zeros(0)
    )
    codes = np.where(
        both.is_null().to_numpy(), edges.size + 1, np.searchsorted(edges, both.fill_null(0.0).to_numpy(), side="left")
    )
    return _one_hot(codes, edges.size + 2, before.len())


def _by_value(before: pl.Series, now: pl.Series, values: tuple[str, ...]) -> tuple[Matrix, Matrix]:
    both = (
        pl.concat([before.cast(pl.String), now.cast(pl.String)]).cast(pl.Enum(list(values)), strict=False).to_physical()
    )
    return _one_hot(both.fill_null(len(values)).to_numpy().astype(np.int64), len(values) + 1, before.len())


def _one_hot(codes: NDArray[np.int64], size: int, cut: int) -> tuple[Matrix, Matrix]:
    from scipy import sparse

    rows = sparse.csr_matrix((np.ones(codes.size), codes, np.arange(codes.size + 1)), shape=(codes.size, size))
    return rows[:cut], rows[cut:]


# --- texts --------------------------------------------------------------------------------------


def telling_words(before: Sequence[str], now: Sequence[str], count: int = 10) -> tuple[Interval, dict[str, float]]:
    """The held-out AUC on TF-IDF words, and the ``count`` words with the largest coefficients.

    Coefficients are positive where the current has more. ``tf ln(N / df)`` scaled to length 1 of the words that at
    least ``MIN_TEXTS`` texts have, at most ``MAX_WORDS`` of them. Source: Spaerck Jones, Journal of Documentation
    28(1), 1972.
    """
    from scipy import sparse

    bags = [Counter(words_of(text)) for text in (*before, *now)]
    seen = Counter(word for bag in bags for word in bag)
    vocabulary = sorted(
        (word for word, texts in seen.items() if texts >= MIN_TEXTS), key=lambda word: (-seen[word], word)
    )[:MAX_WORDS]
    if not vocabulary:
        return UNKNOWN, {}
    place = {word: number for number, word in enumerate(vocabulary)}
    found = [(row, place[word], times) for row, bag in enumerate(bags) for word, times in bag.items() if word in place]
    rows, columns, times = (np.array(part) for part in zip(*found, strict=True))
    weights = times * np.log(len(bags) / np.array([seen[word] for word in vocabulary]))[columns]
    table = sparse.csr_matrix((weights, (rows, columns)), shape=(len(bags), len(vocabulary)))
    lengths = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    table = sparse.diags(1 / np.where(lengths > 0, lengths, 1.0)) @ table
    split = separate(table[: len(before)], table[len(before) :])
    strongest = sorted(range(len(vocabulary)), key=lambda number: (-abs(split.coefficients[number]), number))[:count]
    return split.auc, {vocabulary[number]: float(split.coefficients[number]) for number in strongest}
