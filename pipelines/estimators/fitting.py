"""Fit an estimator to encoded rows, and what it then answers."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError, DataError, PerennialError
from pipelines.estimators import design as designs
from pipelines.estimators import families
from pipelines.estimators.design import Design, Tensors
from pipelines.estimators.families import Running
from pipelines.faults import said
from pipelines.fields import Fields
from pipelines.params import EstimatorParams

FILE = "estimator.pkl"
"""What a training leaves of an estimator. It never leaves the state folder: what ships is the graph."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """Encoded rows, oldest first, and their ``labels`` [n]: 0 and 1, positions of classes, or numbers."""

    tensors: Tensors
    labels: NDArray[Any]


@dataclass(frozen=True)
class Stopping:
    """Rows that say when to stop, and after how many ``rounds`` without a better loss on them."""

    rows: Labelled
    rounds: int


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator behind its design.

    ``classes`` [k] are the positions, among ``outputs`` of them, of the classes that the training rows have. One that
    they do not have gets ``unseen``, the share of one row among them. ``bounds`` hold a number. ``curve`` is the loss
    on the rows that say when to stop, round by round, if there were any.
    """

    family: str
    estimator: Any
    design: Design
    outputs: int
    classes: tuple[int, ...] = ()
    unseen: float = 0.0
    bounds: tuple[float, float] | None = None
    curve: tuple[float, ...] = ()


def fit(
    model: EstimatorParams, fields: Fields, rows: Labelled, running: Running, stopping: Stopping | None = None
) -> Fitted:
    """Fit the declared family. LightGBM and XGBoost obey ``stopping``, and keep their best round.

    Raises ConfigError for a family that is not there or does not take its parameters, DataError for rows that it
    cannot learn from.
    """
    from threadpoolctl import threadpool_limits

    learned = designs.learn(families.layout_of(model, fields), fields, rows.tensors, model.words)
    labels, classes = _targets(fields, rows.labels)
    estimator = families.build(model, fields, running)
    _check_kind(estimator, model, fields)
    held = None
    if stopping is not None:
        held = _held(learned, stopping, labels, classes)
    fit_one = {"lightgbm": _fit_lightgbm, "xgboost": _fit_xgboost}.get(model.family, _fit_sklearn)
    try:
        with threadpool_limits(running.threads):
            curve = fit_one(estimator, learned, designs.matrix(learned, rows.tensors), labels, held)
    except (PerennialError, MemoryError):
        raise
    except Exception as error:
        # Every library has exceptions of its own; each of them means that this family takes no such rows or values.
        raise ConfigError(
            f"{fields.case}: {model.family} does not learn from its rows ({said(error)}): "
            "look at model.parameters and model.layout, or choose another family"
        ) from error
    missing = len(fields.classes) - len(classes) if fields.classes else 0
    return Fitted(
        model.family,
        estimator,
        learned,
        fields.outputs,
        classes,
        1 / (len(labels) + missing) if missing else 0.0,
        fields.number.bounds if fields.number else None,
        tuple(curve),
    )


def answers(fitted: Fitted, tensors: Tensors) -> Floats:
    """The estimator's own answers for encoded rows, ``[B, outputs]``: what its graph has to say, too."""
    from threadpoolctl import threadpool_limits

    design = designs.matrix(fitted.design, tensors)
    with threadpool_limits(1):
        if fitted.bounds is not None:
            return np.asarray(fitted.estimator.predict(design), np.float64).reshape(-1, 1).clip(*fitted.bounds)
        known = np.asarray(fitted.estimator.predict_proba(design), np.float64)
    if fitted.outputs == 1:
        return known[:, 1:]
    every = np.full((len(known), fitted.outputs), fitted.unseen, np.float64)
    every[:, list(fitted.classes)] = known * seen_share(fitted)
    return every


def seen_share(fitted: Fitted) -> float:
    """What is left for the classes that the training rows have."""
    return 1 - fitted.unseen * (fitted.outputs - len(fitted.classes))


def save(fitted: Fitted, path: Path) -> None:
    """Write a fitted estimator; :func:`load` reads it."""
    path.write_bytes(pickle.dumps(fitted, protocol=5))


def load(path: Path) -> Fitted:
    """A fitted estimator that :func:`save` wrote: a file of a step, whose hash its manifest holds."""
    fitted: Fitted = pickle.loads(path.read_bytes())  # noqa: S301 - read after its hash was checked
    return fitted


