"""rollout status, report, start, advance, hold, resume, abort: a person looks at a rollout, and moves it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines import amounts, ledger
from pipelines.arms import WHOLE
from pipelines.cases import load_fields
from pipelines.cli import rollout_page
from pipelines.contracts import Order, Release
from pipelines.deploy import moves, repository, scheduler, stages
from pipelines.deploy.stages import Said
from pipelines.errors import ConfigError, PerennialError
from pipelines.line import experiment
from pipelines.params import Params, Preset, RolloutParams
from pipelines.provenance import wall_time
from pipelines.registry import aliases
from pipelines.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

ORDERS: Mapping[str, Callable[[Release, Said], Order]] = {
    "advance": stages.advance,
    "hold": stages.hold,
    "resume": stages.resume,
    "abort": stages.abort,
}
"""What a person can order: `advance` goes to the next stage whatever the guard says, if the version answers."""
VERBS = ("status", "report", "start", *ORDERS)
START = ("version", "preset", "despite_verdict")
"""What is said of a rollout that is started."""
log = logging.getLogger(__name__)


def run(
    params: Params,
    settings: Settings,
    verb: str,
    reason: str,
    *,
    version: int | None = None,
    preset: Preset | None = None,
    despite_verdict: bool = False,
) -> dict[str, Any]:
    """Carry out ``verb``; answers as :func:`status`, or where the page is.

    ``version``, ``preset`` and ``despite_verdict`` are of a rollout that is started (:func:`moves.by_hand`), which the
    DAG of rollouts then moves. Raises ConfigError without a reason for an order, ConflictError if the case is retired,
    no rollout is under way or somebody else was first, Unavailable if a version that should answer more does not
    answer: nothing is changed then.
    """
    if verb == "status":
        return status(params, settings)
    if verb == "report":
        return rollout_page.write(params, settings)
    if not reason.strip():
        raise ConfigError(f"rollout {verb} needs a reason, it is kept in the ledger: --reason '...'")
    with repository.alone(settings.model_repository, params.case):
        ledger.require_in_service(settings.ledger, params.case)
        head = ledger.head(settings.ledger, params.case)
        if head is None:
            raise ConfigError(f"{params.case} has no release yet: run the training line first")
        if verb == "start":
            order = _start(params, settings, head, reason, version, preset, despite_verdict=despite_verdict)
        else:
            order = ORDERS[verb](head, moves.said(params, head, actor=settings.who, reason=reason))
        row = moves.write(params, settings, load_fields(params.case), order, aliases.project, "rollout")
    if verb == "start":
        _ask_for_ticks(settings, row)
    return status(params, settings)


def _start(
    params: Params,
    settings: Settings,
    head: Release,
    reason: str,
    version: int | None,
    preset: Preset | None,
    *,
    despite_verdict: bool,
) -> Order:
    if version is None:
        raise ConfigError("rollout start needs the version to begin with: --version N, see `history`")
    if preset is not None:
        params = params.model_copy(update={"rollout": _staged(params.rollout, preset)})
    return moves.by_hand(params, settings, head, version, reason=reason, despite_verdict=despite_verdict)


def _staged(declared: RolloutParams, preset: Preset) -> RolloutParams:
    """The stages of a preset with what the case declares beside its own, but for its experiment."""
    own = declared.model_dump(include={"mirror", "key", "soak_minutes", "meanwhile", "guard"})
    return RolloutParams.model_validate(
        {name: value for name, value in own.items() if value is not None} | {"preset": preset}
    )


def _ask_for_ticks(settings: Settings, row: Release) -> None:
    """Let Airflow move the rollout; where there is none, a person does."""
    dag = f"{row.case}_rollout"
    try:
        airflow = scheduler.client(settings)
        airflow.trigger_dag(dag, f"row__{row.seq}", {}, note=row.reason)
        if airflow.paused(dag):
            log.warning("the rollout is open and nobody moves it: %s is paused, let it run in Airflow", dag)
    except PerennialError as error:
        log.warning(
            "the rollout is open and nobody moves it (%s): run %s in Airflow, or `tick` from time to time", error, dag
        )


def status(params: Params, settings: Settings) -> dict[str, Any]:
    """How far the case's rollout is, what it waits for, and the rows so far; of the last one, if none is under way."""
    chain = ledger.chain(settings.ledger, params.case)
    head = chain[-1] if chain else None
    last = next((row.trial for row in reversed(chain) if row.trial is not None), None)
    says = "there is no release yet" if head is None else stages.told(head)
    if (gone := ledger.retirement(settings.ledger, params.case)) is not None:
        says = f"{gone}: {says}"
    found: dict[str, Any] = {
        "case": params.case,
        "underway": stages.underway(head),
        "champion": None if head is None else head.champion,
        "says": says,
        "rows": [] if last is None else _rows(stages.to_its_end(chain, last)),
    }
    if head is not None and head.trial is not None and stages.underway(head):
        wait, plan = stages.wait_of(head), stages.plan_of(head.trial)
        rows, said = stages.of_trial(chain, head.trial), ledger.retirements(settings.ledger, params.case)
        minutes = (stages.watched(rows, said, wall_time()) - head.trial.since).total_seconds() / 60
        found |= {
            "version": stages.on_trial(head),
            "stage": head.stage,
            "share": head.weight / WHOLE,
            "minutes": round(minutes, 1),
            "lasts": {"minutes": wait.minutes, "rows": wait.rows},
            "held": head.trial.held,
            "steps": list(plan.steps),
            "experiment": plan.experiment.outcome if experiment.under_way(head, plan) and plan.experiment else None,
        }
    return found


def _rows(rows: list[Release]) -> list[dict[str, Any]]:
    """The rows of a rollout; ``share`` is that of the version that it is about."""
    version = stages.on_trial(rows[0]) or rows[0].champion
    return [_row(row) | {"share": stages.share_of(version, row)} for row in rows]


def _row(row: Release) -> dict[str, Any]:
    evidence = row.trial.evidence if row.trial is not None else {}
    return {
        "seq": row.seq,
        "when": row.recorded_at.isoformat(timespec="seconds"),
        "action": row.action,
        "stage": row.stage,
        "who": row.actor,
        "why": row.reason,
        "guard": evidence.get("verdict"),
    }


def table(answer: dict[str, Any]) -> Table:
    """A rollout for a person: its rows, and below them how far it is."""
    from rich.table import Table

    drawn = Table(title=f"rollout of {answer['case']}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("seq", "when", "action", "stage", "share", "who", "why"):
        drawn.add_column(name, no_wrap=name != "why")
    for row in answer["rows"]:
        cells = [
            row["seq"],
            row["when"],
            row["action"],
            row["stage"],
            amounts.share(row["share"]),
            row["who"],
            row["why"],
        ]
        drawn.add_row(*map(str, cells))
    drawn.caption = answer["says"]
    if answer["underway"]:
        lasts = answer["lasts"]
        rows = f" and {lasts['rows']} rows" if lasts["rows"] else ""
        if answer["experiment"]:
            drawn.caption += f", until its experiment on {answer['experiment']} has an answer"
        drawn.caption += f", since {answer['minutes']:g} of at least {lasts['minutes']:g} minutes{rows}"
    return drawn
