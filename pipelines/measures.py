"""How good answers are against labels, and how sure that is: the one home of losses, AUC, F1 and their intervals.

Labels are ``[n]``: 0 and 1, with classes their positions, or a number. Scores are ``[n]`` (of the positive class, or
the predicted number) or ``[n, K]`` (one per class). scikit-learn measures what is small; where it is slow its ratio
stands beside our own lines, measured on one core with 100,000 and with 1,000,000 rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts import Interval, Mean
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Label = NDArray[Any]

CLIP = 1e-6
"""Probabilities are taken to be in ``[CLIP, 1 - CLIP]``, so a sure and wrong row costs 13.8 nats and not infinity.

The scores are float32 sigmoids: the largest one below 1 is 1 - 6e-8, and 1 - 1e-7 is no float32, so a smaller clip
would depend on the type that it is taken in, and treat 0 and 1 unequally. It is the one that the ledger's verdicts were
made with.
"""
MIN_DAYS = 5
"""From so many days on, rows of one day are one cluster: fewer say nothing about how days differ."""
DRAWS = 200
"""Resampled confusion tables behind an interval of macro-F1."""


# --- row by row ---------------------------------------------------------------------------------


def clipped(score: NDArray[Any]) -> Floats:
    """The scores as float64, within ``[CLIP, 1 - CLIP]``."""
    return np.clip(np.asarray(score, np.float64), CLIP, 1 - CLIP)


def row_log_loss(label: Label, score: NDArray[Any]) -> Floats:
    """The loss ``-log p(label)`` of each row in nats, ``[n]``, of :func:`clipped` scores.

    By hand: scikit-learn's log_loss gives means only, clips at the type's own epsilon, and takes 4 to 9 times as long.

    >>> row_log_loss(np.array([1, 0]), np.array([0.5, 0.0])).round(6).tolist()
    [0.693147, 1e-06]
    >>> row_log_loss(np.array([2]), np.array([[0.2, 0.3, 0.5]])).round(3).tolist()
    [0.693]
    """
    p = clipped(score)
    if p.ndim == 2:
        own: Floats = -np.log(p[np.arange(len(p)), np.asarray(label, np.intp)])
        return own
    losses: Floats = -np.where(np.asarray(label) > 0, np.log(p), np.log1p(-p))
    return losses


def row_errors(label: Label, score: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row's likeliest class (binary: score >= 0.5) is not its label.

    >>> row_errors(np.array([2, 0]), np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])).tolist()
    [False, True]
    """
    wrong: NDArray[np.bool_] = decided(score) != label
    return wrong


def decided(score: NDArray[Any]) -> Ints:
    """The likeliest class of each row, ``[n]``; binary: whether the score is at least 0.5.

    >>> decided(np.array([0.5, 0.4])).tolist(), decided(np.array([[0.2, 0.3, 0.5]])).tolist()
    ([1, 0], [2])
    """
    if score.ndim == 2:
        return np.asarray(score.argmax(1), np.int64)
    return np.asarray(score >= 0.5, np.int64)


def row_brier(label: Label, score: NDArray[Any]) -> Floats:
    """The squared distance of each row's probabilities from what came, ``[n]``: binary ``(p - y)^2``.

    With classes ``sum_k (p_k - [y = k])^2``, from 0 to 2. Source: Brier, Monthly Weather Review 78(1), 1950.

    >>> row_brier(np.array([1]), np.array([0.5])).tolist(), row_brier(np.array([0]), np.array([[0.5, 0.5]])).tolist()
    ([0.25], [0.5])
    """
    p = np.asarray(score, np.float64)
    if p.ndim == 1:
        return np.asarray((p - (np.asarray(label) > 0)) ** 2, np.float64)
    came = np.asarray(label, np.intp)[:, None] == np.arange(p.shape[1])
    return np.asarray(((p - came) ** 2).sum(axis=1), np.float64)


