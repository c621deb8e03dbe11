"""rollout report: the page of the newest rollout of a case, of what ledger, gateways and guard say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipelines import amounts, ledger
from pipelines.arms import LATENCY_MS
from pipelines.cases import load_fields
from pipelines.contracts import Release
from pipelines.deploy import stages
from pipelines.errors import ConfigError
from pipelines.files import write_atomic
from pipelines.guard import experiment as guard
from pipelines.guard.decide import course, decide
from pipelines.guard.evidence import Seen, Side
from pipelines.line import experiment
from pipelines.line.experiment import Units
from pipelines.params import ExperimentParams, Params, RolloutParams
from pipelines.provenance import wall_time
from pipelines.reports import staged
from pipelines.settings import Settings
from pipelines.steps import tick

PAGE = "rollout.html"
POINTS = 24
"""Looks at which an experiment's estimate is worked out for its drawing."""


def write(params: Params, settings: Settings, path: Path | None = None) -> dict[str, Any]:
    """Write the page of the rollout that is under way, or of the last one; where it is, and what it says.

    Raises ConfigError if there was none yet.
    """
    view = gather(params, settings, wall_time())
    path = path or settings.root / "reports" / params.case / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, staged.page(view).encode())
    return {"case": params.case, "page": str(path), "headline": staged.headline(view)}


def gather(params: Params, settings: Settings, now: datetime) -> staged.View:
    """What the page is drawn from."""
    chain = ledger.chain(settings.ledger, params.case)
    trial = next((row.trial for row in reversed(chain) if row.trial is not None), None)
    if trial is None:
        raise ConfigError(f"{params.case} had no rollout in stages yet: declare one (rollout in params.yaml)")
    rows, plan, head = stages.of_trial(chain, trial), stages.plan_of(trial), chain[-1]
    shown, version = stages.to_its_end(chain, trial), rows[0].challenger or rows[0].champion
    underway = rows[-1] is head and stages.underway(head)
    over = None if underway else shown[-1].recorded_at
    limits = plan.guard
    until = now if over is None else min(now, over)
    sides, guarded, waits = None, None, ""
    if limits is not None:
        of = tick.whose(chain, trial, limits)
        looked = tick.look(params, settings, of, limits, until)
        given: dict[str, Any] = {"slo": params.serving.slo, "bound": looked.bound}
        answer = decide(looked.seen, limits, **given)
        path = course(looked.seen, limits, **given).total if looked.seen else ()
        guarded = staged.Guarded(
            verdict=answer.verdict,
            reason=answer.reason,
            limit=1 / limits.alpha,
            signals=tuple(staged.Sign(**one.model_dump(include=_SIGN)) for one in answer.signals),
            course=tuple((seen.end, float(e)) for seen, e in zip(looked.seen, path, strict=True)),
        )
        sides = _side("champion", of.champion, looked.seen), _side("challenger", of.challenger, looked.seen)
        if underway:
            watched = stages.watched(rows, ledger.retirements(settings.ledger, params.case), now)
            waits = stages.due(head, watched, looked.answered(head)) or answer.reason
    compared = _compared(params, settings, rows, plan, until)
    if compared is not None and underway and experiment.under_way(head, plan):
        waits = "the answer of its experiment"
    return staged.View(
        case=params.case,
        champion=[row.champion for row in chain if row.seq < rows[0].seq][-1],
        challenger=version,
        opened=trial.opened,
        now=now,
        over=over,
        events=tuple(_event(version, row) for row in shown),
        sides=sides,
        guarded=guarded,
        compared=compared,
        waits=waits,
        held=trial.held if underway else "",
    )


_SIGN = {"name", "told", "e_value", "weight"}


def _event(version: int, row: Release) -> staged.Event:
    share = stages.share_of(version, row)
    return staged.Event(row.seq, row.recorded_at, row.action, row.stage, share, row.actor, row.reason)


def _side(name: Literal["champion", "challenger"], version: int, windows: Sequence[Seen]) -> staged.Side:
    own: list[Side] = [getattr(seen, name) for seen in windows]
    latency: Counter[int] = Counter()
    for one in own:
        latency.update(one.latency)
    return staged.Side(
        name=name,
        version=version,
        answered=sum(one.answered for one in own),
        failed=sum(one.failed for one in own),
        refused=sum(one.refused for one in own),
        requests=latency.total(),
        **{f"p{share}": _quantile(latency, share / 100) for share in (50, 95, 99)},
    )


def _quantile(latency: Counter[int], share: float) -> float | None:
    """The upper end of the bin that holds a quantile, in milliseconds."""
    left = share * latency.total()
    for place in sorted(latency):
        left -= latency[place]
        if left <= 0:
            return LATENCY_MS[place]
    return None


def _compared(
    params: Params, settings: Settings, rows: Sequence[Release], plan: RolloutParams, now: datetime
) -> staged.Compared | None:
    fields, asked = load_fields(params.case), plan.experiment
    found = experiment.compare(settings, fields, rows, plan, now)
    if found is None or asked is None:
        return None
    what, result = experiment.plan_of(asked, fields), found.result
    every = max(1, -(-len(found.looks) // POINTS))
    places = [*range(every, len(found.looks), every), len(found.looks)] if found.looks else []
    told = [(found.looks[place - 1].at, guard.experiment(found.looks[:place], what)) for place in places]

    def arm(name: Literal["champion", "challenger"], units: Units, counted: guard.Sums) -> staged.Arm:
        waiting = units.begun - units.unlabelled - counted.n
        return staged.Arm(name, units.begun, waiting, units.unlabelled, counted.n, counted.mean)

    return staged.Compared(
        outcome=asked.outcome,
        better=asked.better,
        horizon_hours=asked.horizon_hours,
        scale=result.scale,
        null=1.0 if result.scale == "odds ratio" else 0.0,
        verdict=result.verdict,
        reason=result.reason,
        arms=(
            arm("champion", found.champion, result.champion),
            arm("challenger", found.challenger, result.challenger),
        ),
        course=tuple(staged.Estimate(at, one.estimate, one.low, one.high) for at, one in told),
        ends=tuple(_ends(asked, result, plan)),
        p=result.p,
        unsplit=found.unsplit,
        bandit=asked.bandit,
    )


def _ends(asked: ExperimentParams, result: guard.Result, plan: RolloutParams) -> list[str]:
    """What would end an experiment, in words."""
    after = "is released" if len(plan.steps) == 2 else f"goes on to {amounts.share(plan.steps[1])}"
    found = [
        f"a better challenger (p at most {asked.alpha:g}, now {result.p:.2g}): it {after} if the guard lets it pass",
        f"a worse one (p at most {asked.alpha:g}): it is taken back",
        "the guard: a challenger that fails, is slow or answers badly is taken back, whatever its outcome is",
    ]
    if asked.units is not None:
        n = result.champion.n + result.challenger.n
        found.append(f"{asked.units:,} mature units without a difference, of which there are {n:,}: {_stays(asked)}")
    else:
        found.append("nothing else: it has no declared end, and a person may end it (rollout advance, rollout abort)")
    return found


def _stays(asked: ExperimentParams) -> str:
    return "the champion stays" if asked.otherwise == "champion" else "the challenger goes on"
