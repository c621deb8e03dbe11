"""What can be asked of a case beside its steps: what a command answers is printed. Rooms are imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipelines import ledger, objects
from pipelines.cases import Case
from pipelines.cases.surveying import survey
from pipelines.contracts import Trigger
from pipelines.errors import ConfigError
from pipelines.files import write_atomic
from pipelines.line import facts, order, runner
from pipelines.line.step import Run, Step
from pipelines.params import Params
from pipelines.settings import Settings

POLICIES = (
    "never,monthly,quarterly,half-yearly,drift,performance,headroom,headroom-alone,headroom@0.03,headroom@0.1,oracle"
)
"""What a replay compares unless others are named."""
LENGTHS = (30, 60, 90, 180, 365, 730)
"""Days of history that are tried beside a case's own unless others are named."""


def trigger(params: Params, settings: Settings, as_of: datetime) -> Trigger:
    """What a run by hand is: the case's first, or one that somebody wanted."""
    if ledger.champion_before(settings.ledger, params.case, as_of) is None:
        return "initial"
    return "manual"


def _history(params: Params, settings: Settings) -> dict[str, Any]:
    """The releases of a case: which version, since when, by whom, why, and on which verdict.

    And the verdicts that released nothing, and when it was retired or taken back.
    """
    from pipelines.reports import history

    return {
        "case": params.case,
        "releases": history.releases(settings, params.case),
        "verdicts": history.verdicts(settings, params.case),
        "retirements": [one.model_dump(mode="json") for one in ledger.retirements(settings.ledger, params.case)],
    }


def _history_table(answer: dict[str, Any]) -> Any:
    from pipelines.reports import history

    drawn = history.table(answer["case"], answer["releases"], answer["verdicts"])
    drawn.caption = history.standing(answer["retirements"])
    return drawn


def _audit(params: Params | None, settings: Settings) -> dict[str, Any]:
    """Check the ledger: every row against its hashes and the journal, what refers to what.

    And the files that releases go by.
    """
    from pipelines import audit

    if params is None:
        return audit.audit(settings)
    return audit.audit(settings, params.case)


def _push(params: Params | None, settings: Settings) -> dict[str, Any]:
    """Put the state folder's lake and artefacts into the store of PERENNIAL_LAKE: what is there already stays."""
    if not settings.lake:
        raise ConfigError("PERENNIAL_LAKE names no store: set it to where lake and artefacts shall lie")
    return {"store": settings.lake, **objects.push(settings, "" if params is None else params.case)}


def _reproduce(params: Params, settings: Settings, *, version: int) -> dict[str, Any]:
    """Train a registered version again from its record, and name the first layer that differs if its weights do."""
    from pipelines.reproduction import retrain

    return retrain.reproduce(settings, params.case, version)


def _retrain(params: Params, settings: Settings, *, as_of: datetime, reason: str) -> dict[str, Any]:
    """Train, judge and release a candidate by hand: the whole line, as the training DAG runs it."""
    ledger.require_in_service(settings.ledger, params.case)
    run = Run(params, settings, as_of, trigger=trigger(params, settings, as_of), reason=reason)
    made = {step.name: runner.run(step, run) for step in order.TRAINING if isinstance(step, Step)}
    verdict, release = facts.GateFacts.of(made[order.GATE.name]), facts.RolloutFacts.of(made[order.ROLLOUT.name])
    return {
        "case": params.case,
        "as_of": as_of.isoformat(),
        "version": release.version,
        "decision": verdict.decision,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "outcome": release.outcome,
        "champion": runner.act(order.RECONCILE, params, settings, {})["champion"],
    }


def _rescore(
    params: Params,
    settings: Settings,
    *,
    begin: datetime,
    end: datetime,
    version: int | None = None,
    page: str | None = None,
) -> dict[str, Any]:
    """Score logged rows again: what was answered must come out; with --version what that version would have said."""
    from pipelines.reports import rescored
    from pipelines.rescoring.command import rescore

    answer = rescore(params, settings, begin, end, version)
    if page is not None:
        write_atomic(Path(page).absolute(), rescored.page(answer).encode())
    return answer


