"""The probe: a cheap model of a case's own inputs, fitted in seconds on one core and never served.

Two families of scikit-learn's; a case may have its own (``probe.py`` in its folder, with :data:`Fit`'s signature).
Memory and time are bounded by the rows, which the caller thins, and by what is declared here. Equal rows give equal
probabilities: one thread, a fixed seed, nothing that hangs on the order of a dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.cases import part
from pipelines.encoding import unfolded
from pipelines.errors import DataError
from pipelines.fields import Categorical, Column, Field, Fields, Flag, Numeric, Vector

Floats = NDArray[np.float64]
Scores = Callable[[pl.DataFrame], Floats]
"""Answers for rows with the case's fields.

Probabilities ``[n]`` of the positive class or ``[n, K]`` in the classes' order, or predicted numbers ``[n]``.
"""
Fit = Callable[[pl.DataFrame, Fields], Scores]
"""From labelled rows, oldest first, to a probe."""

FLOOR = 1e-3
"""What every class has beside its probability: one that the probe never saw is improbable, not impossible."""
SEED = 0
MAX_CHARS = 4_000
"""Of a text so many characters are read."""
HASHES = 1 << 16
"""Columns that words and pairs of words are hashed into: no vocabulary is held, however many there are."""
MAX_VALUES = 250
"""Values of a category that trees tell apart, the commonest; others count as missing (histograms have 255 bins)."""
TREES = 80
MANY_CLASSES = 127
"""Every tree is one for each class: from 4,000 rows of 200 classes trees learn in 33 s, logistic regression in 4."""
LEAVES = 15
CENTRAL = (0.01, 0.99)
"""Numbers beyond these quantiles count as these, so that one outlier spoils no scale."""


def family_of(fields: Fields, asked: Literal["auto", "logistic", "boosting", "own"]) -> str:
    """The name of the family that is fitted.

    ``auto`` is boosted trees; of a text, and of more than ``MANY_CLASSES`` classes, it is logistic regression.
    """
    if asked != "auto":
        return asked
    return "boosting" if fields.text is None and len(fields.classes) <= MANY_CLASSES else "logistic"


def fit(rows: pl.DataFrame, fields: Fields, family: str) -> Scores:
    """A probe of a ``family``, from ``rows`` with the declared fields and the label (canonical).

    ``own`` is the case's. For the others missing values and undeclared categories are values like others, here and when
    rows are scored. Derived features are computed, and the case's own probe is given them, too. Raises DataError if the
    rows have fewer than two classes, or if trees are asked for a text.
    """
    scores = _fit(_laid_out(rows, fields), fields, family)
    return lambda asked: scores(_laid_out(asked, fields))


def _laid_out(rows: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """The rows with everything that a probe reads in a column of its own (:func:`_columns`)."""
    return unfolded(rows, fields).with_columns(
        pl.col(vector.name).list.get(place, null_on_oob=True).alias(number.name)
        for vector in fields.vectors
        for place, number in enumerate(_numbers_of(vector))
    )


def _columns(fields: Fields) -> list[Column]:
    """The columns of a case, and each number of its vectors."""
    return [*fields.columns, *(number for vector in fields.vectors for number in _numbers_of(vector))]


def _numbers_of(vector: Vector) -> list[Numeric]:
    return [Numeric(f"{vector.name}.{place}") for place in range(vector.size)]


def _fit(rows: pl.DataFrame, fields: Fields, family: str) -> Scores:
    """:func:`fit` to rows that are laid out, as those that it is asked."""
    if family == "own":
        return part(fields.case, "probe").fit(rows, fields)  # type: ignore[no-any-return] # checked when it answers
    if fields.number is not None:
        return _fit_number(rows, fields, family)
    label = rows[fields.label].cast(pl.Int64).to_numpy()
    if len(np.unique(label)) < 2:
        raise DataError(f"{fields.case}: the probe's {len(label)} rows have one class: send labels of the others too")
    if fields.text is not None:
        if family != "logistic":
            raise DataError(f"{fields.case}: headroom.family {family} does not read texts: choose auto or logistic")
        return _fit_words(rows, label, fields)
    return {"logistic": _fit_logistic, "boosting": _fit_trees}[family](rows, label, fields)


def answers(learned: pl.DataFrame, asked: pl.DataFrame, fields: Fields, family: str) -> Floats:
    """What a probe that learned from some rows answers for others: :func:`fit` and :func:`checked`."""
    return checked(fit(learned, fields, family)(asked), asked.height, fields)


def checked(found: Any, rows: int, fields: Fields) -> Floats:
    """What a probe answered for ``rows`` rows, as float64. Raises DataError if it is not their probabilities.

    Predicted numbers are brought within their bounds, as those of a champion are.
    """
    wanted = (rows, len(fields.classes)) if fields.classes else (rows,)
    scores = np.asarray(found, np.float64)
    if scores.shape != wanted:
        raise DataError(f"{fields.case}: the probe answered {scores.shape} for {rows} rows: it has to be {wanted}")
    if fields.number is not None:
        if not np.isfinite(scores).all():
            raise DataError(f"{fields.case}: the probe answered what is no finite number: give one for every row")
        return scores.clip(*fields.number.bounds)
    if not np.isfinite(scores).all() or scores.min() < 0 or scores.max() > 1:
        raise DataError(f"{fields.case}: the probe answered what is no probability: give numbers from 0 to 1")
    return scores


def _probabilities(model: Any, design: Any, fields: Fields) -> Floats:
    """Of all classes in their order, floored; of a binary label the positive one's."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        known = model.predict_proba(design)
    every = np.full((known.shape[0], len(fields.classes) or 2), FLOOR)
    every[:, model.classes_] += known
    every /= every.sum(1, keepdims=True)
    return every if fields.classes else every[:, 1]