def _check_kind(estimator: Any, model: EstimatorParams, fields: Fields) -> None:
    """Raise ConfigError if an estimator does not answer what the target asks for."""
    from sklearn.base import is_regressor

    if fields.number is not None and not is_regressor(estimator):
        raise ConfigError(
            f"{fields.case}: {model.family} predicts no numbers, and the label is one: choose a regressor"
        )
    if fields.number is None and not hasattr(estimator, "predict_proba"):
        raise ConfigError(
            f"{fields.case}: {model.family} gives no probabilities, and the label has classes: choose a classifier "
            "that does, as sklearn:LogisticRegression"
        )


def _targets(fields: Fields, labels: NDArray[Any]) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Labels as estimators take them, and of classes the positions that stand behind them."""
    if fields.number is not None:
        return np.asarray(labels, np.float64), ()
    found, positions = np.unique(np.asarray(labels, np.int64), return_inverse=True)
    if len(found) < 2:
        raise DataError(
            f"{fields.case}: all {len(labels)} training rows have one label: an estimator learns nothing of them; "
            "widen dataset.window_days or dataset.fallback_rows"
        )
    return positions.reshape(-1), tuple(map(int, found))


def _held(design: Design, stopping: Stopping, labels: NDArray[Any], classes: tuple[int, ...]) -> tuple[Any, Any, int]:
    """The rows that say when to stop as the estimator takes them, without classes that it does not learn."""
    rows = stopping.rows
    known = np.ones(len(rows.labels), bool)
    if classes:
        known = np.isin(rows.labels, classes)
        labels = np.searchsorted(classes, rows.labels[known])
    else:
        labels = rows.labels
    tensors = {name: tensor[known] for name, tensor in rows.tensors.items()}
    return designs.matrix(design, tensors), labels, stopping.rounds


def _fit_lightgbm(estimator: Any, design: Design, matrix: Any, labels: Any, held: Any) -> list[float]:
    import lightgbm

    heard = _Heard()
    lightgbm.register_logger(heard)
    more: dict[str, Any] = {}
    if held is not None:
        more = {
            "eval_X": held[0],
            "eval_y": held[1],
            "callbacks": [lightgbm.early_stopping(held[2], first_metric_only=True, verbose=False)],
        }
    estimator.fit(matrix, labels, categorical_feature=design.categories or "auto", **more)
    unknown = re.findall(r"Unknown parameter: (\S+)", "\n".join(heard.lines))
    if unknown:
        raise ConfigError(f"LightGBM knows no parameter {unknown[0]}: see its documentation, or remove it")
    return _first_curve(getattr(estimator, "evals_result_", {})) if held is not None else []


class _Heard:
    """What LightGBM says while it fits, instead of printing it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line)

    warning = info


def _fit_xgboost(estimator: Any, _design: Design, matrix: Any, labels: Any, held: Any) -> list[float]:
    more: dict[str, Any] = {}
    if held is not None:
        estimator.set_params(early_stopping_rounds=held[2])
        more = {"eval_set": [(held[0], held[1])], "verbose": False}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        estimator.fit(matrix, labels, **more)
    unknown = re.findall(r'Parameters: \{ "(\S+?)"', "\n".join(str(one.message) for one in warned))
    if unknown:
        raise ConfigError(f"XGBoost knows no parameter {unknown[0]}: see its documentation, or remove it")
    return _first_curve(estimator.evals_result()) if held is not None else []


def _fit_sklearn(estimator: Any, design: Design, matrix: Any, labels: Any, _held: Any) -> list[float]:
    from sklearn.utils import get_tags
    from sklearn.utils._param_validation import InvalidParameterError

    if design.words is not None and not get_tags(estimator).input_tags.sparse:
        raise ConfigError(
            f"{type(estimator).__name__} takes no sparse rows, which those of a text are: choose another family, such "
            "as sklearn:LogisticRegression or lightgbm"
        )
    try:
        estimator.fit(matrix, labels)
    except InvalidParameterError as error:
        raise ConfigError(f"model.parameters: {error}") from error
    return []


def _first_curve(found: Any) -> list[float]:
    """The first metric of the first rows that were watched, round by round."""
    return [float(value) for metrics in list(found.values())[:1] for value in next(iter(metrics.values()))]