def _rescore_table(answer: dict[str, Any]) -> Any:
    from pipelines.reports import rescored

    return rescored.table(answer)


def _alerts(params: Params, settings: Settings) -> dict[str, Any]:
    """The alerts that a case had: since when, how often found, open or resolved; and the silences in force."""
    found = ledger.alerts(settings.ledger, params.case)
    silences: list[Any] = []
    for newest in ledger.alert_runs(settings.ledger, params.case, last=1):
        silences = ledger.silences(settings.ledger, params.case, datetime.fromisoformat(newest["as_of"]))
    return {"case": params.case, "alerts": [alert.model_dump(mode="json") for alert in found], "silences": silences}


def _silence(params: Params, settings: Settings, *, rule: str, until: datetime, reason: str) -> dict[str, Any]:
    """Tell nobody of a rule's alerts until a time; they are still counted."""
    ledger.silence(settings.ledger, case=params.case, rule=rule, until=until, reason=reason, actor=settings.who)
    return {"case": params.case, "rule": rule, "until": until.isoformat(), "actor": settings.who}


def _metrics(
    params: Params | None, settings: Settings, *, port: int | None = None, host: str = "127.0.0.1"
) -> dict[str, Any]:
    """Write what Prometheus may know to metrics.prom in the state folder, or serve it at /metrics on a port."""
    from pipelines.reports import metrics

    def asked() -> tuple[list[Params], dict[str, str]]:
        found = survey(settings) if params is None else [Case(params.case, params)]
        readable = [case.params for case in found if case.params is not None]
        return readable, {case.name: case.problem for case in found if case.problem}

    if port is not None:
        metrics.serve(settings, asked, host, port)
    path = settings.root / "metrics.prom"
    readable, broken = asked()
    text = metrics.render(settings, readable, broken)
    write_atomic(path, text.encode())
    return {"file": str(path), "series": sum(not line.startswith("#") for line in text.splitlines()), "broken": broken}


