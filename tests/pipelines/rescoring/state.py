"""A state of `bank` with versions that answer and a log of their answers: no training, no service, real scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, runtime, segments, storage
from pipelines.cases import load_fields
from pipelines.contracts import Evidence, Order, Verdict
from pipelines.fields import to_json
from pipelines.files import file_sha256
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, T0, rows, write_onnx
from tests.pipelines.data import loglines

FIELDS = load_fields(CASE)
HOUR = timedelta(hours=1)


def as_of(version: int) -> datetime:
    """When a version was trained."""
    return T0 + timedelta(days=30 * (version - 1))


def bundle(settings: Settings, version: int) -> Path:
    """A version's bundle."""
    return settings.run_dir(CASE, as_of(version)) / "export"


def trained(settings: Settings, version: int, bias: float, *, released: bool = True) -> Path:
    """A version of this ``bias`` with its holdout's scores and its verdict, as a training run leaves it; its bundle."""
    run_dir = settings.run_dir(CASE, as_of(version))
    holdout = rows(FIELDS, 40, seed=version)
    keys: dict[str, str] = {}

    def commit(step: str, inputs: tuple[str, ...], build: Callable[[Path], dict[str, Any]]) -> None:
        sources = {name: keys[name] for name in inputs}
        keys[step] = storage.step_key(step, 1, sources, {"version": version})
        storage.commit(run_dir / step, case=CASE, as_of=as_of(version), key=keys[step], inputs=sources, build=build)

    def export(folder: Path) -> dict[str, Any]:
        write_onnx(folder / "model.onnx", FIELDS, bias)
        about = {"case": CASE, "fields_hash": FIELDS.hash, "dataset_key": keys["dataset"]}
        (folder / "bundle.json").write_text(json.dumps(about))
        (folder / "fields.json").write_text(json.dumps(to_json(FIELDS)))
        return {"fields_hash": FIELDS.hash}

    def evaluate(folder: Path) -> dict[str, Any]:
        scores = answers(run_dir / "export", holdout)
        holdout.select("id", challenger=pl.Series(scores)).write_parquet(folder / "scores.parquet")
        return {}

    commit("dataset", (), lambda folder: holdout.write_parquet(folder / "holdout.parquet") or {})
    commit("export", ("dataset",), export)
    commit("evaluate", ("dataset", "export"), evaluate)
    commit("gate", ("evaluate",), lambda _folder: {})
    commit("register", ("gate", "export"), lambda _folder: {"version": version, "mlflow_run": f"run-{version}"})
    evidence = Evidence(metric="log_loss", n=40, positives=20, opponent="base_rate", lift=None)
    verdict = Verdict(decision="promote", rule="test", reason="test", evidence=evidence, min_lift=0.0)
    ledger.record_verdict(
        settings.ledger, case=CASE, gate_key=keys["gate"], as_of=as_of(version), trigger="manual", verdict=verdict
    )
    if released:
        head = ledger.head(settings.ledger, CASE)
        order = Order(
            case=CASE,
            after=0 if head is None else head.seq,
            champion=version,
            candidate_key=keys["export"],
            bundle=str((run_dir / "export").relative_to(settings.root)),
            action="promote",
            trigger="manual",
            reason="test",
            actor="test",
            as_of=as_of(version),
        )
        ledger.append(settings.ledger, order)
    return run_dir / "export"


def answers(folder: Path, frame: pl.DataFrame) -> Any:
    """What a bundle answers to rows."""
    return runtime.score_rows(folder, FIELDS, {name: frame[name].to_list() for name in FIELDS.reads})


def traffic(version: int, count: int, seed: int = 7, every: timedelta = HOUR) -> pl.DataFrame:
    """Rows that a version is asked for, from its training on."""
    moments = [as_of(version) + every * number for number in range(count)]
    frame = rows(FIELDS, count, seed=seed)
    return frame.with_columns(event_time=pl.Series(moments), label_time=pl.Series(moments))


def lines(settings: Settings, version: int, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The gateway's lines of a version's answers."""
    scores = answers(bundle(settings, version), frame).tolist()
    found = loglines.predictions(frame, FIELDS, version)
    return [line | {"score": score, "prediction": int(score >= 0.5)} for line, score in zip(found, scores, strict=True)]


def log(settings: Settings, segment: str, told: list[dict[str, Any]]) -> Path:
    """A closed and sealed segment of these lines."""
    path = loglines.write(settings, CASE, "predictions", segment, told)
    segments.seal(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


def reseal(folder: Path) -> None:
    """Let a manifest name the files as they are now, as a careless restore does."""
    made = storage.read_manifest(folder, verify=False)
    files = {name: file_sha256(folder / name) for name in made.files}
    storage.write_manifest(folder, made.model_copy(update={"files": files}))
