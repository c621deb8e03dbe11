"""The domain classifier: can a logistic regression tell current rows from reference rows, and by what.

A held-out AUC of one half says no. It explains and never decides: with enough rows any change is found.
Source: Rabanser, Guennemann and Lipton, Failing Loudly, NeurIPS 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import Interval
from pipelines.drift.why.embeddings import words_of
from pipelines.fields import Categorical, Column, Fields, Flag, Text
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


def separate(before: Matrix, now: Matrix, seed: int = 0) -> Separation:
    """Fit on a random half of both samples (rows of one design), measure on the other half."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    rows = sparse.vstack([before, now]).tocsr()
    label = np.repeat([0, 1], [before.shape[0], now.shape[0]])
    rng = np.random.default_rng(seed)
    fitted = np.concatenate(
        [rng.permutation(np.flatnonzero(label == kind))[: int((label == kind).sum()) // 2] for kind in (0, 1)]
    )
    held = np.setdiff1d(np.arange(label.size), fitted)
    if len(np.unique(label[fitted])) < 2:  # a sample of one row has no half
        return Separation(UNKNOWN, np.zeros(rows.shape[1]), rows[held])
    # Of unequal samples the intercept takes care: the AUC does not see it.
    model = LogisticRegression(C=STRENGTH, max_iter=500).fit(rows[fitted], label[fitted])
    auc = roc_auc_interval(label[held], model.decision_function(rows[held]), CONFIDENCE)
    return Separation(auc or UNKNOWN, model.coef_[0], rows[held])


# --- tables -------------------------------------------------------------------------------------


def culprits(
    before: pl.DataFrame, now: pl.DataFrame, fields: Fields, ignore: Collection[str] = ()
) -> tuple[Interval, dict[str, float]]:
    """The held-out AUC on declared fields, and each field's share of what tells the samples apart, largest first.

    Moments and vectors have their columns beside them (:func:`pipelines.encoding.unfolded`). A number is cut at the
    reference's deciles and a category taken by value, with a column for missing and one for undeclared values, so that
    any change of a field counts, and one outlier as one row. A text is taken by its words (:func:`telling_words`). A
    field's share is the variance of its part of the score.
    """
    from scipy import sparse

    chosen = [field for field in fields.columns if field.name not in ignore]
    parts = [_part(field, before[field.name], now[field.name]) for field in chosen]
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


def _part(field: Column, before: pl.Series, now: pl.Series) -> tuple[Matrix, Matrix]:
    """A field's part of the design, of both samples."""
    if isinstance(field, Categorical | Flag):
        return _by_value(before, now, field.values)
    if isinstance(field, Text):
        table, _ = _by_word(texts_of(before), texts_of(now))
        return table[: before.len()], table[before.len() :]
    return _by_decile(before, now)


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
    both = pl.concat([before.cast(pl.String), now.cast(pl.String)])
    known = both.cast(pl.Enum(list(values)), strict=False).to_physical().fill_null(len(values))
    codes = np.where(both.is_null().to_numpy(), len(values) + 1, known.to_numpy().astype(np.int64))
    return _one_hot(codes, len(values) + 2, before.len())


def _one_hot(codes: NDArray[np.int64], size: int, cut: int) -> tuple[Matrix, Matrix]:
    from sklearn.preprocessing import OneHotEncoder

    rows = OneHotEncoder(categories=[np.arange(size)]).fit_transform(codes[:, None])
    return rows[:cut], rows[cut:]


# --- texts --------------------------------------------------------------------------------------


def telling_words(before: Sequence[str], now: Sequence[str], count: int = 10) -> tuple[Interval, dict[str, float]]:
    """The held-out AUC on TF-IDF words, and the ``count`` words with the largest coefficients.

    Coefficients are positive where the current has more. Words are those that at least ``MIN_TEXTS`` texts have,
    at most ``MAX_WORDS`` of them, the most frequent ones. Source: Spaerck Jones, Journal of Documentation 28(1), 1972.
    """
    table, vocabulary = _by_word(before, now)
    if not vocabulary:
        return UNKNOWN, {}
    split = separate(table[: len(before)], table[len(before) :])
    strongest = sorted(range(len(vocabulary)), key=lambda number: (-abs(split.coefficients[number]), number))[:count]
    return split.auc, {vocabulary[number]: float(split.coefficients[number]) for number in strongest}


def _by_word(before: Sequence[str], now: Sequence[str]) -> tuple[Matrix, list[str]]:
    """The TF-IDF of both samples' words, ``[n, d]``, and the ``d`` words; there may be none."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    bags = [words_of(text) for text in (*before, *now)]
    seen = Counter(word for bag in bags for word in set(bag))
    if max(seen.values(), default=0) < MIN_TEXTS:
        return sparse.csr_matrix((len(bags), 0)), []
    vectorizer = TfidfVectorizer(analyzer=lambda bag: bag, min_df=MIN_TEXTS, max_features=MAX_WORDS)
    return vectorizer.fit_transform(bags), vectorizer.get_feature_names_out().tolist()


def texts_of(values: pl.Series) -> list[str]:
    """The texts of a column; one that is missing has no words."""
    return values.cast(pl.String).fill_null("").to_list()
