"""Thresholds of trees as float32 has them, so that no row falls to the other side of a split.

LightGBM and histogram gradient boosting keep thresholds in float64, and a graph holds float32. Rounded to the nearest,
one may come to lie on a number that it was below: that number's rows would then go the other way. For a number ``x`` of
float32, ``x <= t`` is ``x <= w``, where ``w`` is the largest float32 that is not above ``t``. scikit-learn's other
trees are converted so by skl2onnx itself, and XGBoost has float32.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray


def not_above(thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest float32 that is not above each threshold, as float64.

    >>> float(not_above(np.array([1.0 + 2.0**-24 + 2.0**-30]))[0])
    1.0
    """
    with np.errstate(over="ignore"):
        nearest = thresholds.astype(np.float32)
    below = np.nextafter(nearest, np.float32(-np.inf))
    found: NDArray[np.float64] = np.where(nearest > thresholds, below, nearest).astype(np.float64)
    return found


def of_lightgbm(estimator: Any) -> Any:
    """The estimator's booster with such thresholds: it answers what the estimator answers, of float32 numbers."""
    import lightgbm

    def narrowed(line: re.Match[str]) -> str:
        values = not_above(np.array(line[1].split(), np.float64))
        return "threshold=" + " ".join(map(repr, values.tolist()))

    text = re.sub(r"^threshold=(.+)$", narrowed, estimator.booster_.model_to_string(), flags=re.MULTILINE)
    # Without their sizes, trees are found where each begins.
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return lightgbm.Booster(model_str=text)


def of_sklearn(estimator: Any) -> Any:
    """The estimator, or a copy with such thresholds where it is histogram gradient boosting, or ends in one."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        narrowed = copy.copy(estimator)
        narrowed.steps = [*estimator.steps[:-1], (estimator.steps[-1][0], of_sklearn(estimator.steps[-1][1]))]
        return narrowed
    if not isinstance(estimator, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        return estimator
    narrowed = copy.deepcopy(estimator)
    for trees in narrowed._predictors:
        for tree in trees:
            tree.nodes["num_threshold"] = not_above(tree.nodes["num_threshold"])
    return narrowed
