"""A case's params.yaml: read as plain data, checked as a whole, every mistake named with its place and what to do."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from pipelines import case_files, search_space
from pipelines.errors import ConfigError
from pipelines.params import DECLARED, LABEL, METRICS, MODELS, Metric, Params
from pipelines.settings import Settings, read_settings


def params_file(case: str, settings: Settings) -> Path:
    """The file that a case's parameters are read from.

    ``<case>.yaml`` in ``PERENNIAL_PARAMS_DIR``, else its own params.yaml.
    """
    own = settings.params_dir
    if own is not None and (own / f"{case}.yaml").exists():
        return own / f"{case}.yaml"
    return case_files.folder_of(case) / "params.yaml"


def load_params(case: str, path: Path | None = None) -> Params:
    """Read and check a case's parameters.

    ConfigError names every mistake: unknown keys and names, keys that stand twice, impossible values. They are those of
    ``path``, else of ``<case>.yaml`` in the folder ``PERENNIAL_PARAMS_DIR``, else the case's own.
    """
    if path is None:
        place = case_files.place_of(case)
        if place is None:
            found = case_files.case_names()
            near = difflib.get_close_matches(case, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(found)}"
            raise ConfigError(f"unknown case {case!r}: {hint}")
        if place.problem:
            raise ConfigError(f"case {case}: {place.problem}")
        path = params_file(case, read_settings())
    raw, mistakes = _plain_data(path)
    if isinstance(raw, dict) and isinstance(said := raw.get("case", case), str) and said != case:
        raise ConfigError(
            f"{path} says case: {said}, but it stands for the case {case}: write case: {case} there, or give it its "
            "own case's file"
        )
    mistakes |= _unknown_names(case, raw)
    raw = _first_model(_one_price(raw))
    try:
        # Through JSON on purpose: YAML reads 2e-5 as text and dates as dates, JSON mode knows one way only.
        params = Params.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        for one in error.errors(include_url=False)[:MOST_MISTAKES]:
            mistakes.setdefault(*_described(one, raw))
    else:
        mistakes |= search_space.mistakes(params)
    if mistakes:
        lines = [f"{name}: {what}" for name, what in mistakes.items()]
        least = "at least " if len(lines) >= MOST_MISTAKES else ""
        raise ConfigError(f"{path} has {least}{len(lines)} mistake(s): " + "; ".join(lines[:MOST_MISTAKES]))
    return params


def _one_price(raw: Any) -> Any:
    """The values with ``headroom.price`` where a file of an earlier release says ``replay.price_per_retrain``.

    Where it says both, the old name stays and is refused as unknown.
    """
    replay = raw.get("replay") if isinstance(raw, dict) else None
    if not isinstance(replay, dict) or "price_per_retrain" not in replay:
        return raw
    block = raw.get("headroom") or {}
    if not isinstance(block, dict) or "price" in block:
        return raw
    rest = {name: own for name, own in replay.items() if name != "price_per_retrain"}
    return {**raw, "replay": rest, "headroom": {**block, "price": replay["price_per_retrain"]}}


def _first_model(raw: Any) -> Any:
    """The values with the first of ``models`` as the ``model`` where a file gives none."""
    models = raw.get("models") if isinstance(raw, dict) else None
    if not isinstance(models, dict) or not models or "model" in raw:
        return raw
    return {**raw, "model": next(iter(models.values()))}


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values.

    Raises ConfigError if it is none, or if a key stands twice in it (YAML itself would take the last).
    """
    value, twice = _plain_data(path)
    if twice:
        raise ConfigError(
            f"{path} has {len(twice)} mistake(s): " + "; ".join(f"{name}: {what}" for name, what in twice.items())
        )
    return value


MOST_BYTES, MOST_LEVELS, MOST_MISTAKES = 64 * 1024, 20, 50
"""What a file of parameters may hold: bytes, and levels of blocks in blocks; and how many mistakes are told at once."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without what stands for something that stands elsewhere.

    A few hundred bytes of aliases can stand for billions of values.
    """

    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; one that must not be there is refused.

        YAMLError, with the line, if it is an alias, has an anchor, is a merge key or lies too deep.
        """
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = getattr(event, "anchor", None)
        line = event.start_mark.line + 1
        if anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise yaml.YAMLError(
                f"line {line}: {sign}{anchor} is an alias or its anchor, which parameters may not have: "
                "write the values out"
            )
        if self.levels >= MOST_LEVELS:
            raise yaml.YAMLError(
                f"line {line}: more than {MOST_LEVELS} levels of blocks in blocks: parameters have four at most"
            )
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        if node is not None and node.tag == "tag:yaml.org,2002:merge":
            raise yaml.YAMLError(
                f"line {line}: << merges another block, which parameters may not do: write the keys out"
            )
        return node


def _plain_data(path: Path) -> tuple[Any, dict[str, str]]:
    """What a YAML file holds, and by name the keys that stand in it twice."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"{path} has more than {MOST_BYTES // 1024} KiB: parameters are a few pages; "
                "move data into files that the case's source reads"
            )
        loader = _PlainLoader(data.decode("utf-8"))
        root = loader.get_single_node()
        if root is None:
            return None, {}
        twice = dict(islice(_twice(root), MOST_MISTAKES))
        value = loader.construct_document(root)
        json.dumps(value, default=str)  # plain data is what JSON can say
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: every case needs a params.yaml") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): mend it") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8: save the file as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} holds YAML that is no plain data ({error}): write keys, values and lists only"
        ) from error
    return value, twice


