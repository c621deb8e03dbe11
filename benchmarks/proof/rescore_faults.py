"""Faults for `make proof-rescore`, each planted in a copy of a real state; with the hashes rewritten where it says so.

A rewritten manifest or seal is what a careless restore or a tool that means well leaves: hashes hold, and only scores
can tell. ``cause`` is the part that has to be named, ``words`` are some of which have to be in the message.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from pipelines import encoding, runtime, segments, storage, text
from pipelines.deploy import known
from pipelines.export.scoring import read_fields
from pipelines.export.variants import write_int8
from pipelines.fields import from_json
from pipelines.files import file_sha256
from pipelines.rescoring.diagnosis import Cause
from pipelines.settings import Settings

TABLE, NUMBER, TEXT = "bank", "flights", "triage"
SERVED: Literal["served", "other file"] = "served"
Line = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A fault: what is planted (or patched while rows are scored), where, and what has to be said of it.

    ``span`` names the traffic that is scored again.
    """

    name: str
    case: str
    cause: Cause
    words: tuple[str, ...]
    plant: Callable[[Settings, str], None] = lambda _settings, _case: None
    patch: Callable[[], Any] = nullcontext
    span: str = SERVED


# --- hands --------------------------------------------------------------------------------------


def bundle(settings: Settings, case: str, version: int = 1) -> Path:
    """The folder of a version's bundle."""
    return settings.root / str(known.target(settings, case, version)["bundle"])


def reseal(folder: Path) -> None:
    """Let a manifest name the files as they are now."""
    made = storage.read_manifest(folder, verify=False)
    files = {name: file_sha256(folder / name) for name in made.files if (folder / name).exists()}
    storage.write_manifest(folder, made.model_copy(update={"files": files}))


def of_model(change: Callable[[Any], None], *, sealed: bool = True) -> Callable[[Settings, str], None]:
    """Change the graph of version 1."""

    def plant(settings: Settings, case: str) -> None:
        import onnx

        folder = bundle(settings, case)
        graph = onnx.load(folder / runtime.MODEL)
        change(graph)
        (folder / runtime.MODEL).write_bytes(graph.SerializeToString())
        if sealed:
            reseal(folder)

    return plant


def of_constant(part: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Callable[[Any], None]:
    """Change the constant of a graph whose name has ``part`` in it."""

    def changed(model: Any) -> None:
        from onnx import numpy_helper

        [tensor] = [one for one in model.graph.initializer if part in one.name][:1]
        value = np.array(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), tensor.name))

    return changed


def of_weight(model: Any) -> None:
    """Change a coefficient of a logistic regression."""
    [node] = [node for node in model.graph.node if node.op_type == "LinearClassifier"]
    [given] = [one for one in node.attribute if one.name == "coefficients"]
    given.floats[0] += 0.05
    given.floats[len(given.floats) // 2] -= 0.05


def of_fields(change: Callable[[dict[str, Any]], None]) -> Callable[[Settings, str], None]:
    """Change the declared fields of version 1's bundle, so that all its files agree again."""

    def plant(settings: Settings, case: str) -> None:
        folder = bundle(settings, case)
        declared = json.loads((folder / "fields.json").read_text())
        change(declared)
        (folder / "fields.json").write_text(json.dumps(declared))
        about = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps(about | {"fields_hash": from_json(declared).hash}))
        reseal(folder)

    return plant


def of_lines(
    change: Callable[[list[Line]], list[Line]], *, sealed: bool = True, compacted: bool = True
) -> Callable[[Settings, str], None]:
    """Change the lines of the segment with most rows of version 1; ``compacted``: it was before it was changed."""

    def plant(settings: Settings, case: str) -> None:
        path = largest(settings, case)
        lines = change([json.loads(line) for line in path.read_text().splitlines()])
        data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        path.write_bytes(data)
        if sealed:
            segments.seal(path).write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
        if not compacted:
            shutil.rmtree(settings.lake_dir / case / "predictions")

    return plant


def largest(settings: Settings, case: str) -> Path:
    """The segment with most rows that version 1 answered."""
    folder = settings.prediction_log / case / "predictions"
    return max(folder.glob("*.jsonl"), key=lambda path: path.read_bytes().count(b'"version":1,'))


# --- faults -------------------------------------------------------------------------------------


def _of_other_version(settings: Settings, case: str) -> None:
    mine, theirs = bundle(settings, case), bundle(settings, case, 2)
    for name in storage.read_manifest(mine, verify=False).files:
        if (theirs / name).exists():
            shutil.copy(theirs / name, mine / name)
    reseal(mine)