def cheapest(score: NDArray[Any], costs: Floats) -> Ints:
    """The decision of each row that has the lowest expected cost under its own probabilities, ``[n]``.

    ``costs[i, j]``: what it costs to decide for class j where i comes. Source: Elkan, The foundations of cost-sensitive
    learning, IJCAI 2001.

    >>> cheapest(np.array([0.2, 0.05]), np.array([[0.0, 1.0], [9.0, 0.0]])).tolist()  # a miss costs nine false alarms
    [1, 0]
    """
    p = np.asarray(score, np.float64)
    if p.ndim == 1:
        p = np.column_stack([1 - p, p])
    return np.asarray((p @ costs).argmin(axis=1), np.int64)


# --- numbers ------------------------------------------------------------------------------------


def row_squared_error(label: Label, prediction: NDArray[Any]) -> Floats:
    """The squared error of each row's predicted number ``[n]``, in squared units."""
    squared: Floats = (np.asarray(label, np.float64) - np.asarray(prediction, np.float64)) ** 2
    return squared


def row_loss(label: Label, score: NDArray[Any], *, number: bool = False) -> Floats:
    """What a model pays for each row ``[n]``: log-loss in nats, or of a ``number`` its squared error."""
    return row_squared_error(label, score) if number else row_log_loss(label, score)


def row_absolute(label: Label, predicted: NDArray[Any]) -> Floats:
    """The absolute error of each row, ``[n]``, in the label's unit."""
    return np.asarray(np.abs(np.asarray(predicted, np.float64) - label), np.float64)


def row_pinball(label: Label, predicted: NDArray[Any], quantile: float) -> Floats:
    """The loss of each row whose least expectation is at the label's ``quantile``, ``[n]``, in the label's unit.

    ``q (y - p)`` where the label is above the prediction, else ``(1 - q) (p - y)``. Source: Koenker and Bassett,
    Econometrica 46(1), 1978.

    >>> row_pinball(np.array([3.0, 0.0]), np.array([1.0, 1.0]), 0.9).round(3).tolist()
    [1.8, 0.1]
    """
    under = np.asarray(label, np.float64) - predicted
    return np.asarray(np.maximum(quantile * under, (quantile - 1) * under), np.float64)


# --- slices -------------------------------------------------------------------------------------

MISSING = "missing"
"""The value that rows without one are told by, wherever rows are cut into slices."""
MOST_SLICES = 1_000
"""Slices of one field, those with most rows: a customer's key has a value for every other row."""


def binned(values: NDArray[Any], edges: Sequence[float]) -> NDArray[Any]:
    """The bin of each number as a word, ``[n]``; an edge belongs to the bin above it.

    >>> binned(np.array([18.0, 30.0, 64.0, np.nan]), (30, 50)).tolist()
    ['below 30', '30 to below 50', '50 or more', 'missing']
    """
    # Not :g, whose six digits give bins of large numbers one name.
    told = [f"{edge:.15g}" for edge in edges]
    between = [f"{low} to below {high}" for low, high in pairwise(told)]
    words = np.array([f"below {told[0]}", *between, f"{told[-1]} or more", MISSING])
    numbers = np.asarray(values, np.float64)
    place = np.where(np.isnan(numbers), len(words) - 1, np.searchsorted(np.asarray(edges), numbers, "right"))
    return np.asarray(words[place])


def cut(frame: pl.DataFrame, bins: Mapping[str, Sequence[float]]) -> pl.DataFrame:
    """The frame with :func:`binned` words in place of the numbers of these columns, where it has them."""
    import polars as pl

    words = [
        pl.Series(name, binned(frame[name].cast(pl.Float64).to_numpy(), edges), dtype=pl.String)
        for name, edges in bins.items()
        if name in frame.columns
    ]
    return frame.with_columns(words)