def _twice(node: yaml.Node, above: str = "") -> Iterator[tuple[str, str]]:
    """The keys that stand twice in one mapping, at any depth, with their lines."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in lines:
                yield f"{above}{name}", f"stands in line {lines[name]} and again in line {line}: remove one of them"
            lines[name] = line
            yield from _twice(value, f"{above}{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _twice(item, f"{above}{number}.")


_NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?")


def _described(error: Any, raw: Any) -> tuple[str, str]:
    """Where a mistake that pydantic found stands in the file, and what it is."""
    place: list[str] = []
    at = raw
    missing = error["type"] in {"missing", "extra_forbidden"}
    for step in error["loc"]:
        # What is not in the file is pydantic's own: the kind of a block, the type of a value.
        if (isinstance(at, dict) and step in at) or (isinstance(at, list) and isinstance(step, int) and step < len(at)):
            at = at[step]
        elif not (missing and step == error["loc"][-1]):
            continue
        place.append(str(step))
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        what = f"there is no such key: {_like(place[-1], _keys_beside(error['loc']))}"
    elif isinstance(at, str) and error["type"] in {"float_type", "int_type"} and _NUMBER.fullmatch(at):
        what = f"{at} is text in YAML: write it with a point and a sign, as in 2.0e-5"
    elif place[:1] == ["source"] and error["type"] != "value_error":
        what = "write text, a finite number, true, false or null"
    return ".".join(place) or "file", what


def _keys_beside(loc: Sequence[Any]) -> list[str]:
    """The keys that the block of an unknown key has."""
    blocks: list[type[BaseModel]] = [Params]
    for step in loc[:-1]:
        if known := [block.model_fields[step] for block in blocks if step in block.model_fields]:
            blocks = [model for field in known for model in _models(field.annotation)]
        else:  # the kind of a model
            blocks = [block for block in blocks if MODELS.get(step, block) is block]
    return [name for block in blocks for name in block.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _like(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if known:
        return f"choose one of {', '.join(known)}"
    return "remove it"


def _unknown_names(case: str, raw: Any) -> dict[str, str]:
    """Names in a case's parameters that have to be there in the case itself, and are not."""
    block = {name: value for name, value in raw.items() if isinstance(value, dict)} if isinstance(raw, dict) else {}
    found: dict[str, str] = {}
    if (fields := _fields_of(case)) is not None:
        found |= _misfits(block.get("gate", {}), fields)
        found |= _misfits_of_experiment(block.get("rollout", {}).get("experiment"), fields)
        key = block.get("rollout", {}).get("key")
        if isinstance(key, str) and key not in fields.names:
            found["rollout.key"] = f"{key!r} is no field or attribute of the case: {_like(key, fields.names)}"
        if fields.number is not None and "min_metric_drop" not in block.get("drift", {}):
            found["drift.min_metric_drop"] = f"is in squared {fields.number.unit}: give what a retraining has to save"
        groups = (fields.groups, "no category, whole number or label")
        measured = (fields.measured, "nothing that is measured")
        for above, key, (known, what) in (("gate", "slices", groups), ("drift", "ignore", measured)):
            given = block.get(above, {}).get(key)
            for number, name in enumerate(given[:MOST_MISTAKES] if isinstance(given, list) else []):
                place = f"{above}.{key}.{number}"
                if isinstance(name, str) and name not in known and place not in found:
                    found[place] = f"{name!r} is {what} of the case: {_like(name, known)}"
    folder = case_files.folder_of(case)
    whole = (folder / "schema.py").exists()
    found |= _of_source(case, block.get("source", {}), fields, whole=whole)
    own_probe = block.get("headroom", {}).get("family") == "own"
    if own_probe and whole and not (folder / "probe.py").exists():
        found["headroom.family"] = "the case has no probe.py: write it, or choose auto, logistic or boosting"
    variant = block.get("replay", {}).get("variant")
    variants = sorted(path.parent.name for path in (folder / "variants").glob(f"*/{case}.yaml"))
    if isinstance(variant, str) and whole and variant not in variants:
        found["replay.variant"] = f"the case has no variants/{variant}/{case}.yaml: {_like(variant, variants)}"
    return found