def _replay(
    params: Params,
    settings: Settings,
    *,
    policies: str = POLICIES,
    since: datetime | None = None,
    until: datetime | None = None,
    months: int | None = None,
    price: float | None = None,
    seeds: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Replay history under several retrain policies, and show loss against cost: JSON, a picture and a page."""
    from pipelines.replay import command

    asked = {
        "policies": policies,
        "since": since and since.date(),
        "until": until and until.date(),
        "months": months,
        "price": price,
        "seeds": seeds,
    }
    return command.run(params, settings, asked)


def _replay_table(answer: dict[str, Any]) -> Any:
    from pipelines.replay import command

    return command.table(answer)


def _windows(
    params: Params,
    settings: Settings,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    since: datetime | None = None,
    until: datetime | None = None,
    months: int | None = None,
) -> dict[str, Any]:
    """Say how far back a training should look: a probe per window length, judged on the rows that followed."""
    from pipelines.replay.windows import windows

    return windows(params, settings, lengths, since and since.date(), until and until.date(), months)


def _init(
    params: Params | None,  # noqa: ARG001 - there are none yet
    settings: Settings,
    *,
    name: str,
    from_: str,
    label: str,
    time: str,
    id_: str | None = None,
    label_time: str | None = None,
    target: Literal["binary", "classes", "number"] | None = None,
    table: str | None = None,
    query: str | None = None,
    format_: str | None = None,
    zone: str | None = None,
    unit: Literal["s", "ms", "us", "ns"] | None = None,
    known: list[str] | None = None,
    without: list[str] | None = None,
    to: str | None = None,
    pin: bool = False,
    program: str = "perennial",
) -> dict[str, Any]:
    """Write a new case from a look at files or a table: its fields, source, parameters and a test."""
    from pipelines.cli import starting
    from pipelines.cli.looking import Where
    from pipelines.inspection.table import Asked

    asked = Asked(name, label, time, id_, target, tuple(known or ()), tuple(without or ()), label_time, zone, unit)
    return starting.init(asked, Where(from_, table, query, format_), settings, to=to, pin=pin, program=program)


def _init_table(answer: dict[str, Any]) -> Any:
    from pipelines.cli import starting

    return starting.table(answer)


def _import(
    params: Params,
    settings: Settings,
    *,
    from_: str,
    id_: str | None = None,
    time: str | None = None,
    label: str | None = None,
    label_time: str | None = None,
    score: str | None = None,
    column: list[str] | None = None,
    label_values: str | None = None,
    format_: str | None = None,
    zone: str | None = None,
    unit: Literal["s", "ms", "us", "ns"] | None = None,
) -> dict[str, Any]:
    """Take rows that were answered elsewhere, and their labels, into the log of a case that has no history."""
    from pipelines.cases import load_fields
    from pipelines.cli import importing
    from pipelines.cli.importing import Given

    fields = load_fields(params.case)
    named = {"id": id_, "event_time": time, "label_time": label_time, fields.label: label}
    columns: dict[str, str | None] = {own: theirs for own, theirs in named.items() if theirs is not None}
    if id_ == "-":
        columns["id"] = None
    columns |= importing.pairs(column or (), fields)
    values = tuple(label_values.split(",")) if label_values else ()
    given = Given(from_, format_, tuple(columns.items()), score, zone, unit, values)
    return importing.take(params, settings, given)


def _import_table(answer: dict[str, Any]) -> Any:
    from pipelines.cli import importing

    return importing.table(answer)


def _try(params: Params, settings: Settings, *, as_of: datetime | None = None) -> dict[str, Any]:
    """Play the line from ingest to gate on a case's history, in a folder of its own and without any service."""
    from pipelines.cli import trying

    return trying.play(params, settings, as_of)


def _try_table(answer: dict[str, Any]) -> Any:
    from pipelines.cli import trying

    return trying.table(answer)


def _retire(
    params: Params | None,  # noqa: ARG001 - its folder may be gone
    settings: Settings,
    *,
    case: str,
    reason: str,
    undo: bool = False,
) -> dict[str, Any]:
    """Take a case out of service, or back into it (--undo): what it predicted, learned and decided stays."""
    from pipelines.cli import retiring

    if undo:
        return retiring.take_back(settings, case, reason)
    return retiring.retire(settings, case, reason)


@dataclass(frozen=True)
class Command:
    """A command by its function.

    The first line of its docstring is the help; its arguments after parameters and settings are options (options.py),
    and what has a default need not be given. ``every_case``: it speaks of all cases unless one is named. ``holds`` says
    whether an answer is a yes; a no is exit code 1. ``table`` draws the answer for a person at a terminal, where it is
    not drawn as all others are (reports/answers.py). ``about``: how the case is named, by the option ``--case``, by its
    place, by either, or not at all as it is yet to be made. ``reads`` the case's folder, and fails without it.
    """

    run: Callable[..., Any]
    every_case: bool = False
    holds: Callable[[Any], bool] = lambda _answer: True
    table: Callable[[Any], Any] | None = None
    about: Literal["option", "place", "either", "new"] = "option"
    reads: bool = True


COMMANDS = {
    "init": Command(_init, table=_init_table, about="new"),
    "try": Command(_try, table=_try_table, about="place"),
    "import": Command(_import, table=_import_table, about="place"),
    "history": Command(_history, table=_history_table),
    "audit": Command(_audit, every_case=True, holds=lambda answer: answer["ok"]),
    "push": Command(_push, every_case=True),
    "reproduce": Command(_reproduce, holds=lambda answer: answer["identical"]),
    "rescore": Command(_rescore, table=_rescore_table, about="either", holds=lambda answer: answer["ok"]),
    "retrain": Command(_retrain),
    "alerts": Command(_alerts),
    "silence": Command(_silence),
    "metrics": Command(_metrics, every_case=True),
    "replay": Command(_replay, table=_replay_table, about="either"),
    "windows": Command(_windows, about="either"),
    "retire": Command(_retire, about="place", reads=False),
}
"""Commands about a case that are no steps."""
