"""What ``train.search`` may change: dotted paths of a case's parameters, and the parameters that a trial has."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.params import Choices, Dimension, EstimatorParams, Params, TrainParams

FIXED = frozenset({"search", "compare_share"})
"""Of the block ``train``: how candidates are compared, which no trial may change."""
ESTIMATORS_READ = frozenset({"seed", "validation_share", "patience"})
"""Keys of the block ``train`` that estimators read; of the others they know nothing."""


def space_of(params: Params, name: str) -> dict[str, Dimension]:
    """The part of the space that changes one of the candidates, by dotted path."""
    if params.train.search is None:
        return {}
    is_estimator = isinstance(params.candidates[name], EstimatorParams)
    own = "model." if not params.models else f"models.{name}."
    found = {}
    for path, dimension in params.train.search.space.items():
        block, _, key = path.partition(".")
        told = block == "train" and (not is_estimator or key in ESTIMATORS_READ)
        if path.startswith(own) or told:
            found[path] = dimension
    return found


def changed(params: Params, name: str, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A candidate's model and train parameters as plain data, with ``values`` at their dotted paths.

    Raises KeyError, with the part of the path, for one that is not there.
    """
    model = params.candidates[name].model_dump(mode="json")
    train: dict[str, Any] = {}
    for path, value in values.items():
        block, *keys = path.split(".")
        if block == "train":
            [key] = keys
            if key not in TrainParams.model_fields or key in FIXED:
                raise KeyError(key)
            train[key] = value
        else:
            _put(model, keys if block == "model" else keys[1:], value)
    return model, train


def _put(at: Any, keys: list[str], value: Any) -> None:
    """Set a value in nested plain data; what an estimator's ``parameters`` hold may be new."""
    above = ""
    for number, key in enumerate(keys):
        place: Any = key
        if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
            place = int(key)
        elif not isinstance(at, dict) or (key not in at and above != "parameters"):
            raise KeyError(key)
        if number == len(keys) - 1:
            at[place] = value
            return
        above, at = key, at[place]
    raise KeyError("")


def mistakes(params: Params) -> dict[str, str]:
    """What is wrong with the space, by its place in the file: paths that are not there, ends that they do not take."""
    if params.train.search is None:
        return {}
    found = {}
    for path, dimension in params.train.search.space.items():
        what = _mistake(params, path, dimension)
        if what:
            found[f"train.search.space.{path}"] = what
    return found


def _mistake(params: Params, path: str, dimension: Dimension) -> str:
    block, *keys = path.split(".")
    if block not in {"model", "models", "train"} or not keys:
        return "is no path that can be searched: write model.<key>, models.<name>.<key> or train.<key>"
    if block == "model" and params.models:
        return f"several models are declared: write models.<name>.{'.'.join(keys)}"
    if block == "models" and (keys[0] not in params.models or len(keys) < 2):
        return f"there is no model {keys[0]!r}: choose one of {', '.join(params.models) or 'model.<key>'}"
    if block == "train" and len(keys) > 1:
        return f"there is no such key in train: {_like(keys[0], TrainParams.model_fields)}"
    unread = not any(path in space_of(params, name) for name in params.candidates)
    if block == "train" and keys[0] in TrainParams.model_fields and unread:
        return f"no declared model reads it: of train estimators read {', '.join(sorted(ESTIMATORS_READ))}"
    name = keys[0] if block == "models" else next(iter(params.candidates))
    for value in ends(dimension):
        try:
            model, train = changed(params, name, {path: value})
            params.alone(model, train)
        except KeyError as error:
            known = TrainParams.model_fields if block == "train" else params.candidates[name].model_dump()
            return f"there is no such key: {_like(str(error.args[0]), [key for key in known if key not in FIXED])}"
        except ValidationError as error:
            said = error.errors(include_url=False)[0]
            more = ", or write integer: true" if said["type"] in {"int_type", "int_from_float"} else ""
            return f"does not take {json.dumps(value)}: {said['msg'].removeprefix('Value error, ')}{more}"
    return ""


def ends(dimension: Dimension) -> list[Any]:
    """The values that stand for a dimension when it is checked: its choices, or both ends."""
    if isinstance(dimension, Choices):
        return list(dimension.choices)
    kind = int if dimension.integer else float
    return [kind(dimension.low), kind(dimension.high)]


def _like(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
