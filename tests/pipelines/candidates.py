"""The folders of a training run up to its verdict, made through storage.commit with a tiny ONNX model: no training."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Evidence, Interval, Verdict
from pipelines.fields import Categorical, Fields
from pipelines.settings import Settings

CASE = "bank"
T0 = datetime(2008, 8, 1, tzinfo=UTC)


def month(number: int) -> datetime:
    """The as_of of the n-th run."""
    return T0 + timedelta(days=30 * number)


def write_onnx(path: Path, fields: Fields, bias: float) -> None:
    """``score = sigmoid(.01 * sum of all inputs scaled down + bias)`` with the case's real inputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    width = len(fields.categorical) + len(fields.numeric)
    nodes = [
        helper.make_node("Cast", ["categorical"], ["codes"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["codes", "numeric"], ["row"], axis=1),
        helper.make_node("MatMul", ["row", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("categorical", TensorProto.INT64, ["batch", len(fields.categorical)]),
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["batch", len(fields.numeric)]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(np.full((width, 1), 1e-4, np.float32), "w"),
            numpy_helper.from_array(np.array([bias], np.float32), "bias"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def rows(fields: Fields, count: int, seed: int = 0) -> pl.DataFrame:
    """Canonical labelled rows within the declared vocabularies and bounds."""
    rng = np.random.default_rng(seed)
    moments = [T0 + timedelta(minutes=minute) for minute in range(count)]
    columns: dict = {"id": [f"r{seed}-{number}" for number in range(count)], "event_time": moments}
    for field in fields.fields:
        if isinstance(field, Categorical):
            columns[field.name] = [str(value) for value in rng.choice(field.values, count)]
        else:
            columns[field.name] = rng.integers(int(field.low or 0), int(field.low or 0) + 50, count).astype(float)
    return pl.DataFrame({**columns, fields.label: rng.integers(0, 2, count).astype(np.int8), "label_time": moments})


def candidate(
    settings: Settings,
    as_of: datetime,
    *,
    bias: float,
    decision: str = "promote",
    champion: int | None = None,
    case: str = CASE,
    model: bytes | None = None,
) -> Path:
    """Commit dataset, train, export, evaluate and gate of one run and record its verdict; returns the run's folder.

    ``bias`` makes the model, ``champion`` is the version it was judged against, ``model`` replaces the ONNX file's
    bytes.
    """
    fields = load_fields(case)
    run_dir = settings.run_dir(case, as_of)
    keys: dict[str, str] = {}

    def commit(step: str, inputs: tuple[str, ...], declared: object, build) -> None:
        sources = {name: keys[name] for name in inputs}
        keys[step] = storage.step_key(step, 1, sources, declared)
        storage.commit(run_dir / step, case=case, as_of=as_of, key=keys[step], inputs=sources, build=build)

    def dataset(folder: Path) -> dict:
        rows(fields, 60).write_parquet(folder / "train.parquet")
        rows(fields, 40, seed=1).write_parquet(folder / "holdout.parquet")
        return {
            "rule": "window",
            "train_rows": 60,
            "holdout_rows": 40,
            "positives": 30,
            "base_rate": 0.5,
            "champion": champion,
        }

    def export(folder: Path) -> dict:
        if model is None:
            write_onnx(folder / "model.onnx", fields, bias)
        else:
            (folder / "model.onnx").write_bytes(model)
        about = {
            "case": case,
            "fields_hash": fields.hash,
            "output": "score",
            "opset": 20,
            "train_rows": 60,
            "dataset_key": keys["dataset"],
        }
        (folder / "bundle.json").write_text(json.dumps(about))
        return {"fields_hash": fields.hash}

    metrics = {"log_loss": 0.30 - bias / 100, "roc_auc": 0.75}
    verdict = Verdict(
        decision=decision,
        rule="lower_bound" if decision == "promote" else "interval",
        reason=f"lift of {bias:g}",
        evidence=Evidence(
            metric="log_loss",
            n=40,
            positives=20,
            opponent="champion",
            lift=Interval(value=bias, low=bias - 0.1, high=bias + 0.1),
        ),
        min_lift=0.005,
    )

    def gate(folder: Path) -> dict:
        (folder / "verdict.json").write_text(verdict.model_dump_json())
        return {
            "decision": decision,
            "rule": verdict.rule,
            "reason": verdict.reason,
            "verdict_sha256": storage.digest(verdict),
        }

    commit("dataset", (), {"bias": bias}, dataset)
    commit(
        "train",
        ("dataset",),
        {"bias": bias},
        lambda _folder: {
            "weights_sha256": "0" * 64,
            "epochs": 2,
            "curve": [0.7, 0.6],
            "loss_first": 0.7,
            "loss_last": 0.6,
        },
    )
    commit("export", ("train",), {}, export)
    scored = {"challenger": metrics, "champion": None if champion is None else metrics, "n": 40, "positives": 20}
    commit("evaluate", ("export",), {"champion": champion}, lambda _folder: scored)
    commit("gate", ("evaluate",), {"decision": decision}, gate)
    ledger.record_verdict(
        settings.ledger, case=case, gate_key=keys["gate"], as_of=as_of, trigger="manual", verdict=verdict
    )
    return run_dir


def registered(settings: Settings, as_of: datetime, version: int, **arguments) -> Path:
    """A :func:`candidate` whose register step says ``version``, without MLflow."""
    run_dir = candidate(settings, as_of, **arguments)
    gate = storage.read_manifest(run_dir / "gate")
    case = arguments.get("case", CASE)
    inputs = {"gate": gate.key, "export": storage.read_manifest(run_dir / "export").key}
    key = storage.step_key("register", 1, inputs, {"version": version})
    facts = {"version": version, "mlflow_run": f"run-{version}"}
    storage.commit(run_dir / "register", case=case, as_of=as_of, key=key, inputs=inputs, build=lambda _folder: facts)
    return run_dir
