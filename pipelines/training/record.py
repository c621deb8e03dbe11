"""The record of a training: everything its weights depend on, and who asked for it, as plain JSON.

Eight categories. The first four and ``environment`` hold what must be equal for equal weights on a machine, and
nothing that differs between two runs of the same training; who, why and when stand in ``governance``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipelines import storage
from pipelines.contracts import Manifest
from pipelines.files import file_sha256
from pipelines.params import AnyModel, EstimatorParams, Params
from pipelines.provenance import provenance
from pipelines.training import metrics

FILE = "record.json"
VERSION = 1
CATEGORIES = ("code", "data", "features", "configuration", "metrics", "artefacts", "environment", "governance")
FEATURE_SPEC = 2
"""Version of how rows become tensors (pipelines/encoding.py), raised when equal rows would give other tensors."""


def training_record(
    folder: Path,
    *,
    params: Params,
    as_of: datetime,
    dataset: Manifest,
    source: Mapping[str, Any],
    fields_hash: str,
    modules: Sequence[str],
    case_code: str,
    facts: Mapping[str, Any],
    base_weights: str | None,
    champion: str | None,
    governance: Mapping[str, Any],
    choice: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of the training whose files lie in ``folder`` (a train step's, not yet committed).

    ``source`` says where the rows came from (name, kind, sha256, notice), ``modules`` are the dotted modules and
    packages that did the work, ``case_code`` is the sha256 of the case's own files, ``base_weights`` that of what a
    pre-trained encoder started from, ``champion`` the key of the training that a warm start went on from. ``params``
    are those that the weights depend on: where they were chosen among several candidates, ``choice`` says of which.
    """
    train = params.train
    origin = provenance()
    is_estimator = isinstance(params.model, EstimatorParams)
    on_gpus = params.resources.gpus > 0 and not is_estimator
    device = "cpu"
    if on_gpus:
        device = "cuda"
    tokenizer = folder / "tokenizer.json"
    tokenizer_sha256 = None
    if tokenizer.exists():
        tokenizer_sha256 = file_sha256(tokenizer)
    return {
        "version": VERSION,
        "code": {
            "commit": origin["commit"],
            "dirty": origin["dirty"],
            "case": case_code,
            "sources": {name: source_sha256(name) for name in modules},
        },
        "data": {
            "dataset": dataset.key,
            "files": dict(dataset.files),
            "rows": facts["rows"],
            "rule": dataset.facts.get("rule"),
            "window": dataset.facts.get("window"),
            "source": {name: source.get(name) for name in ("name", "kind", "sha256")},
        },
        "features": {
            "fields": fields_hash,
            "spec": FEATURE_SPEC,
            "tokenizer": tokenizer_sha256,
            "scales": facts.get("scales", {}),
            "constant": facts.get("constant", []),
        },
        "configuration": {
            "params": params.model_dump(mode="json"),
            "seed": train.seed,
            "strategy": facts["strategy"],
            "world_size": 1 if is_estimator else train.ranks,
            "precision": facts["precision"],
            "device": device,
            **({} if choice is None else {"choice": dict(choice)}),
        },
        "metrics": _curves(folder / metrics.FILE, facts),
        "artefacts": {"weights": facts["weights_sha256"], "base_weights": base_weights, "champion": champion},
        "environment": environment(train.threads, gpus=on_gpus) | _library(params.model),
        "governance": {
            "case": params.case,
            "as_of": as_of.isoformat(),
            **governance,
            "notice": source.get("notice"),
            "written_at": origin["written_at"],
        },
    }


def environment(threads: int, *, gpus: bool) -> dict[str, Any]:
    """What computes: interpreter, libraries, processor; the GPUs only where they are used, as asking starts CUDA."""
    names: list[str] = []
    cuda = None
    if gpus:
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        cuda = torch.version.cuda
    return {
        "lock": provenance()["lock"],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_config": storage.digest(torch.__config__.show()),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "gpu": names,
        "cuda": cuda,
    }


def _library(model: AnyModel) -> dict[str, str]:
    """The version of the library that an estimator is of."""
    if not isinstance(model, EstimatorParams):
        return {}
    return {"estimators": f"{model.library} {version(model.library)}"}


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor() or os.uname().machine,
    )


def source_sha256(module: str) -> str:
    """sha256 over the source of a dotted module, or over all files of a dotted package, with their names."""
    spec = find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"{module} is no module of this program")
    # A package is known by its folders: a case's may be without __init__.py.
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [(path.relative_to(folder), path) for folder in folders for path in sorted(folder.rglob("*.py"))]
    if not folders:
        assert spec.origin is not None
        files = [(Path(Path(spec.origin).name), Path(spec.origin))]
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _curves(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A reference to the metrics by step, and their ends; a training without a loop has none."""
    about = {
        "steps": facts["steps"],
        "epochs": facts["epochs"],
        "stopped": facts["stopped"],
        "resumed_from": facts["resumed_from"],
    }
    if not path.exists():
        return {"file": None, **about}
    lines = metrics.read(path)
    losses = [line["loss"] for line in lines if "loss" in line]
    first = None
    last = None
    if losses:
        first = losses[0]
        last = losses[-1]
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "loss_first": first,
        "loss_last": last,
        "validations": sum("validation_loss" in line for line in lines),
        **about,
    }


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Leave the record beside the weights."""
    (folder / FILE).write_text(json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