def _fitted(model: Any, design: Any, label: NDArray[np.int64]) -> Any:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return model.fit(design, label)


# --- numbers ------------------------------------------------------------------------------------


def _fit_number(rows: pl.DataFrame, fields: Fields, family: str) -> Scores:
    """Boosted trees of a table, or ridge regression: what the families are for a number."""
    from sklearn.linear_model import Ridge

    label = rows[fields.label].cast(pl.Float64).to_numpy()
    if fields.text is not None:
        if family != "logistic":
            raise DataError(f"{fields.case}: headroom.family {family} does not read texts: choose auto or logistic")
        design, read_words = _by_word(rows, fields)
        of_words = _fitted(Ridge(), design, label)
        return lambda asked: _predicted(of_words, read_words(asked))
    if family == "boosting":
        read = _told(rows, fields)
        return partial(_number_of_trees, _fitted(_trees(read, number=True), _dense(rows, read), label), read)
    scales = _scales(rows, fields)
    return partial(_number_of_columns, _fitted(Ridge(), _by_column(rows, fields, scales), label), scales, fields)


def _number_of_trees(model: Any, read: Sequence[Field], rows: pl.DataFrame) -> Floats:
    return _predicted(model, _dense(rows, read))


def _number_of_columns(
    model: Any, scales: Mapping[str, tuple[float, float, float, float]], fields: Fields, rows: pl.DataFrame
) -> Floats:
    return _predicted(model, _by_column(rows, fields, scales))


def _predicted(model: Any, design: Any) -> Floats:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        numbers: Floats = model.predict(design)
    return numbers


# --- texts --------------------------------------------------------------------------------------


def _fit_words(rows: pl.DataFrame, label: NDArray[np.int64], fields: Fields) -> Scores:
    """Logistic regression on TF-IDF of words and pairs of words and what is beside, one class against the others.

    Sources: Spaerck Jones, Journal of Documentation 28(1), 1972; Weinberger et al., Feature hashing, ICML 2009.
    """
    from sklearn.linear_model import SGDClassifier

    design, read = _by_word(rows, fields)
    model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=25, tol=1e-3, random_state=SEED)
    fitted = _fitted(model, design, label)
    return lambda asked: _probabilities(fitted, read(asked), fields)