def slices(
    frame: pl.DataFrame, names: Sequence[str], bins: Mapping[str, Sequence[float]]
) -> dict[str, NDArray[np.bool_]]:
    """A mask ``[n]`` per value of each column, named ``column=value``, columns in their order, values sorted.

    Rows without a value are ``column=missing``, and so are those whose value is that word. Of a column with more than
    ``MOST_SLICES`` values those with most rows have a mask. Of a column with ``bins`` a mask per bin that has a row,
    from below. Raises ConfigError naming a column that the frame lacks, or a number that is not whole and has no bins.
    """
    import polars as pl

    masks: dict[str, NDArray[np.bool_]] = {}
    for name in names:
        if name not in frame.columns:
            raise ConfigError(f"gate.slices names {name!r}, which is no column: choose from {', '.join(frame.columns)}")
        own = frame[name]
        if name in bins:
            words = binned(own.cast(pl.Float64).to_numpy(), bins[name])
            order = binned(np.array([-np.inf, *bins[name], np.nan]), bins[name])
            masks |= {f"{name}={word}": found for word in order if (found := words == word).any()}
            continue
        known = own.drop_nulls().to_numpy()
        if own.dtype.is_float() and (known != np.floor(known)).any():
            raise ConfigError(
                f"gate.slices cuts {name!r} by its values, which are no whole numbers, so that hardly two rows share "
                f"one: give bins, as in {{field: {name}, bins: [30, 50]}}"
            )
        if own.dtype.is_(pl.Boolean()):
            own = own.cast(pl.String)
        for value, rows in _rows_of(own):
            masks[f"{name}={value}"] = mask = np.zeros(own.len(), bool)
            mask[rows] = True
        if own.null_count():
            word = f"{name}={MISSING}"
            masks[word] = own.is_null().to_numpy() | masks.get(word, False)
    return masks


def _rows_of(values: pl.Series) -> list[tuple[Any, NDArray[Any]]]:
    """The commonest values, sorted, with the positions of their rows."""
    import polars as pl

    grouped = pl.DataFrame({"value": values}).with_row_index("row").drop_nulls().group_by("value").agg("row")
    found = zip(grouped["value"].to_list(), (rows.to_numpy() for rows in grouped["row"]), strict=True)
    commonest = sorted(found, key=lambda one: (-len(one[1]), one[0]))[:MOST_SLICES]
    return sorted(commonest, key=lambda one: one[0])


# --- AUC ----------------------------------------------------------------------------------------


def roc_auc(label: Label, score: NDArray[Any]) -> float | None:
    """Area under the ROC curve: the chance that a positive row's score is above a negative one's, ties halved.

    None with one class only.

    >>> roc_auc(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.5]))
    0.75
    """
    from sklearn.metrics import roc_auc_score

    positives = int((label > 0).sum())
    return float(roc_auc_score(label > 0, score)) if 0 < positives < len(label) else None


def roc_auc_interval(label: Label, score: NDArray[Any], confidence: float) -> Interval | None:
    """The :func:`roc_auc` with its confidence interval; None with one class only.

    ``var = var(V10) / n1 + var(V01) / n0`` with ``V10`` of each positive the share of negatives below it, ``V01`` of
    each negative that of positives above it; normal approximation, cut at 0 and 1. Rows count as independent.
    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44(3), 1988.

    >>> found = roc_auc_interval(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), 0.95)
    >>> found.value, round(found.low, 3), found.high
    (0.75, 0.057, 1.0)
    """
    from scipy.stats import rankdata

    area = roc_auc(label, score)
    if area is None:
        return None
    high, low = score[label > 0], score[label <= 0]
    ranks = rankdata(np.concatenate([high, low]))
    above = (ranks[: high.size] - rankdata(high)) / low.size
    below = 1 - (ranks[high.size :] - rankdata(low)) / high.size
    # One row has no variance: it counts as all that there can be.
    variance = sum(float(part.var(ddof=1)) / part.size if part.size > 1 else 1.0 for part in (above, below))
    half = quantile(0.5 + confidence / 2) * math.sqrt(variance)
    return Interval(value=area, low=max(0.0, area - half), high=min(1.0, area + half))


# --- F1 -----------------------------------------------------------------------------------------


def confusion(label: Label, score: NDArray[Any]) -> Ints:
    """Counts ``[K, K]`` of rows by their class (first axis) and the likeliest one of scores ``[n, K]`` (second).

    By hand: scikit-learn's confusion_matrix takes 17 to 100 times as long.
    """
    classes = score.shape[1]
    cells = np.bincount(np.asarray(label, np.intp) * classes + score.argmax(1), minlength=classes * classes)
    return cells.reshape(classes, classes)


