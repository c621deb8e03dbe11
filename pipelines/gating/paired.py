"""Two models on the same rows under one metric: the lift, how each row moves it, and what resampled rows would say.

Every lift is in the metric's own unit and positive where the challenger is better. Labels ``[n]`` are 0 and 1,
positions of classes, or numbers; answers are scores ``[n]`` or ``[n, K]``, or numbers ``[n]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.measures import (
    cheapest,
    decided,
    row_absolute,
    row_brier,
    row_log_loss,
    row_pinball,
    row_squared_error,
)
from pipelines.params import GateParams, Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Label = NDArray[Any]
Answers = NDArray[Any]
Generator = np.random.Generator
Resample = Callable[[Generator, int, int], Floats]
"""Lifts ``[draws]`` of so many resamples, each of so many rows that are drawn with replacement from the observed pairs.

A resample in which the metric is not defined, because a class is missing, is NaN.
"""

CAP = 0.99
"""Squared errors are capped at this quantile of both models' squared errors together, which resampling leaves alone.

Without a cap the interval of an RMSE with heavy tails misses up to ten times as often as it says.
"""
_CHUNK = 200_000
"""Resampled values held at once: they fit into a processor's cache, and memory does not grow with the holdout."""


@dataclass(frozen=True, eq=False)
class Paired:
    """``lift = value of the challenger - value of the opponent``, the other way round where less is better.

    ``influence`` ``[n]`` is what each row adds to the error of the lift, in first order: ``se^2 = sum(influence^2)``.
    ``differ`` counts the rows that the two models answer differently, as far as the metric can see.
    """

    lift: float
    challenger: float
    opponent: float
    influence: Floats
    differ: int
    resample: Resample

    @property
    def se(self) -> float:
        """The standard error of the lift by the delta method."""
        return float(np.sqrt((self.influence**2).sum()))


def paired(metric: Metric, label: Label, opponent: Answers, challenger: Answers, gate: GateParams) -> Paired | None:
    """The comparison under a metric, with the costs and the quantile that the gate declares.

    None where the metric is not defined on these rows: a rank metric with one class only, no rows.
    """
    if not len(label):
        return None
    if metric in _RANKS and len(np.unique(label > 0)) < 2:
        return None
    return _of(metric, gate)(label, opponent, challenger)


def _of(metric: Metric, gate: GateParams) -> Callable[[Label, Answers, Answers], Paired]:
    if metric == "cost":
        return partial(_costs, costs=np.array(gate.costs, np.float64))
    if metric == "pinball":
        return partial(_losses, partial(row_pinball, quantile=gate.quantile or 0.5))
    return _METRICS[metric]


# --- means of row losses ------------------------------------------------------------------------


def means(opponent: Floats, challenger: Floats) -> Paired:
    """The comparison of two models by their mean loss per row, ``[n]`` each: lift is the mean saving."""
    return _means(np.asarray(opponent, np.float64), np.asarray(challenger, np.float64), 1.0)


def _means(opponent: Floats, challenger: Floats, sign: float) -> Paired:
    d = opponent - challenger
    n, moved = len(d), np.sort(d[d != 0])
    # The mean of numbers that are all alike may be off by a rounding.
    lift = float(d[0]) if (d == d[0]).all() else float(d.mean())
    return Paired(
        lift=lift,
        challenger=sign * float(challenger.mean()),
        opponent=sign * float(opponent.mean()),
        influence=(d - lift) / np.sqrt(n * max(n - 1, 1)),
        differ=len(moved),
        resample=partial(_resampled_means, moved, n),
    )


