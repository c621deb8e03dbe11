"""The replay of a case: every policy through the same history, the oracle after them, one summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import DataError, TooFewRows
from pipelines.evaluation.metrics import metrics_of
from pipelines.files import write_atomic
from pipelines.line import runner
from pipelines.line.order import DATASET, INGEST, VALIDATE
from pipelines.line.step import Run
from pipelines.params import Params, family_of
from pipelines.replay import candidates, frontier, oracle, ticks
from pipelines.replay.play import Told, play
from pipelines.replay.policies import FIXED, ORACLE, POLICIES, Policy, parse
from pipelines.replay.world import World, build, played, variant
from pipelines.reports.frontier import advice
from pipelines.reports.losses import LOSSES, loss_key, mean_loss
from pipelines.settings import Settings

Records = list[dict[str, Any]]
Judge = Callable[[str, int], dict[str, float | None] | None]


@dataclass(frozen=True)
class Options:
    """What is asked for; None is the case's own."""

    policies: str
    since: date | None = None
    until: date | None = None
    months: int | None = None
    price: float | None = None
    seeds: tuple[int, ...] = ()


def replay(params: Params, settings: Settings, options: Options, told: Told) -> dict[str, Any]:
    """Play every policy with every seed; the summary that replay.json holds.

    Equal histories that were played before are read. Raises ConfigError for options that cannot work, and whatever the
    steps raise.
    """
    policies = parse(options.policies)
    params = variant(params, settings)
    own = params.replay
    price = params.headroom.price if options.price is None else options.price
    since, until = ticks.stretch(params.case, own, options.since, options.until, options.months)
    seen = ticks.cut(since, until, params.drift)
    least = own.min_rows if own else 100
    by_seed = {}
    for seed in options.seeds or (None,):
        world = build(played(params, seed, price), settings, seen)
        by_seed[world.params.train.seed] = _one(world, policies, price, least, told)
    return _summary(world, policies, price, least, by_seed)


def total(params: Params, settings: Settings, options: Options) -> int:
    """How many ticks :func:`replay` will tell of."""
    params = variant(params, settings)
    since, until = ticks.stretch(params.case, params.replay, options.since, options.until, options.months)
    return len(parse(options.policies)) * len(ticks.cut(since, until, params.drift)) * max(1, len(options.seeds))


def _one(world: World, policies: Sequence[Policy], price: float, least: int, told: Told) -> dict[str, dict[str, Any]]:
    """All policies of one seed: ``{policy: {figures..., ticks}}``; the oracle chooses when the others are through."""

    @cache
    def judge(key: str, number: int) -> dict[str, float | None] | None:
        """The metrics of a candidate in a tick with enough rows of more than one class."""
        tick = world.ticks[number]
        label = world.of(tick)[world.fields.label]
        labels, known = label.drop_nulls().to_numpy(), label.is_not_null().to_numpy()
        counts = len(labels) >= least and len(set(labels.tolist())) > 1
        if counts:
            found = metrics_of(world.fields)(labels, candidates.scores(world, key, tick)[known])
            if world.fields.number is not None:  # a mean of ticks is one of squares, as gains and prices are
                found["mse"] = float(found["rmse"] or 0.0) ** 2
            return found
        return None

    records = {policy.name: play(world, policy, told) for policy in policies if policy.name != ORACLE}
    if POLICIES[ORACLE] in policies:
        records[ORACLE] = _oracle(world, records, judge, price, told)
    found = {}
    for name in (policy.name for policy in policies):
        mine = [judge(record["candidate"], number) for number, record in enumerate(records[name])]
        if all(values is None for values in mine):
            raise DataError(
                f"{world.params.case}: no tick has {least} rows of more than one class: nothing can be compared; "
                "lower replay.min_rows"
            )
        told_of = [record | {"metrics": values} for record, values in zip(records[name], mine, strict=True)]
        found[name] = frontier.figures(records[name], mine, price) | {"ticks": told_of}
    return found


def _oracle(world: World, records: dict[str, Records], judge: Judge, price: float, told: Told) -> Records:
    """The records that hindsight would have made.

    From the candidates of all the others, and one of every month's end.
    """
    first = next(iter(records.values()))[0]["first"]["candidate"]
    since, seconds = {first: 0}, {first: 0.0}

    def offer(key: str, number: int, took: float) -> None:
        since[key], seconds[key] = min(number, since.get(key, number)), took

    for of in records.values():
        for number, record in enumerate(of[:-1]):
            made = record["training"]
            if made is not None and made["candidate"] is not None:
                offer(made["candidate"], number + 1, made["seconds"])
    known = set(since.values())
    for number, tick in enumerate(world.ticks[:-1]):
        if tick.ends(1) and number + 1 not in known:
            with suppress(TooFewRows):
                trained = _month_end(world, number)
                offer(trained.key, number + 1, trained.seconds)
        told(f"{ORACLE} {tick.label}")
    losses = {
        key: [_loss(judge(key, number)) if number >= start else None for number in range(len(world.ticks))]
        for key, start in since.items()
    }
    path, _ = oracle.best(losses, since, first, price)
    told(f"{ORACLE} {world.ticks[-1].label}")
    chosen = []
    for tick, key, after in zip(world.ticks, path, [*path[1:], path[-1]], strict=True):
        training = None
        if after != key:
            training = {
                "trigger": "hindsight",
                "outcome": "promoted",
                "decision": "promote",
                "reason": "",
                "candidate": after,
                "seconds": seconds[after],
            }
        chosen.append(
            {"tick": tick.label, "rows": world.of(tick).height, "candidate": key, "drift": None, "training": training}
        )
    return chosen


