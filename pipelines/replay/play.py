"""One policy through history: serve a tick, log it, let labels arrive, look, and retrain if the policy says so.

What is run is the project's own: the ingest, validate, dataset, train, export, evaluate, gate, profile and drift
steps, on a ledger and a log of the policy's own. Only the rollout is played, as there is nothing to roll out
to: the ledger's row is what serves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import ledger, storage
from pipelines.contracts import Order, Release, Trigger
from pipelines.drift_report import read_report
from pipelines.errors import PerennialError, TooFewRows
from pipelines.files import write_atomic
from pipelines.line import runner
from pipelines.line.facts import GateFacts
from pipelines.line.order import DATASET, DRIFT, EVALUATE, EXPORT, GATE, HEADROOM, INGEST, VALIDATE, WATCHING
from pipelines.line.step import Run
from pipelines.replay import candidates, heads, traffic
from pipelines.replay.policies import Policy, due, watching
from pipelines.replay.ticks import Tick
from pipelines.replay.world import World
from pipelines.settings import Settings
from pipelines.steps import evaluate

Told = Callable[[str], None]
"""Called after each tick with a word about it."""


def play(world: World, policy: Policy, told: Told) -> list[dict[str, Any]]:
    """A record of every tick: who served, what the drift step said, what was trained and what became of it.

    A tick that was recorded before is read and not played again. Raises PerennialError if the first candidate is
    not promoted: without a champion there is nothing to replay.
    """
    settings = world.home(policy)
    first = _first(world, settings)
    records: list[dict[str, Any]] = []
    for number, tick in enumerate(world.ticks):
        path = settings.root / "ticks" / f"{tick.label}.json"
        if not path.exists() or (number + 1 < len(world.ticks) and json.loads(path.read_text())["last"]):
            write_atomic(path, json.dumps(_tick(world, policy, settings, number), indent=1).encode())
        records.append(json.loads(path.read_text()))
        told(f"{policy.name} {tick.label}")
    records[0]["first"] = first
    records[-1]["training"] = None  # an earlier replay may have gone on from here
    return records


def _first(world: World, settings: Settings) -> dict[str, Any]:
    """The first champion, trained on the rows before the replay: the same one for every policy."""
    path = settings.root / "ticks" / "first.json"
    if not path.exists():
        done = _train(world, settings, world.first, "initial")
        write_atomic(path, json.dumps(done, indent=1).encode())
    found: dict[str, Any] = json.loads(path.read_text())
    if found["outcome"] != "promoted":
        raise PerennialError(
            f"{world.params.case}: the first candidate, of {world.first.date()}, was not promoted ({found['reason']}): "
            "without a champion there is nothing to replay; choose a later --since"
        )
    return found


def _tick(world: World, policy: Policy, settings: Settings, number: int) -> dict[str, Any]:
    tick, last = world.ticks[number], number + 1 == len(world.ticks)
    champion = ledger.champion_before(settings.ledger, world.params.case, tick.window.end)
    assert champion is not None
    rows = world.of(tick)
    key = candidates.served_by(settings, champion)
    _log(world, settings, number, champion, key)
    record: dict[str, Any] = {
        "tick": tick.label,
        "last": last,
        "rows": rows.height,
        "version": champion.champion,
        "candidate": key,
        "drift": _drift(world, policy, settings, tick) if policy.watches and tick.judged else None,
        "training": None,
    }
    trigger = asked(policy, tick, record["drift"])
    # What is trained after the last tick would answer nothing.
    if trigger is not None and not last:
        record["training"] = _train(world, settings, tick.window.end, trigger)
    return record


def asked(policy: Policy, tick: Tick, seen: dict[str, Any] | None) -> Trigger | None:
    """What asks for a training run at the end of ``tick``, if anything does."""
    if seen is not None and seen["action"] == "retrain":
        return "drift"
    return "schedule" if due(policy, tick) else None


def _log(world: World, settings: Settings, number: int, champion: Release, key: str) -> None:
    """Log the tick's answers, and the labels that arrived in it of all rows served so far."""
    tick, rows = world.ticks[number], world.of(world.ticks[number])
    if rows.height:
        traffic.log_rows(settings, world.fields, tick, rows, candidates.scores(world, key, tick), champion.champion)
    since = world.ticks[number - 1].window.end if number else tick.window.start - timedelta(days=1)
    traffic.log_labels(settings, world.fields, tick, world.rows, since)


def _drift(world: World, policy: Policy, settings: Settings, tick: Tick) -> dict[str, Any]:
    """The drift run after ``tick``: profile, drift and in between a probe, with what the policy may look at."""
    run = Run(watching(policy, world.params, world.fields), settings, tick.window.end)
    for step in WATCHING:
        if step is not HEADROOM or policy.headroom:
            runner.run(step, run)
    report = read_report(run.dir / DRIFT.name)
    return {
        "state": report.state.value,
        "action": report.action,
        "reason": report.reason,
        "episode": report.episode,
        "features": [feature.feature for feature in report.features if feature.drifted],
    }


def _train(world: World, settings: Settings, as_of: datetime, trigger: Trigger) -> dict[str, Any]:
    """One training run, from ingest to the gate, and the release if the gate promotes.

    ``skipped`` if there is too little to learn from.
    """
    run = Run(world.params, settings, as_of, trigger=trigger)
    run_dir = run.dir
    common = {"trigger": trigger, "as_of": as_of.isoformat()}
    try:
        for step in (INGEST, VALIDATE, DATASET):
            runner.run(step, run)
    except TooFewRows as error:
        return {**common, "outcome": "skipped", "reason": str(error), "candidate": None, "seconds": 0.0}
    candidate = candidates.trained(world, settings, run_dir, as_of)
    candidates.exported(world, settings, run_dir, as_of)
    if world.by_head:
        read = runner.reads(EVALUATE, run)
        by_head = partial(heads.of_rows, run.params, settings)
        runner.publish(EVALUATE, run, read, evaluate.scored_by(by_head, run, read))
    else:
        runner.run(EVALUATE, run)
    verdict = GateFacts.of(runner.run(GATE, run))
    promoted = verdict.decision == "promote"
    if promoted:
        _release(world, settings, run_dir, as_of, trigger)
    return {
        **common,
        "outcome": "promoted" if promoted else "kept",
        "decision": verdict.decision,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "candidate": candidate.key,
        "seconds": candidate.seconds,
        "rows": storage.read_manifest(run_dir / DATASET.name).facts["train_rows"],
    }


def _release(world: World, settings: Settings, run_dir: Path, as_of: datetime, trigger: Trigger) -> None:
    """The candidate serves from here on. A replay that died between this row and its record finds the row."""
    case, exported = world.params.case, storage.read_manifest(run_dir / EXPORT.name)
    history = ledger.releases(settings.ledger, case)
    if any(release.candidate_key == exported.key for release in history):
        return
    verdict = storage.read_manifest(run_dir / GATE.name).facts
    ledger.append(
        settings.ledger,
        Order(
            case=case,
            after=len(history),
            champion=len(history) + 1,
            candidate_key=exported.key,
            bundle=str((run_dir / EXPORT.name).relative_to(settings.root)),
            action="promote",
            trigger=trigger,
            reason=verdict["reason"],
            actor="replay",
            verdict_hash=verdict["verdict_sha256"],
            as_of=as_of,
        ),
    )
