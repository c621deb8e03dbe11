"""From a family's name and parameters to an estimator that is not fitted yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pipelines.errors import ConfigError
from pipelines.fields import Fields
from pipelines.params import EstimatorParams

Layout = Literal["codes", "filled", "linear", "words", "counts"]
"""How rows are laid out for an estimator, see :mod:`pipelines.estimators.design`."""
OF_TEXTS: frozenset[Layout] = frozenset({"words", "counts"})
"""Layouts of cases with a text."""
SKLEARN = "sklearn:"
MODULES = (
    "linear_model",
    "ensemble",
    "tree",
    "naive_bayes",
    "neighbors",
    "neural_network",
    "svm",
    "discriminant_analysis",
    "pipeline",
    "preprocessing",
    "decomposition",
    "feature_selection",
    "calibration",
    "multiclass",
)
"""Where a class of scikit-learn is looked for by its name."""
EXTRAS = {"lightgbm": "lightgbm", "xgboost": "xgboost"}
"""Families that are optional, and the extra (pyproject.toml) that brings each of them."""
_LAYOUTS: Mapping[str, Layout] = {
    "lightgbm": "codes",
    "xgboost": "codes",
    "sklearn:HistGradientBoostingClassifier": "codes",
    "sklearn:HistGradientBoostingRegressor": "codes",
    "sklearn:RandomForestClassifier": "filled",
    "sklearn:RandomForestRegressor": "filled",
    "sklearn:ExtraTreesClassifier": "filled",
    "sklearn:ExtraTreesRegressor": "filled",
    "sklearn:GradientBoostingClassifier": "filled",
    "sklearn:GradientBoostingRegressor": "filled",
    "sklearn:DecisionTreeClassifier": "filled",
    "sklearn:DecisionTreeRegressor": "filled",
}


@dataclass(frozen=True)
class Running:
    """How an estimator computes: the ``seed`` of all that is random in it, and its ``threads``."""

    seed: int
    threads: int


def layout_of(model: EstimatorParams, fields: Fields) -> Layout:
    """How a family has its rows, if the parameters do not say: trees that know missing values get codes and NaN.

    Other trees get those filled, all others categories by value and scaled numbers. With a text trees get counts of
    words, all others TF-IDF. Raises ConfigError if the parameters say a layout without a place for a text that the case
    has, or one for words and it has none.
    """
    has_text = fields.text is not None
    own = _LAYOUTS.get(model.family, "linear")
    if model.layout == "auto":
        if has_text:
            return "words" if own == "linear" else "counts"
        return own
    if (model.layout in OF_TEXTS) != has_text:
        raise ConfigError(
            f"model.layout: {model.layout} does not suit {fields.case}, which has {'a' if has_text else 'no'} text: "
            "remove it"
        )
    return model.layout


def build(model: EstimatorParams, fields: Fields, running: Running) -> Any:
    """The estimator of a family, with its parameters, not fitted.

    Raises ConfigError for a family that is not installed or not known, or does not take its parameters.
    """
    is_number = fields.number is not None
    if model.family == "lightgbm":
        library = _extra("lightgbm")
        kind = library.LGBMRegressor if is_number else library.LGBMClassifier
        fixed = {"random_state": running.seed, "n_jobs": running.threads, "verbose": 0, "deterministic": True}
        return _made(model.family, kind, {**fixed, "force_row_wise": True, **model.parameters})
    if model.family == "xgboost":
        library = _extra("xgboost")
        kind = library.XGBRegressor if is_number else library.XGBClassifier
        fixed = {"random_state": running.seed, "n_jobs": running.threads}
        return _made(model.family, kind, {**fixed, "tree_method": "hist", **model.parameters})
    return _nested({"family": model.family, "parameters": model.parameters}, running)


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"the family {name} is not installed ({error}): run make setup, or pip install perennial[{EXTRAS[name]}]"
        ) from error


def _nested(given: Mapping[str, Any], running: Running) -> Any:
    """An estimator of scikit-learn, and those that stand in its parameters (the steps of a pipeline)."""
    unknown = set(given) - {"family", "parameters"}
    if unknown:
        raise ConfigError(f"{given['family']}: there is no key {min(unknown)!r}: give family and parameters")
    kind = sklearn_class(given["family"])
    parameters = {name: _value(value, running) for name, value in given.get("parameters", {}).items()}
    return _made(given["family"], kind, _running(kind, running) | parameters)


def _running(kind: Any, running: Running) -> dict[str, Any]:
    """The seed, where a class takes one; threads hold for all by threadpoolctl, and ``n_jobs`` stays at one."""
    from inspect import signature

    known = signature(kind).parameters
    return {"random_state": running.seed} if "random_state" in known else {}


def _value(value: Any, running: Running) -> Any:
    if isinstance(value, Mapping) and "family" in value:
        return _nested(value, running)
    if isinstance(value, list | tuple):
        inner = [_value(item, running) for item in value]
        # A pipeline's steps are pairs; everything else that is a list stays one.
        return tuple(inner) if inner and hasattr(inner[-1], "fit") else inner
    return value


def sklearn_class(family: str) -> Any:
    """The class of ``sklearn:<class>``. Raises ConfigError if there is none of that name among ``MODULES``."""
    name = family.removeprefix(SKLEARN)
    for module in MODULES:
        found = getattr(import_module(f"sklearn.{module}"), name, None)
        if isinstance(found, type):
            return found
    raise ConfigError(
        f"there is no estimator {name} in scikit-learn's {', '.join(MODULES)}: write it as its documentation does, "
        "as in sklearn:LogisticRegression"
    )


def _made(family: str, kind: Any, parameters: Mapping[str, Any]) -> Any:
    try:
        return kind(**parameters)
    except TypeError as error:
        raise ConfigError(f"model.parameters of {family}: {error}: see the documentation of {kind.__name__}") from error
