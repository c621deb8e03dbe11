"""Registered versions of small trainings: the steps from a dataset on, and a register manifest without MLflow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.fields import Categorical, Fields
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.verbs import evaluate, export, train

AS_OF = datetime(2016, 1, 1, tzinfo=UTC)
TRAIN, HOLDOUT = 160, 40
WORDS = (
    "buffer overflow memory corruption",
    "cross site scripting xss html",
    "sql injection query",
    "password certificate cryptographic",
    "path traversal file",
)


def made_rows(fields: Fields, count: int, seed: int = 0) -> pl.DataFrame:
    """Canonical rows whose label can be learned from their words, or from their first number."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(fields.classes) or 2, count)
    columns: dict = {}
    for field in fields.fields:
        if field is fields.text:
            columns[field.name] = [
                f"{WORDS[label % len(WORDS)]} in the {WORDS[n % len(WORDS)]} plugin {n}"
                for n, label in enumerate(labels)
            ]
        elif isinstance(field, Categorical):
            columns[field.name] = [field.values[code] for code in generator.integers(0, len(field.values), count)]
        else:
            columns[field.name] = generator.integers(20, 60, count).astype(float) + 30 * labels * (
                field is fields.numeric[0]
            )
    times = pl.Series(
        [AS_OF - timedelta(minutes=30 * (count - n)) for n in range(count)], dtype=pl.Datetime("us", "UTC")
    )
    names = pl.Series([f"r{seed}-{n}" for n in range(count)], dtype=pl.String)
    return pl.DataFrame(
        {
            "id": names,
            "event_time": times,
            **columns,
            fields.label: pl.Series(labels.astype(np.int8)),
            "label_time": times,
        }
    )


def small(case: str, **train_params) -> Params:
    """A case's parameters, trained in one process for two epochs."""
    params = load_params(case)
    changes = {
        "epochs": 2,
        "batch_size": 32,
        "ranks": 1,
        "threads": 1,
        "budget_minutes": None,
        "checkpoint_every": None,
    } | train_params
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def small_text(encoder: Path) -> Params:
    """The triage case on a tiny encoder, in fp32."""
    params = small("triage", epochs=1, batch_size=16, precision="fp32")
    return params.model_copy(
        update={"model": params.model.model_copy(update={"encoder": str(encoder), "max_tokens": 32})}
    )


def register(settings: Settings, params: Params, version: int, rows: pl.DataFrame | None = None) -> Path:
    """Train, export and evaluate ``rows`` and register the result as ``version``; returns the run's folder."""
    fields = load_fields(params.case)
    rows = made_rows(fields, TRAIN + HOLDOUT) if rows is None else rows
    run_dir = settings.run_dir(params.case, AS_OF)

    def dataset(folder: Path) -> dict:
        known = rows.head(TRAIN)[fields.label]
        rows.head(TRAIN).write_parquet(folder / "train.parquet")
        rows.tail(rows.height - TRAIN).write_parquet(folder / "holdout.parquet")
        counts = {name: int((known == position).sum()) for position, name in enumerate(fields.classes)}
        rates = [(count + 1) / (TRAIN + len(counts)) for count in counts.values()]
        return {
            "rule": "window",
            "train_rows": TRAIN,
            "holdout_rows": rows.height - TRAIN,
            "positives": TRAIN // 2,
            "base_rate": rates if fields.classes else float(known.mean()),
            **({"class_counts": counts} if fields.classes else {}),
        }

    storage.commit(
        run_dir / "dataset",
        case=params.case,
        as_of=AS_OF,
        key=storage.digest(["dataset", params.case]),
        inputs={},
        build=dataset,
    )
    for step in (train, export, evaluate):
        step.run(params, settings, run_dir, AS_OF)
    registered(run_dir, version)
    return run_dir


def registered(run_dir: Path, version: int) -> None:
    """Leave the register manifest of an exported run as ``version``, as the step does with MLflow."""
    made = storage.read_manifest(run_dir / "export")
    inputs = {"gate": storage.digest(["gate", version]), "export": made.key}
    storage.commit(
        run_dir / "register",
        case=made.case,
        as_of=made.as_of,
        key=storage.digest(inputs),
        inputs=inputs,
        build=lambda _folder: {"version": version, "mlflow_run": f"run-{version}"},
    )