def _of_source(case: str, source: dict[str, Any], fields: Any, *, whole: bool) -> dict[str, str]:
    """Names of a declared source, or settings of the case's own, that mean nothing there."""
    kind = source.get("kind")
    if isinstance(kind, str) and kind in DECLARED:
        return _unknown_columns(source.get("columns"), fields)
    if not whole:
        return {}
    folder = case_files.folder_of(case)
    if kind is not None and not (folder / "source.py").exists():
        return {"source.kind": f"{kind!r} is no kind of source: {_like(str(kind), DECLARED)}"}
    found = {}
    for name in _unread(case, map(str, islice(source, MOST_MISTAKES))):
        near = difflib.get_close_matches(name, re.findall(r"(\w+)(?=[\"']|\s*[:=])", _text(folder)), n=1)
        mend = f"did you mean {near[0]!r}?" if near else "remove it, or read it there"
        found[f"source.{name}"] = f"nothing in the case's code reads such a setting: {mend}"
    return found


def _unknown_columns(columns: Any, fields: Any) -> dict[str, str]:
    """The names of a declared source's columns that are none of ours."""
    if not isinstance(columns, dict) or fields is None:
        return {}
    known = ["id", "event_time", "label_time", *fields.names, fields.label]
    strange = [str(name) for name in columns if name not in known]
    return {
        f"source.columns.{name}": f"a row has no {name!r}, and our names stand before theirs: {_like(name, known)}"
        for name in strange[:MOST_MISTAKES]
    }


def _target_kind(fields: Any) -> str:
    if fields.number is not None:
        return "number"
    return "classes" if fields.classes else "binary"


def _misfits(gate: dict[str, Any], fields: Any) -> dict[str, str]:
    """What of a gate's parameters does not fit the target or the fields, by its place."""
    kind = _target_kind(fields)
    floors = gate.get("floors")
    metrics = {"gate.metric": gate.get("metric")}
    metrics |= {f"gate.floors.{name}": name for name in (floors if isinstance(floors, dict) else {})}
    known = METRICS[kind]
    found = {
        place: f"{name} does not fit the label, which is {_TARGETS[kind]}: choose one of {', '.join(known)}"
        for place, name in metrics.items()
        if name in get_args(Metric) and name not in known
    }
    groups, baseline = [field.name for field in fields.categorical], gate.get("baseline")
    if isinstance(baseline, str) and baseline not in groups:
        found["gate.baseline"] = f"{baseline!r} is no category or flag of the case: {_like(baseline, groups)}"
    costs, outcomes = gate.get("costs"), len(fields.classes) or 2
    square = isinstance(costs, list) and all(isinstance(row, list) and len(row) == len(costs) for row in costs)
    if square and costs and len(costs) != outcomes:
        found["gate.costs"] = f"has {len(costs)} rows, and the label has {outcomes} classes: give a row for each"
    numbers = [field.name for field in fields.numeric if field.name in fields.names]  # rows have no derived ones
    slices = gate.get("slices")
    for number, one in enumerate(slices[:MOST_MISTAKES] if isinstance(slices, list) else []):
        place = f"gate.slices.{number}"
        if isinstance(one, str) and one in numbers and one not in fields.groups:
            found[place] = (
                f"{one!r} is no category, whole number or label of the case but a number that hardly two rows share: "
                f"give bins, as in {{field: {one}, bins: [30, 50]}}"
            )
        elif isinstance(one, dict) and isinstance(name := one.get("field"), str) and name not in numbers:
            found[f"{place}.field"] = (
                f"{name!r} is no number of the case, and only numbers have bins: {_like(name, numbers)}"
            )
    return found


def _misfits_of_experiment(experiment: Any, fields: Any) -> dict[str, str]:
    """What of an experiment's parameters does not fit the target, by its place."""
    if not isinstance(experiment, dict) or experiment.get("outcome") != LABEL:
        return {}
    place = "rollout.experiment"
    if fields.classes:
        why = f"label is one of {len(fields.classes)} classes, which have no mean to compare"
        return {f"{place}.outcome": f"{why}: post a figure for each prediction and give its name"}
    if fields.number is None:
        if "effect" in experiment:
            return {f"{place}.effect": "the label is yes or no, whose comparison needs none: remove it"}
        return {}
    if experiment.get("bandit") is True:
        return {f"{place}.bandit": "the label is a number, whose comparison holds for one weight alone: remove it"}
    if experiment.get("units") is None and experiment.get("effect") is None:
        why = "the label is a number: an experiment on it needs units, at which it ends, or effect"
        return {place: f"{why}, the size of difference that is looked for ({fields.number.unit})"}
    return {}


_TARGETS = {"binary": "binary", "classes": "one of several classes", "number": "a number"}


def _unread(case: str, settings: Iterable[str]) -> list[str]:
    """The settings of a source that are no word in the case's code.

    Nor in that of the other cases, which it may build on.
    """
    left = list(settings)
    for folder in (case_files.folder_of(case), case_files.CASES_ROOT, Path(__file__).parent / "cases"):
        left = [name for name in left if not re.search(rf"\b{re.escape(name)}\b", _text(folder))] if left else left
    return left


def _text(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.py")))


def _fields_of(case: str) -> Any:
    """The case's declaration, which stands above this room and so is found by its name.

    None if it cannot be read: that is told where it is used.
    """
    try:
        return import_module(f"pipelines.cases.{case}.schema").FIELDS
    except (Exception, SystemExit):  # noqa: BLE001 - whatever is wrong with a case's own code
        return None
