"""register: record the judged candidate in MLflow, whatever the verdict: one run, one model version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import polars as pl

from pipelines import ledger, storage
from pipelines.contracts import EpisodeTrigger, Manifest, Trigger, Verdict
from pipelines.params import Params
from pipelines.registry import register
from pipelines.registry.client import DECISION
from pipelines.registry.live import TEXT, flat
from pipelines.reports import training as figures
from pipelines.settings import Settings

STEP_VERSION = 2
ROOMS = (
    "pipelines.registry.register",
    "pipelines.registry.client",
    "pipelines.registry.live",
    "pipelines.registry.points",
    "pipelines.reports.training",
)
FILES = (("gate", "verdict.json"), ("export", "bundle.json"), ("train", "record.json"), ("train", "metrics.jsonl"))
"""What the run keeps beside the model, by step; a training without a loop has no metrics by step."""
INPUTS = ("dataset", "train", "export", "evaluate", "gate")
FAILPOINTS = ("run", "version")
"""Beyond those of a commit: after MLflow's run was made, after the model version was made."""


def run(params: Params, settings: Settings, run_dir: Path, as_of: datetime, *, trigger: Trigger = "manual") -> Manifest:
    """Draw the training's curves and the holdout's confusion or calibration.

    Facts: ``version`` (MLflow's number, Triton's folder, the ledger's champion) and ``mlflow_run``. A crash between run
    and version is completed by running again; should two tries have run at once, what the losing one left in MLflow is
    deleted. Raises Unavailable if MLflow is down.
    """
    read = {
        step: {name for of, name in FILES if of == step} for step in ("train", "export")
    }  # the model is checked before it is sent
    inputs = {step: storage.read_manifest(run_dir / step, verify=read.get(step, True)) for step in INPUTS}
    gate = inputs["gate"]
    key = storage.step_key("register", STEP_VERSION, {"gate": gate.key, "export": inputs["export"].key}, {})

    def build(folder: Path) -> Mapping[str, Any]:
        plots = _plots(run_dir, folder, f"{params.case} {as_of:%Y-%m-%d}", inputs["evaluate"].facts)
        candidate = _candidate(params, settings, run_dir, as_of, trigger, inputs, plots)
        run_id, version = register.record(settings, candidate)
        return {"version": version, "mlflow_run": run_id}

    keys = {"gate": gate.key, "export": inputs["export"].key}
    manifest = storage.commit(run_dir / "register", case=params.case, as_of=as_of, key=key, inputs=keys, build=build)
    register.settle(
        settings,
        params.case,
        gate.key,
        inputs["train"].key,
        as_of,
        manifest.facts["mlflow_run"],
        manifest.facts["version"],
    )
    return manifest


def _candidate(
    params: Params,
    settings: Settings,
    run_dir: Path,
    as_of: datetime,
    trigger: Trigger,
    inputs: Mapping[str, Manifest],
    plots: Sequence[Path],
) -> register.Candidate:
    cited = ledger.verdict(
        settings.ledger, params.case, inputs["gate"].facts.get("verdict_sha256", ""), gate_key=inputs["gate"].key
    )
    verdict = Verdict.model_validate(cited["verdict"])
    facts = {step: manifest.facts for step, manifest in inputs.items()}
    metrics = {
        "evaluate": {
            name: facts["evaluate"].get(name) for name in ("challenger", "champion", "base_rate", "n", "positives")
        }
    }
    lift = verdict.evidence.lift
    return register.Candidate(
        case=params.case,
        as_of=as_of,
        key=inputs["gate"].key,
        train=inputs["train"].key,
        bundle=run_dir / "export",
        params={name: str(value) for name, value in flat(params.model_dump(mode="json")).items()},
        metrics=_numbers(
            {**metrics["evaluate"], "lift": lift.model_dump() if lift else None, "cost": facts["train"].get("cost", {})}
        ),
        curves={"epoch.loss": facts["train"].get("curve", [])},
        steps=run_dir / "train" / "metrics.jsonl",
        tags=_tags(params, settings, as_of, trigger, inputs, verdict),
        dataset=facts["dataset"],
        dataset_key=inputs["dataset"].key,
        artefacts=(
            *(path for path in (run_dir / step / name for step, name in FILES) if path.exists()),
            *plots,
        ),
        about=f"{verdict.decision}, by the rule {verdict.rule}: {verdict.reason}"[:TEXT],
    )


def _plots(run_dir: Path, folder: Path, name: str, judged: Mapping[str, Any]) -> list[Path]:
    """The figures of the candidate, in the step's folder."""
    metrics, scores, drawn = run_dir / "train" / "metrics.jsonl", run_dir / "evaluate" / "scores.parquet", []
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    if any("loss" in line for line in lines):
        drawn.append(figures.curves(lines, f"{name}: training", folder / "training.png"))
    about = f"{name}: the challenger on {judged['n']:,} held-out rows"
    if "confusion" in judged and judged["n"]:
        drawn.append(figures.confusion(judged["confusion"], judged["classes"], about, folder / "confusion.png"))
    elif scores.exists() and judged["n"]:
        rows = pl.read_parquet(scores, columns=["label", "challenger"])
        drawn.append(
            figures.calibration(
                rows["label"].to_numpy(), rows["challenger"].to_numpy(), about, folder / "calibration.png"
            )
        )
    return drawn


def _tags(
    params: Params,
    settings: Settings,
    as_of: datetime,
    trigger: Trigger,
    inputs: Mapping[str, Manifest],
    verdict: Verdict,
) -> dict[str, str]:
    origin = inputs["export"].provenance
    tags = {
        "case": params.case,
        "as_of": as_of.isoformat(),
        "trigger": trigger,
        "episode": ledger.asking_episode(settings.ledger, params.case, as_of)
        if trigger in get_args(EpisodeTrigger)
        else None,
        "commit": origin.get("commit"),
        "lock": origin.get("lock"),
        "candidate": inputs["export"].key,
        "dataset": inputs["dataset"].key,
        "fields": inputs["export"].facts.get("fields_hash"),
        "rule": verdict.rule,
        "reason": verdict.reason[:TEXT],
        "verdict": inputs["gate"].facts["verdict_sha256"],
    }
    return {DECISION: verdict.decision, **{f"perennial.{name}": str(value) for name, value in tags.items() if value}}


def _numbers(value: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among nested facts: MLflow takes no None, and a NaN says nothing."""
    return {name: float(item) for name, item in flat(value).items() if isinstance(item, int | float) and isfinite(item)}