def class_f1(table: Ints) -> list[float | None]:
    """F1 of each class from a :func:`confusion`; None for a class that is neither in the labels nor predicted.

    >>> class_f1(np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]]))
    [0.8, 0.6666666666666666, None]
    """
    hits, sizes = np.diag(table).tolist(), (table.sum(0) + table.sum(1)).tolist()
    return [2 * hit / size if size else None for hit, size in zip(hits, sizes, strict=True)]


def macro_f1(table: Ints) -> float:
    """Mean F1 of the classes that the labels of a :func:`confusion` hold.

    By hand: scikit-learn's f1_score takes 40 times as long, gives the same bits, and does not take a table.

    >>> round(macro_f1(np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])), 3)
    0.733
    """
    held = table.sum(1) > 0
    return float((2 * np.diag(table)[held] / (table.sum(0) + table.sum(1))[held]).mean())


def macro_f1_interval(table: Ints, confidence: float) -> Interval:
    """The :func:`macro_f1` with its percentile bootstrap interval.

    No formula is at hand, so the table is resampled (multinomial, ``DRAWS`` times, always the same draws).
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    n = int(table.sum())
    drawn = np.random.default_rng(0).multinomial(n, table.ravel() / n, DRAWS)
    low, high = central([macro_f1(cells.reshape(table.shape)) for cells in drawn], confidence)
    return Interval(value=macro_f1(table), low=low, high=high)


# --- by name ------------------------------------------------------------------------------------


def value(
    metric: str, label: Label, score: NDArray[Any], costs: Sequence[Sequence[float]] = (), quantile: float = 0.5
) -> float:
    """One of the gate's metrics of one model: the mean of its row losses, a rank metric, or macro-F1 (binary: of both).

    ``costs`` [K, K] are for ``cost``, ``quantile`` is for ``pinball``. The gate caps squared errors of two models
    together, so that its RMSE may be lower. Raises KeyError for a metric that it does not know, ValueError for a rank
    metric of one class.

    >>> value("accuracy", np.array([1, 0]), np.array([0.7, 0.6])), value("rmse", np.array([1.0, 0.0]), np.zeros(2)) ** 2
    (0.5, 0.5000000000000001)
    """
    if metric in {"roc_auc", "pr_auc"}:
        return _ranked(metric, label, score)
    if metric == "macro_f1":
        said, classes = decided(score), score.shape[1] if score.ndim == 2 else 2
        return macro_f1(confusion(label, np.eye(classes)[said]))
    if metric == "cost":
        table = np.asarray(costs, np.float64)
        return float(table[np.asarray(label, np.intp), cheapest(score, table)].mean())
    if metric == "pinball":
        return float(row_pinball(label, score, quantile).mean())
    if metric == "rmse":
        return math.sqrt(float(row_squared_error(label, score).mean()))
    if metric == "accuracy":
        return float((~row_errors(label, score)).mean())
    rows = {"log_loss": row_log_loss, "brier": row_brier, "mae": row_absolute}
    return float(rows[metric](label, score).mean())


def _ranked(metric: str, label: Label, score: NDArray[Any]) -> float:
    from sklearn.metrics import average_precision_score

    area = roc_auc(label, score)
    if area is None:
        raise ValueError(f"all {len(label)} rows are of one class: ranks need both")
    return area if metric == "roc_auc" else float(average_precision_score(label > 0, score))


# --- intervals ----------------------------------------------------------------------------------


def quantile(share: float, freedom: int = 0) -> float:
    """Quantile of Student's t at ``freedom`` degrees, of the standard normal at 0.

    >>> round(quantile(0.975), 2), round(quantile(0.975, 4), 2)
    (1.96, 2.78)
    """
    from scipy.stats import norm, t

    return float(t.ppf(share, freedom) if freedom else norm.ppf(share))


def clustered_mean(values: Floats, days: Ints) -> Mean:
    """Mean of ``values`` ``[n]`` with its standard error, where rows of one day (``days`` ``[n]``) are not independent.

    The days are clusters when there are at least ``MIN_DAYS`` of them: ``se^2 = D/(D-1) sum_g s_g^2 / n^2`` with
    ``s_g`` the sum of day g's deviations (the estimator CR1 of a mean), and Student's t at D - 1 degrees of freedom.
    Otherwise each row stands alone. Source: Cameron and Miller, Journal of Human Resources 50(2), 2015.

    >>> clustered_mean(np.array([1.0, 3.0]), np.zeros(2, np.int64))
    Mean(value=2.0, se=1.0, freedom=0)
    >>> clustered_mean(np.repeat([0.0, 1.0], 500), np.arange(1000) // 100).se  # ten days, and not a thousand rows
    0.16666666666666666
    """
    mean = float(values.mean())
    clusters = np.unique(days, return_inverse=True)[1]
    found = int(clusters.max()) + 1
    if found >= MIN_DAYS:
        sums = np.bincount(clusters, weights=values - mean)
        error = math.sqrt(float((sums**2).sum()) * found / (found - 1)) / values.size
        return Mean(value=mean, se=error, freedom=found - 1)
    alone = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.inf
    return Mean(value=mean, se=alone)


def design_effect(values: Floats, days: Ints) -> float:
    """How many times wider a mean's variance is because rows of one day are alike; 1 where they are not.

    The variance of :func:`clustered_mean` over that of independent rows: so many rows say as much as one. Source: Kish,
    Survey Sampling, Wiley 1965, section 8.2.

    >>> design_effect(np.repeat([0.0, 1.0], 500), np.arange(1000) // 100)  # every day is all 0 or all 1
    111.0
    >>> design_effect(np.tile([0.0, 1.0], 500), np.arange(1000) // 100)
    1.0
    """
    alone = float(values.std(ddof=1)) ** 2 / values.size if values.size > 1 else 0.0
    return max(clustered_mean(values, days).se ** 2 / alone, 1.0) if alone > 0 else 1.0


def pooled(means: Sequence[Mean]) -> Mean:
    """One mean of several independent ones, weighed by their inverse variances, ``1 / sum(1 / se^2)`` being its own.

    Its degrees of freedom are Satterthwaite's, ``V^2 / sum(v_i^2 / f_i)`` with ``v_i`` what mean i adds to the variance
    V; 0 if all are normal. Sources: Cochran, Biometrics 10(1), 1954; Satterthwaite, Biometrics Bulletin 2(6), 1946.

    >>> pooled([Mean(value=0.1, se=0.01, freedom=9), Mean(value=0.1, se=0.01, freedom=9)])
    Mean(value=0.1, se=0.007071067811865475, freedom=18)
    >>> round(pooled([Mean(value=0.0, se=0.01), Mean(value=0.3, se=0.02)]).value, 12)  # four parts to one
    0.06
    """
    precise = [1 / max(mean.se, 1e-12) ** 2 for mean in means]
    total = sum(precise)
    value = sum(weight * mean.value for weight, mean in zip(precise, means, strict=True)) / total
    wobble = sum(
        (weight / total) ** 2 / mean.freedom for weight, mean in zip(precise, means, strict=True) if mean.freedom
    )
    return Mean(value=value, se=total**-0.5, freedom=int(1 / wobble + 1e-9) if wobble else 0)


def around(mean: Mean, confidence: float) -> Interval:
    """The confidence interval of a mean, to twelve digits, and never wider than a thousand million each way.

    >>> around(Mean(value=0.08, se=0.01), 0.95)
    Interval(value=0.08, low=0.060400360155, high=0.099599639845)
    """
    half = min(quantile(0.5 + confidence / 2, mean.freedom) * mean.se, 1e9)
    return Interval(value=round(mean.value, 12), low=round(mean.value - half, 12), high=round(mean.value + half, 12))


def central(values: Sequence[float] | Floats, confidence: float) -> tuple[float, float]:
    """The ends of the central ``confidence`` share of resampled values: a percentile bootstrap interval.

    >>> central([1.0, 2.0, 3.0, 4.0, 5.0], 0.5)
    (2.0, 4.0)
    """
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson(hits: int, n: int, confidence: float) -> Interval:
    """A share with its confidence interval. Source: Wilson, Journal of the American Statistical Association 22, 1927.

    >>> found = wilson(9, 10, 0.95)
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (0.9, 0.596, 0.982)
    """
    z, share = quantile(0.5 + confidence / 2), hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))