def _int8_in_bundle(settings: Settings, case: str) -> None:
    folder = bundle(settings, case)
    write_int8(folder).replace(folder / runtime.MODEL)
    reseal(folder)


def _gone(settings: Settings, case: str) -> None:
    shutil.rmtree(bundle(settings, case))


def _lost_segment(settings: Settings, case: str) -> None:
    largest(settings, case).unlink()
    shutil.rmtree(settings.lake_dir / case / "predictions")


def _truncated_partition(settings: Settings, case: str) -> None:
    path = next((settings.lake_dir / case / "predictions").glob("date=*/hour=*/*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])


def _tokenizer(settings: Settings, case: str, *, named: bool) -> None:
    """Two words of the tokenizer change their ids: that of an earlier training."""
    folder = bundle(settings, case)
    tokenizer = json.loads((folder / text.TOKENIZER).read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in ("the", "in", "to", "a", "of") if word in vocabulary][:2]
    first, second = words if isinstance(vocabulary, dict) else (0, 1)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / text.TOKENIZER).write_text(json.dumps(tokenizer))
    if named:
        about = json.loads((folder / "bundle.json").read_text())
        about["tokenizer_sha256"] = file_sha256(folder / text.TOKENIZER)
        (folder / "bundle.json").write_text(json.dumps(about))
    reseal(folder)


def _scale(settings: Settings, case: str) -> None:
    """A number is scaled before it becomes float32, by constants that the training did not find."""
    folder = bundle(settings, case)
    about = json.loads((folder / "bundle.json").read_text())
    name = read_fields(folder).numeric[0].name
    about["scales"] = {**about.get("scales", {}), name: {"loc": 0.0, "scale": 0.01}}
    (folder / "bundle.json").write_text(json.dumps(about))
    reseal(folder)


def _other_model_in_triton(settings: Settings, case: str) -> None:
    """Triton's folder of the version still holds the file of another one, as it did when it answered."""
    shutil.copy(bundle(settings, case, 1) / runtime.MODEL, settings.model_repository / case / "2" / runtime.MODEL)


def _swap(values: list[Any]) -> None:
    values[0], values[1] = values[1], values[0]


def _swap_values(declared: dict[str, Any]) -> None:
    [field, *_] = [one for one in declared["fields"] if len(one.get("values", ())) > 1]
    _swap(field["values"])


def _reorder(declared: dict[str, Any]) -> None:
    places = [place for place, one in enumerate(declared["fields"]) if one.get("values")]
    fields = declared["fields"]
    fields[places[0]], fields[places[1]] = fields[places[1]], fields[places[0]]


def _rows_of(lines: list[Line], version: int = 1) -> list[Line]:
    return [line for line in lines if line["version"] == version]


def _edited_score(lines: list[Line]) -> list[Line]:
    line = _rows_of(lines)[5]
    line["score"] = round(line["score"] * 0.9, 6)
    return lines


def _edited_decision(lines: list[Line]) -> list[Line]:
    line = _rows_of(lines)[5]
    line["prediction"] = 1 - line["prediction"]
    return lines


def _edited_feature(lines: list[Line]) -> list[Line]:
    row = _rows_of(lines)[7]["row"]
    row["euribor3m"] = 1.0 if row["euribor3m"] > 3 else 4.9
    return lines


def _unknown_value(lines: list[Line]) -> list[Line]:
    _rows_of(lines)[3]["row"]["job"] = "astronaut"
    return lines


def _other_version(lines: list[Line]) -> list[Line]:
    for line in lines:
        line["version"] = 2
    return lines


def _unknown_version(lines: list[Line]) -> list[Line]:
    for line in lines[:20]:
        line["version"] = 77
    return lines


def _dropped(lines: list[Line]) -> list[Line]:
    for line in lines:
        del line["row"]["euribor3m"]
    return lines


def _permute(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return value[[1, 0, *range(2, len(value))]]


def _of_trees(model: Any, name: str) -> Any:
    """An attribute of a tree ensemble."""
    [trees] = [node for node in model.graph.node if node.op_type == "TreeEnsembleRegressor"]
    [found] = [one for one in trees.attribute if one.name == name]
    return found


def _other_way(model: Any) -> None:
    given = _of_trees(model, "nodes_missing_value_tracks_true")
    given.ints[:] = [1 - way for way in given.ints]


def _larger(model: Any) -> None:
    given = _of_trees(model, "target_weights")
    given.floats[:] = [1.01 * weight for weight in given.floats]


def _swap_classes(model: Any) -> None:
    of_constant("head.weight", _permute)(model)
    of_constant("head.bias", _permute)(model)


@contextmanager
def _patched(home: Any, name: str, changed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    with mock.patch.object(home, name, changed(getattr(home, name))):
        yield


def _shifted(codes: Callable[..., list[int]]) -> Callable[..., list[int]]:
    return lambda field, values: [(code + 1) % field.size for code in codes(field, values)]


def _rounded(encode: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    def changed(*given: Any, **more: Any) -> Mapping[str, Any]:
        tensors = dict(encode(*given, **more))
        return tensors | {"numeric": np.round(tensors["numeric"])}

    return changed


def _longer(pad: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    def changed(ids: Any, to: int | None = None) -> Mapping[str, Any]:
        tensors = dict(pad(ids, to))
        return tensors | {"attention_mask": np.ones_like(tensors["attention_mask"])}

    return changed


def _approximate(score: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **more: np.round(score(*given, **more), 3)


FAULTS = (
    Fault("changed ONNX weight", TABLE, "artefact", ("sha256",), of_model(of_weight, sealed=False)),
    Fault("changed ONNX weight, manifest rewritten", TABLE, "artefact", (), of_model(of_weight)),
    Fault("wrong version's bundle, manifest rewritten", TABLE, "artefact", ("version 2",), _of_other_version),
    Fault("bundle gone", TABLE, "artefact", ("gone",), _gone),
    Fault("swapped vocabulary, hashes rewritten", TABLE, "artefact", ("version 1",), of_fields(_swap_values)),
    Fault("changed field order, hashes rewritten", TABLE, "artefact", ("holdout",), of_fields(_reorder)),
    Fault("changed scale of a number, manifest rewritten", TABLE, "artefact", ("version 1",), _scale),
    Fault("edited score in a segment", TABLE, "log", ("segment",), of_lines(_edited_score, sealed=False)),
    Fault("edited score, seal rewritten", TABLE, "log", ("lines",), of_lines(_edited_score)),
    Fault(
        "edited score, seal rewritten before it was compacted",
        TABLE,
        "log",
        ("lines",),
        of_lines(_edited_score, compacted=False),
    ),
    Fault("edited decision, seal rewritten", TABLE, "log", ("decision",), of_lines(_edited_decision)),
    Fault("edited feature in a log row, seal rewritten", TABLE, "log", ("lines",), of_lines(_edited_feature)),
    Fault("undeclared value in a log row, seal rewritten", TABLE, "log", ("job",), of_lines(_unknown_value)),
    Fault("rows that name another version, seal rewritten", TABLE, "log", ("version 1",), of_lines(_other_version)),
    Fault("rows that name an unknown version", TABLE, "log", ("no version 77",), of_lines(_unknown_version)),
    Fault("dropped column, seal rewritten", TABLE, "log", ("euribor3m",), of_lines(_dropped)),
    Fault("lost segment", TABLE, "log", ("gone",), _lost_segment),
    Fault("truncated partition", TABLE, "log", ("partition",), _truncated_partition),
    Fault(
        "another model's file in Triton while it answered",
        TABLE,
        "runtime",
        ("Triton",),
        _other_model_in_triton,
        span="other file",
    ),
    Fault("the same, mended since", TABLE, "runtime", ("version 1",), span="other file"),
    Fault(
        "changed encoder: codes",
        TABLE,
        "encoder",
        ("categorical",),
        patch=lambda: _patched(encoding, "_codes", _shifted),
    ),
    Fault(
        "changed encoder: rounded numbers",
        TABLE,
        "encoder",
        ("numeric",),
        patch=lambda: _patched(encoding, "encode", _rounded),
    ),
    Fault(
        "changed runtime", TABLE, "runtime", ("ONNX Runtime",), patch=lambda: _patched(runtime, "score", _approximate)
    ),
    Fault(
        "stale tokenizer, manifest rewritten",
        TEXT,
        "artefact",
        ("tokenizer",),
        lambda s, c: _tokenizer(s, c, named=False),
    ),
    Fault(
        "stale tokenizer, all hashes rewritten",
        TEXT,
        "artefact",
        ("holdout",),
        lambda s, c: _tokenizer(s, c, named=True),
    ),
    Fault("int8 swap in the bundle, manifest rewritten", TEXT, "artefact", (), _int8_in_bundle),
    Fault("swapped classes, manifest rewritten", TEXT, "artefact", (), of_model(_swap_classes)),
    Fault("other padding", TEXT, "encoder", ("attention_mask",), patch=lambda: _patched(encoding, "pad", _longer)),
    Fault(
        "missing values go the other way, manifest rewritten",
        NUMBER,
        "artefact",
        (),
        of_model(_other_way),
    ),
    Fault(
        "changed scale of the predicted number, manifest rewritten",
        NUMBER,
        "artefact",
        (),
        of_model(_larger),
    ),
)
