"""register: record the judged candidate in MLflow, whatever the verdict: one run, one model version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import polars as pl

from pipelines import ledger
from pipelines.cases import load_fields
from pipelines.contracts import EpisodeTrigger, Evidence, Manifest, Verdict
from pipelines.line.facts import EvaluateFacts, GateFacts, RegisterFacts, TrainFacts, chosen_params
from pipelines.line.order import REGISTER
from pipelines.line.step import Read, Run, Work
from pipelines.registry import live, register
from pipelines.registry.client import DECISION
from pipelines.registry.live import TEXT
from pipelines.registry.opening import flat_params
from pipelines.reports import promises
from pipelines.reports import training as figures

FILES = (("gate", "verdict.json"), *((step, name) for step, names in REGISTER.files.items() for name in names))
"""What the run keeps beside the model, by step; a training without a loop has no metrics by step."""
FAILPOINTS = ("run", "model", "uploaded", "linked", "version")
"""Beyond those of a commit: after MLflow's run, its logged model, that one's files and place, the version were made."""


def work(run: Run, read: Read) -> Work:
    """Draw the training's curves and the holdout's confusion, calibration or numbers, and record the candidate.

    What a probe had promised of the training stands beside what the gate found.

    Facts: ``version`` (MLflow's number, Triton's folder, the ledger's champion) and ``mlflow_run``. A crash between run
    and version is completed by running again; should two tries have run at once, what the losing one left in MLflow is
    deleted. Raises Unavailable if MLflow is down.
    """

    def build(folder: Path, _key: str) -> RegisterFacts:
        number = load_fields(run.case).number
        unit = None if number is None else number.unit
        plots = _plots(run.dir, folder, f"{run.case} {run.as_of:%Y-%m-%d}", EvaluateFacts.of(read["evaluate"]), unit)
        mlflow_run, version = register.record(run.settings, _candidate(run, read, plots))
        return RegisterFacts(version=version, mlflow_run=mlflow_run)

    def settle(made: Manifest) -> None:
        facts, gate, train = RegisterFacts.of(made), read["gate"].key, read["train"].key
        register.settle(run.settings, run.case, gate, train, run.as_of, facts.mlflow_run, facts.version)

    return Work(build, follow=settle)


def _candidate(run: Run, read: Read, plots: Sequence[Path]) -> register.Candidate:
    gate = GateFacts.of(read["gate"])
    cited = ledger.verdict(run.settings.ledger, run.case, gate.verdict_sha256, gate_key=read["gate"].key)
    verdict = Verdict.model_validate(cited["verdict"])
    judged, trained = EvaluateFacts.of(read["evaluate"]), TrainFacts.of(read["train"])
    lift = verdict.evidence.lift
    champion = ledger.champion_before(run.settings.ledger, run.case, run.as_of)
    promise = promises.promised(run.dir, run.trigger, None if champion is None else champion.champion)
    measured = {name: getattr(judged, name) for name in ("challenger", "champion", "base_rate", "n", "positives")}
    measured |= _by_gate(verdict.evidence, measured)
    kept = [run.dir / step / name for step, name in FILES]
    return register.Candidate(
        case=run.case,
        fields=load_fields(run.case),
        as_of=run.as_of,
        key=read["gate"].key,
        train=read["train"].key,
        bundle=run.dir / "export",
        params=flat_params(run.params) | flat_params(chosen_params(run.params, trained)),
        metrics=register.numbers({**measured, "lift": lift.model_dump() if lift else None, "cost": trained.cost})
        | _headroom(promise),
        curves={"epoch.loss": trained.curve},
        steps=run.dir / "train" / "metrics.jsonl",
        tags=_tags(run, read, verdict, promise) | _chosen(trained),
        dataset=read["dataset"].facts,
        dataset_key=read["dataset"].key,
        artefacts=(*(path for path in kept if path.exists()), *plots),
        about=_about(verdict, promise)[:TEXT],
        compared=_compared(run, trained),
    )


def _compared(run: Run, trained: TrainFacts) -> list[live.Child]:
    """The candidates and the trials that the training chose from."""
    trials = run.dir / "train" / "trials.json"
    told = [*trained.candidates, *(json.loads(trials.read_text()) if trials.exists() else [])]
    return [live.child_of(one) for one in told]


def _chosen(trained: TrainFacts) -> dict[str, str]:
    """The name of what was chosen among several candidates."""
    return {} if trained.chosen is None else {"perennial.chosen": trained.chosen["name"]}


def _by_gate(evidence: Evidence, measured: dict[str, Any]) -> dict[str, Any]:
    """What the gate measured beyond the evaluation: its own metric, floors, and how many rows differ."""
    name, own = evidence.metric, evidence.challenger
    floors = {floor.metric: floor.value for floor in evidence.floors}
    opponent = "champion" if evidence.opponent == "champion" else "base_rate"
    return {
        "challenger": {**floors, name: own.get(name), **measured["challenger"]},
        opponent: {name: evidence.champion.get(name), **(measured[opponent] or {})},
        "differ": evidence.differ,
    }


def _headroom(promise: promises.Promise | None) -> dict[str, float]:
    """The promise as metrics, in its unit."""
    if promise is None:
        return {}
    gain = promise.gain
    named = {"gain": gain.value, "low": gain.low, "high": gain.high, "price": promise.price}
    return {f"headroom_{name}": value for name, value in named.items()}


def _about(verdict: Verdict, promise: promises.Promise | None) -> str:
    """The verdict in a sentence, and another one on what was promised where something was."""
    said = f"{verdict.decision}, by the rule {verdict.rule}: {verdict.reason}"
    return said if promise is None else f"{said}. {promises.told(promise, verdict.evidence)}"


def _plots(run_dir: Path, folder: Path, name: str, judged: EvaluateFacts, unit: str | None) -> list[Path]:
    """The figures of the candidate, in the step's folder; ``unit`` is that of a predicted number."""
    metrics, scores = run_dir / "train" / "metrics.jsonl", run_dir / "evaluate" / "scores.parquet"
    drawn: list[Path] = []
    lines: list[dict[str, Any]] = []
    if metrics.exists():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if any("loss" in line for line in lines):
        drawn.append(figures.curves(lines, f"{name}: training", folder / "training.png"))
    about = f"{name}: the challenger on {judged.n:,} held-out rows"
    if judged.confusion is not None and judged.n:
        drawn.append(figures.confusion(judged.confusion, judged.classes, about, folder / "confusion.png"))
    elif scores.exists() and judged.n:
        rows = pl.read_parquet(scores, columns=["label", "challenger"])
        label, answers = rows["label"].to_numpy(), rows["challenger"].to_numpy()
        if unit is None:
            drawn.append(figures.calibration(label, answers, about, folder / "calibration.png"))
        else:
            drawn.append(figures.numbers(label, answers, unit, about, folder / "numbers.png"))
    return drawn


def _tags(run: Run, read: Read, verdict: Verdict, promise: promises.Promise | None) -> dict[str, str]:
    origin = read["export"].provenance
    episode = None
    if run.trigger in get_args(EpisodeTrigger):
        episode = ledger.asking_episode(run.settings.ledger, run.case, run.as_of)
    tags = {
        "case": run.case,
        "as_of": run.as_of.isoformat(),
        "trigger": run.trigger,
        "episode": episode,
        "commit": origin.get("commit"),
        "lock": origin.get("lock"),
        "candidate": read["export"].key,
        "dataset": read["dataset"].key,
        "fields": read["export"].facts.get("fields_hash"),
        "rule": verdict.rule,
        "reason": verdict.reason[:TEXT],
        "headroom_as_of": promise and promise.as_of.isoformat(),
        "headroom_against": promise and promise.against,
        "verdict": GateFacts.of(read["gate"]).verdict_sha256,
    }
    return {DECISION: verdict.decision, **{f"perennial.{name}": str(value) for name, value in tags.items() if value}}