def _loss(found: dict[str, float | None] | None) -> float | None:
    if found is None:
        return None
    return found[loss_key(found)]


def _month_end(world: World, number: int) -> candidates.Candidate:
    """A candidate of the end of a tick at which no policy trained."""
    settings, as_of = world.home(POLICIES[ORACLE]), world.ticks[number].window.end
    run_dir = settings.run_dir(world.params.case, as_of)
    for step in (INGEST, VALIDATE, DATASET):
        runner.run(step, Run(world.params, settings, as_of))
    candidate = candidates.trained(world, settings, run_dir, as_of)
    if not candidates.has_bundle(world, candidate.key):
        candidates.exported(world, settings, run_dir, as_of)
    return candidate


def _summary(
    world: World, policies: Sequence[Policy], price: float, least: int, by_seed: dict[int, dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    labels = [tick.label for tick in world.ticks]
    found: dict[str, Any] = {}
    for policy in policies:
        mine = [of[policy.name] for of in by_seed.values()]
        losses = [[_loss(tick["metrics"]) for tick in one["ticks"]] for one in mine]
        found[policy.name] = {"about": policy.about, **frontier.over_seeds(mine, losses, labels)}
    best = frontier.on_frontier(
        {name: (one["retrains"], mean_loss(one)) for name, one in found.items() if name != ORACLE}
    )
    floor = found[ORACLE]["total"] if ORACLE in found else None
    fixed = [(one["retrains"], mean_loss(one)) for name, one in found.items() if name in FIXED]
    for name, one in found.items():
        one["regret"] = None if floor is None else one["total"] - floor
        one["on_frontier"] = name in best
        adapts = name not in FIXED and name != ORACLE
        one["by_schedule"] = frontier.by_schedule(fixed, one["retrains"]) if adapts else None
    first = next(iter(by_seed.values()))
    counted = [tick["metrics"] is not None for tick in first[policies[0].name]["ticks"]]
    params = world.params
    known = {name: one for name, one in found.items() if name != ORACLE}
    summary = {
        "case": params.case,
        "source": {"name": world.source.name, "kind": world.source.kind, "notice": world.source.notice},
        "from": world.ticks[0].window.start.isoformat(),
        "until": world.ticks[-1].window.end.isoformat(),
        "tick": ticks.unit(params.drift),
        "ticks": [
            {"tick": tick.label, "rows": world.of(tick).height, "counts": counts}
            for tick, counts in zip(world.ticks, counted, strict=True)
        ],
        "min_rows": least,
        "label_delay_days": params.label_delay_days,
        "training_rows": params.training_rows,
        "model": ", ".join(family_of(model) for model in params.candidates.values()),
        "seeds": list(by_seed),
        "price_per_retrain": price,
        "price_unit": f"{_unit(world)} over one {ticks.unit(params.drift)}",
        "policies": found,
        "fixed": [name for name in FIXED if name in found],
        "recommended": frontier.recommended(known, price, sum(counted)),
        "by_seed": {str(seed): {name: _plain(one) for name, one in of.items()} for seed, of in by_seed.items()},
    }
    return summary | {"advice": advice(summary)}


def _unit(world: World) -> str:
    if world.fields.number is None:
        return f"nats of mean {LOSSES['log_loss']}"
    return f"{world.fields.number.unit}² of mean {LOSSES['mse']}"


def _plain(one: dict[str, Any]) -> dict[str, Any]:
    """A policy's history of one seed for the file: what happened, tick by tick."""
    kept = ("tick", "candidate", "drift", "training", "metrics")
    return one | {"ticks": [{name: tick[name] for name in kept if tick[name] is not None} for tick in one["ticks"]]}


def save(settings: Settings, summary: dict[str, Any]) -> dict[str, Path]:
    """Write ``replay.json``, ``frontier.png`` and ``index.html`` to ``<state>/replay/<case>``; returns their paths."""
    from pipelines.reports import frontier, frontier_chart

    folder = settings.root / "replay" / summary["case"]
    paths = {"json": folder / "replay.json", "png": folder / "frontier.png", "html": folder / "index.html"}
    write_atomic(paths["json"], (json.dumps(summary, indent=1) + "\n").encode())
    write_atomic(paths["png"], frontier_chart.png(summary))
    write_atomic(paths["html"], frontier.page(summary).encode())
    return paths