def _by_word(rows: pl.DataFrame, fields: Fields) -> tuple[Any, Callable[[pl.DataFrame], Any]]:
    """The sparse design ``[n, d]`` of rows with a text, and what makes it of others.

    Words and pairs of words are hashed and weighed; a row's columns of a table stand behind them, all together about
    as long as its text: gradient steps that suit the one suit the other.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    hashed = HashingVectorizer(ngram_range=(1, 2), n_features=HASHES, alternate_sign=False, norm=None)
    weigh = TfidfTransformer(sublinear_tf=True)
    assert fields.text is not None
    text = fields.text.name
    scales = _scales(rows, fields)
    length = math.sqrt(max(1, len(_columns(fields)) - 1))

    def beside(words: Any, asked: pl.DataFrame) -> Any:
        if not fields.has_table:
            return words
        return sparse.hstack([words, _by_column(asked, fields, scales) / length]).tocsr()

    def read(asked: pl.DataFrame) -> Any:
        return beside(weigh.transform(hashed.transform(_read(asked[text]))), asked)

    return beside(weigh.fit_transform(hashed.transform(_read(rows[text]))), rows), read


def _read(texts: pl.Series) -> list[str]:
    return texts.cast(pl.String).fill_null("").str.slice(0, MAX_CHARS).to_list()


# --- tables -------------------------------------------------------------------------------------


def _fit_logistic(rows: pl.DataFrame, label: NDArray[np.int64], fields: Fields) -> Scores:
    """Logistic regression on categories by value and scaled numbers, with a column for what is missing."""
    from sklearn.linear_model import LogisticRegression

    scales = _scales(rows, fields)
    model = LogisticRegression(C=1.0, max_iter=300)
    return partial(_score_logistic, _fitted(model, _by_column(rows, fields, scales), label), scales, fields)


def _score_logistic(
    model: Any, scales: Mapping[str, tuple[float, float, float, float]], fields: Fields, rows: pl.DataFrame
) -> Floats:
    return _probabilities(model, _by_column(rows, fields, scales), fields)


def _by_column(rows: pl.DataFrame, fields: Fields, scales: Mapping[str, tuple[float, float, float, float]]) -> Any:
    """The sparse design ``[n, d]``: of every category its values and missing, of every number itself and missing."""
    from scipy import sparse

    parts: list[Any] = []
    for field in _columns(fields):
        if isinstance(field, Categorical | Flag):
            codes = _codes(rows[field.name], field)
            size = len(field.values) + field.other
            own = np.where(np.isnan(codes), size, codes).astype(np.int64)
            parts.append(
                sparse.csr_matrix((np.ones(own.size), own, np.arange(own.size + 1)), shape=(own.size, size + 1))
            )
        elif isinstance(field, Numeric):
            low, high, middle, width = scales[field.name]
            values = _numbers(rows[field.name])
            missing = np.isnan(values)
            scaled = np.where(missing, 0.0, (values.clip(low, high) - middle) / width)
            parts.append(sparse.csr_matrix(np.column_stack([scaled, missing])))
    return sparse.hstack(parts).tocsr()


def _scales(rows: pl.DataFrame, fields: Fields) -> dict[str, tuple[float, float, float, float]]:
    numbers = [column for column in _columns(fields) if isinstance(column, Numeric)]
    return {number.name: _scale(_numbers(rows[number.name])) for number in numbers}


def _scale(values: Floats) -> tuple[float, float, float, float]:
    """Lowest and highest value that counts, mean and deviation of those between."""
    known = values[~np.isnan(values)]
    if not known.size:
        return 0.0, 0.0, 0.0, 1.0
    low, high = np.quantile(known, CENTRAL)
    between = known.clip(low, high)
    return float(low), float(high), float(between.mean()), float(between.std()) or 1.0


def _fit_trees(rows: pl.DataFrame, label: NDArray[np.int64], fields: Fields) -> Scores:
    """Boosted trees on histograms; what is missing goes to a side of its own at every split.

    Source: Ke et al., LightGBM, NeurIPS 2017.
    """
    read = _told(rows, fields)
    return partial(_score_trees, _fitted(_trees(read), _dense(rows, read), label), read, fields)


def _trees(read: Sequence[Field], *, number: bool = False) -> Any:
    """The boosted trees before they are fitted: of squared error for a ``number``, else of log-loss."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if number else HistGradientBoostingClassifier
    return kind(
        max_iter=TREES,
        max_leaf_nodes=LEAVES,
        learning_rate=0.1,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        categorical_features=[isinstance(field, Categorical | Flag) for field in read],
        random_state=SEED,
    )


def _score_trees(model: Any, read: Sequence[Field], fields: Fields, rows: pl.DataFrame) -> Floats:
    return _probabilities(model, _dense(rows, read), fields)


def _told(rows: pl.DataFrame, fields: Fields) -> list[Field]:
    """The fields with two values in the rows, categories with their commonest ones: a single value splits nothing."""
    categories = [_commonest(rows[field.name], field) for field in fields.categorical]
    cut: list[Field] = [*categories, *(column for column in _columns(fields) if isinstance(column, Numeric))]
    told = [field for field in cut if _varies(_column(rows, field))]
    if not told:
        raise DataError(f"{fields.case}: no field has two values in the probe's {rows.height} rows: nothing to learn")
    return told


def _varies(values: Floats) -> bool:
    return np.unique(values).size > 1  # whether one is missing may be all there is to learn


def _dense(rows: pl.DataFrame, read: Sequence[Field]) -> Floats:
    """The design ``[n, fields]``: positions of categories and plain numbers, NaN for what is missing."""
    return np.column_stack([_column(rows, field) for field in read])


def _column(rows: pl.DataFrame, field: Field) -> Floats:
    if isinstance(field, Categorical | Flag):
        return _codes(rows[field.name], field)
    return _numbers(rows[field.name])


def _commonest(values: pl.Series, field: Categorical | Flag) -> Categorical | Flag:
    """The category with its ``MAX_VALUES`` commonest values, in declared order."""
    if isinstance(field, Flag) or len(field.values) <= MAX_VALUES:
        return field
    codes = _codes(values, field)
    counts = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(field.values))[: len(field.values)]
    kept = sorted(np.argsort(-counts, kind="stable")[:MAX_VALUES].tolist())
    return replace(field, values=tuple(field.values[position] for position in kept))


def _codes(values: pl.Series, field: Categorical | Flag) -> Floats:
    """Positions in the vocabulary, NaN for what is missing; other values lie behind it, if the field declares some.

    Otherwise they count as missing.
    """
    given = values.cast(pl.String)
    codes = given.cast(pl.Enum(list(field.values)), strict=False).to_physical().cast(pl.Float64)
    if field.other:
        codes = pl.select(pl.when(given.is_not_null()).then(codes.fill_null(len(field.values)))).to_series()
    return codes.fill_null(float("nan")).to_numpy()


def _numbers(values: pl.Series) -> Floats:
    """Numbers, NaN for what is missing or no finite number."""
    numbers = values.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(numbers), numbers, np.nan)