def _resampled_means(moved: Floats, n: int, generator: Generator, draws: int, rows: int) -> Floats:
    """Rows without a difference are only counted: how many of the others a resample holds is binomial.

    ``moved`` is sorted, so that the order of rows is of no account.
    """
    if not len(moved):
        return np.zeros(draws)
    values, counts = np.unique(moved, return_counts=True)
    if 32 * len(values) <= len(moved):
        shares = np.append(counts, n - len(moved)) / n
        return np.asarray(generator.multinomial(rows, shares, draws)[:, :-1] @ values / rows, np.float64)
    sizes = generator.binomial(rows, len(moved) / n, draws)
    sums = np.empty(draws)
    step = max(1, _CHUNK // rows)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        own = sizes[start : start + size]
        drawn = moved.take(generator.integers(0, len(moved), int(own.sum()), dtype=np.int32))
        if len(moved) == n:
            sums[start : start + size] = drawn.reshape(size, rows).sum(axis=1)
            continue
        # The last sum ends at the zero that is put behind; an empty one would take its neighbour's first value.
        totals = np.add.reduceat(np.append(drawn, 0.0), np.append(0, np.cumsum(own)[:-1]))
        sums[start : start + size] = np.where(own > 0, totals, 0.0)
    return sums / rows


def _losses(loss: Callable[[Label, Answers], Floats], label: Label, opponent: Answers, challenger: Answers) -> Paired:
    return means(loss(label, opponent), loss(label, challenger))


def accuracy(label: Label, opponent: Answers, challenger: Answers) -> Paired:
    """Share of rows whose likeliest class (binary: a score of at least 0.5) is their label."""
    right = [np.asarray(decided(answers) == label, np.float64) for answers in (opponent, challenger)]
    return _means(-right[0], -right[1], -1.0)


def _costs(label: Label, opponent: Answers, challenger: Answers, *, costs: Floats) -> Paired:
    """The mean cost of the decision that each model's own probabilities make the cheapest one."""
    own = np.asarray(label, np.intp)
    return means(costs[own, cheapest(opponent, costs)], costs[own, cheapest(challenger, costs)])


def rmse(label: Label, opponent: Answers, challenger: Answers) -> Paired:
    """Root of the mean squared error, each squared error being capped at the :data:`CAP` quantile of all of them.

    ``U = (r^2 - m) / (2 n sqrt(m))`` with ``m`` the mean of the capped squared errors. ``challenger`` and ``opponent``
    are the metric as it is capped, too.
    """
    squared = np.column_stack([row_squared_error(label, answers) for answers in (opponent, challenger)])
    squared = np.minimum(squared, np.quantile(squared, CAP))
    squared = np.asfortranarray(squared[np.lexsort(squared.T)])
    n, m = len(squared), squared.mean(axis=0)
    roots = np.sqrt(m)
    by_row = (squared - m) / (2 * np.sqrt(n * max(n - 1, 1)) * np.maximum(roots, np.finfo(float).tiny))
    return Paired(
        lift=float(roots[0] - roots[1]),
        challenger=float(roots[1]),
        opponent=float(roots[0]),
        influence=by_row[:, 0] - by_row[:, 1],
        differ=int((squared[:, 0] != squared[:, 1]).sum()),
        resample=partial(_resampled_roots, squared),
    )


def _resampled_roots(squared: Floats, generator: Generator, draws: int, rows: int) -> Floats:
    lifts = np.empty(draws)
    step = max(1, _CHUNK // rows)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = generator.integers(0, len(squared), (size, rows), dtype=np.int32)
        roots = [np.sqrt(column.take(drawn).mean(axis=1)) for column in squared.T]
        lifts[start : start + size] = roots[0] - roots[1]
    return lifts


# --- ranks --------------------------------------------------------------------------------------


def roc_auc(label: Label, opponent: Answers, challenger: Answers) -> Paired:
    """Area under the ROC curve; ``influence`` gives the variance of DeLong et al., Biometrics 44(3), 1988.

    ``U = (share of negatives below - AUC) / P`` of a positive, ``(share of positives above - AUC) / N`` of a negative,
    ties halved, each with one degree of freedom less.
    """
    return _ranked(_Area, label, opponent, challenger)


def pr_auc(label: Label, opponent: Answers, challenger: Answers) -> Paired:
    """Average precision, ``sum over positives of T_i / K_i / P``, T positives among the K rows from the top down to it.

    ``U_j = [y_j (T_j/K_j + sum_{i>=j} y_i/K_i - AP) - sum_{i>=j} y_i T_i/K_i^2] / P``, rows by falling score; rows of
    one score are taken together.
    """
    return _ranked(_Precision, label, opponent, challenger)


class _Area:
    """What the AUC of any weights of the rows is made of, and each row's influence on the unweighted one."""

    def __init__(self, positive: NDArray[np.bool_], scores: Floats) -> None:
        self.positives, self.negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
        high, low = scores[self.positives], scores[self.negatives]
        self.order = self.negatives[np.argsort(low, kind="stable")]
        low = np.sort(low)
        self.left, self.right = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
        below = (self.left + self.right) / 2 / len(low)
        high, low = np.sort(high), scores[self.negatives]
        above = 1 - (np.searchsorted(high, low, "left") + np.searchsorted(high, low, "right")) / 2 / len(high)
        self.value = float(below.mean())
        self.influence = np.empty(len(scores))
        for rows, share in ((self.positives, below), (self.negatives, above)):
            self.influence[rows] = (share - self.value) / np.sqrt(len(rows) * max(len(rows) - 1, 1))

    def weighted(self, weights: Floats) -> Floats:
        """The AUC under weights ``[draws, n]``; NaN where a class has none."""
        below = np.zeros((len(weights), len(self.order) + 1))
        np.cumsum(weights[:, self.order], axis=1, out=below[:, 1:])
        own = weights[:, self.positives]
        pairs = np.einsum("ij,ij->i", own, below[:, self.left])
        if not np.array_equal(self.left, self.right):
            pairs = (pairs + np.einsum("ij,ij->i", own, below[:, self.right])) / 2
        with np.errstate(invalid="ignore"):
            return np.asarray(pairs / (own.sum(axis=1) * below[:, -1]), np.float64)


class _Precision:
    """What the average precision of any weights is made of, and each row's influence on the unweighted one."""

    def __init__(self, positive: NDArray[np.bool_], scores: Floats) -> None:
        self.order = np.argsort(-scores, kind="stable")
        falling, hit = -scores[self.order], positive[self.order]
        stop = np.searchsorted(falling, falling, "right")
        hits = np.append(0, np.cumsum(hit))
        self.hits = np.flatnonzero(hit)
        self.seen = stop[self.hits]
        """Rows down to the end of each positive's ties, and the positives among them."""
        self.found = hits[self.seen]
        precision = self.found / self.seen
        self.value = float(precision.mean())
        # Sums over all positives from a row's ties downwards.
        first = hits[np.searchsorted(falling, falling, "left")]
        below, squares = (_from_end(part)[first] for part in (1 / self.seen, precision / self.seen))
        own = hits[stop] / stop + below - self.value
        self.influence = np.empty(len(scores))
        self.influence[self.order] = (np.where(hit, own, 0.0) - squares) / len(self.hits)

    def weighted(self, weights: Floats) -> Floats:
        """The average precision under weights ``[draws, n]``; NaN where no positive has any."""
        ranked = weights[:, self.order]
        rows = np.cumsum(ranked, axis=1)[:, self.seen - 1]
        own = ranked[:, self.hits]
        found = np.cumsum(own, axis=1)[:, self.found - 1]
        with np.errstate(invalid="ignore"):
            total = found[:, -1]
            return np.asarray(np.einsum("ij,ij->i", own, found / np.maximum(rows, 1.0)) / total, np.float64)


def _from_end(values: Floats) -> Floats:
    """The sum of each value and all behind it, with a 0 at the end: ``[n + 1]``."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _ranked(kind: type[_Area | _Precision], label: Label, opponent: Answers, challenger: Answers) -> Paired:
    order = np.lexsort((label, opponent, challenger))  # the order in which rows come is of no account
    positive = np.asarray(label)[order] > 0
    if positive.all() or not positive.any():
        raise DataError(f"all {len(positive)} rows are of one class: ranks need both")
    theirs, ours = (kind(positive, np.asarray(scores, np.float64)[order]) for scores in (opponent, challenger))

    def resample(generator: Generator, draws: int, rows: int) -> Floats:
        lifts = np.empty(draws)
        step = max(1, _CHUNK // len(positive))
        for start in range(0, draws, step):
            size = min(step, draws - start)
            weights = _weights(generator, len(positive), size, rows)
            lifts[start : start + size] = ours.weighted(weights) - theirs.weighted(weights)
        return lifts

    return Paired(
        lift=ours.value - theirs.value,
        challenger=ours.value,
        opponent=theirs.value,
        influence=ours.influence - theirs.influence,
        differ=int((np.asarray(opponent) != np.asarray(challenger)).sum()),
        resample=resample,
    )


def _weights(generator: Generator, n: int, draws: int, rows: int) -> Floats:
    """How often each of ``n`` rows is in each of the resamples, ``[draws, n]``."""
    if rows > n:
        return generator.multinomial(rows, np.full(n, 1 / n), draws).astype(np.float64)
    drawn = generator.integers(0, n, (draws, rows), dtype=np.int32) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


# --- F1 -----------------------------------------------------------------------------------------


def macro_f1(label: Label, opponent: Answers, challenger: Answers) -> Paired:
    """Mean F1 of the classes that the labels hold; of a binary label both classes, a score of .5 on is class 1.

    With h hits of a class and s rows that are labelled with it or predicted as it (counted twice if both), a row with
    label a and prediction b has ``U = (2 [a = b]/s_a - 2 h_a/s_a^2 - 2 h_b/s_b^2) / classes held``, where classes that
    the labels do not hold count as nothing.
    """
    own, before, after = np.asarray(label, np.int64), decided(opponent), decided(challenger)
    classes = int(max(own.max(), before.max(), after.max())) + 1
    code = (own * classes + before) * classes + after
    cells, cell, counts = np.unique(code, return_inverse=True, return_counts=True)
    labelled = cells // classes**2
    theirs, ours = (_F1(labelled, said, classes) for said in (cells // classes % classes, cells % classes))
    whole = counts[None].astype(np.float64)
    values = [float(one.weighted(whole)[0]) for one in (theirs, ours)]
    by_cell = ours.influence(whole[0]) - theirs.influence(whole[0])

    def resample(generator: Generator, draws: int, rows: int) -> Floats:
        lifts = np.empty(draws)
        step = max(1, _CHUNK // len(cells))
        for start in range(0, draws, step):
            size = min(step, draws - start)
            weights = generator.multinomial(rows, counts / len(own), size).astype(np.float64)
            lifts[start : start + size] = ours.weighted(weights) - theirs.weighted(weights)
        return lifts

    return Paired(
        lift=values[1] - values[0],
        challenger=values[1],
        opponent=values[0],
        influence=by_cell[cell],
        differ=int((before != after).sum()),
        resample=resample,
    )


class _F1:
    """Macro-F1 of weighted cells, each of which has a label and a prediction."""

    def __init__(self, label: Ints, predicted: Ints, classes: int) -> None:
        self.label, self.predicted = label, predicted
        self.right = (label == predicted).astype(np.float64)
        self.labels, self.predictions = (np.eye(classes)[column] for column in (label, predicted))

    def _tables(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Rows labelled with each class, hits, and rows labelled with it or predicted as it, ``[draws, K]``."""
        labelled = weights @ self.labels
        return labelled, (weights * self.right) @ self.labels, labelled + weights @ self.predictions

    def weighted(self, weights: Floats) -> Floats:
        """Under weights ``[draws, cells]``."""
        labelled, hits, sizes = self._tables(weights)
        return np.asarray((2 * hits / np.maximum(sizes, 1.0)).sum(axis=1) / (labelled > 0).sum(axis=1), np.float64)

    def influence(self, weights: Floats) -> Floats:
        """What a row of each cell adds to the error, ``[cells]``, by weights ``[cells]``."""
        labelled, hits, sizes = (table[0] for table in self._tables(weights[None]))
        held = labelled > 0
        share = np.where(held, 2 * hits / np.maximum(sizes, 1.0) ** 2, 0.0)
        own = 2 * self.right / np.maximum(sizes, 1.0)[self.label]
        return np.asarray((own - share[self.label] - share[self.predicted]) / held.sum(), np.float64)


_RANKS = frozenset({"roc_auc", "pr_auc"})
_METRICS: dict[Metric, Callable[[Label, Answers, Answers], Paired]] = {
    "log_loss": partial(_losses, row_log_loss),
    "brier": partial(_losses, row_brier),
    "roc_auc": roc_auc,
    "pr_auc": pr_auc,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "rmse": rmse,
    "mae": partial(_losses, row_absolute),
}
"""What needs nothing but answers."""
