"""tick: move a case's rollout on by what its traffic says: at most one row of the ledger, however often it is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, NamedTuple

import polars as pl

from pipelines import ledger, storage
from pipelines.alerts import runs
from pipelines.arms import WHOLE
from pipelines.cases import load_fields
from pipelines.contracts import Arm, Order, Release, TrafficLine, Trial, Value
from pipelines.data import traffic
from pipelines.deploy import moves, repository, rollout, stages
from pipelines.deploy.stages import Said
from pipelines.drift import reference
from pipelines.drift.profile import counts
from pipelines.errors import ConflictError
from pipelines.fields import Fields
from pipelines.guard import losses, windows
from pipelines.guard.decide import LOG_LOSS, decide
from pipelines.guard.evidence import Answer, Seen
from pipelines.guard.windows import Loss
from pipelines.line import experiment, runner
from pipelines.line.candidate import promoted
from pipelines.line.facts import DatasetFacts
from pipelines.line.order import ROLLOUT
from pipelines.line.step import Run
from pipelines.params import GateParams, GuardParams, Params
from pipelines.provenance import wall_time
from pipelines.registry import aliases
from pipelines.settings import Settings

FAILPOINTS = ("judged", "appended", "projected", "told")
"""Evidence judged, row in the ledger, aliases set, people told."""
SHORTEST_SECONDS = 2.0
CLOCK, GUARD = "rollout", "guard"
"""Who moves a rollout where no person does: its clock, and the guard where it takes a version back."""
LEAST_MOVE = 100
"""Of all keys: a bandit leaves a weight as it is that it would move by less."""
Judge = Callable[..., Answer]
"""What decides, as :func:`decide` does."""
Outcome = Literal["none", "waits", "holds", "moved", "opened", "overtaken"]
log = logging.getLogger(__name__)


class Tick(Value):
    """What a tick came to; ``over``: no further one is needed for the candidate, or the case if none was named.

    ``row`` is the newest row of the case's releases, ``action`` says what it did if this tick wrote it. The next tick
    is worth its while after ``again_seconds``: a window of the guard, and a minute at most.
    """

    case: str
    outcome: Outcome
    over: bool
    reason: str
    row: int = 0
    action: str = ""
    again_seconds: float = 60.0


def run(
    params: Params,
    settings: Settings,
    *,
    as_of: datetime | None = None,
    now: datetime | None = None,
    judge: Judge = decide,
) -> Tick:
    """Look at the rollout that is under way and write at most one row: its next stage, its end, or nothing yet.

    ``as_of`` names the training run whose candidate this is about: it is opened when its turn has come. Idempotent: the
    ledger's newest row is all that is known of a rollout, a tick that dies is repeated by the next one, and of two at
    once one writes. ``now`` is the wall clock, ``judge`` the guard. Raises Unavailable if Triton does not answer as a
    version should get more traffic, or the ledger is away: nothing was written then.
    """
    case, url, now = params.case, settings.ledger, now or wall_time()
    head = ledger.head(url, case)
    if head is None:
        return Tick(case=case, outcome="none", over=True, reason=f"{case} has no release yet")
    outcome, reason = "none", stages.told(head)
    if (gone := ledger.retirement(url, case)) is not None:
        reason = f"{gone}: {reason}"  # it goes on if the case is taken back, and so do the ticks
    elif stages.underway(head):
        outcome, reason = _moved(params, settings, head, now, judge)
    elif as_of is not None:
        outcome, reason = _opened(params, settings, as_of, now)
    chain = ledger.chain(url, case)
    newest = chain[-1]
    over = _told(params, settings, chain) and not stages.underway(newest)
    if as_of is not None:
        over, why = _over(params, settings, as_of, newest, over)
        reason = f"{reason}; {why}" if why else reason
    action = newest.action if newest.seq != head.seq and outcome in {"moved", "opened"} else ""
    return Tick(
        case=case,
        outcome=outcome,
        over=over,
        reason=reason,
        row=newest.seq,
        action=action,
        again_seconds=_pause(newest),
    )


def _pause(head: Release) -> float:
    if head.trial is None or (guard := stages.plan_of(head.trial).guard) is None:
        return 60.0
    return max(SHORTEST_SECONDS, 60 * min(1.0, guard.window_minutes))


# --- the rollout that is under way --------------------------------------------------------------------


def _moved(params: Params, settings: Settings, head: Release, now: datetime, judge: Judge) -> tuple[Outcome, str]:
    """Judge the newest row's rollout, and write the row that follows from it."""
    assert head.trial is not None
    fields, plan = load_fields(params.case), stages.plan_of(head.trial)
    assert plan.guard is not None  # a rollout in stages has one
    chain = ledger.chain(settings.ledger, params.case)
    of = whose(chain, head.trial, plan.guard)
    rows = [row for row in stages.of_trial(chain, head.trial) if row.seq <= head.seq]
    watched = stages.watched(rows, ledger.retirements(settings.ledger, params.case), now)
    looked = look(params, settings, of, plan.guard, now)
    answer = judge(looked.seen, plan.guard, slo=params.serving.slo, bound=looked.bound)
    said = moves.said(params, head, actor=CLOCK, reason=answer.reason, now=now).model_copy(
        update={"evidence": answer.model_dump(mode="json"), "evidence_hash": storage.digest(list(looked.seen))}
    )
    due = partial(stages.due, head, watched, looked.answered(head))
    asks = answer.verdict != "fail" and not head.trial.held and experiment.under_way(head, plan)
    if asks:
        order, why = _compared(settings, fields, rows, answer, said, watched, due)
    else:
        order, why = _next(settings, head, answer, said, due)
    storage.failpoint("tick", "judged")
    if order is None:
        if not asks and stages.stuck(head, watched):
            runs.tell_once(params, settings, runs.rollout_stuck(params, settings.runbooks, head, why, now))
        return "holds", f"{stages.told(head)}: {why}"
    return _write(params, settings, fields, order, "moved")


class Looked(NamedTuple):
    """What a rollout's traffic says: its windows and the largest difference of losses in them, and what they are of."""

    seen: tuple[Seen, ...]
    bound: float
    of: windows.Trial
    lines: list[TrafficLine]
    pairs: pl.DataFrame

    def answered(self, head: Release) -> int:
        """Rows that the challenger answered since the stage of the newest row began."""
        assert head.trial is not None
        return windows.answered_since(self.of, self.lines, self.pairs, head.trial.since)


def look(params: Params, settings: Settings, of: windows.Trial, limits: GuardParams, now: datetime) -> Looked:
    """Read what the gateways wrote down of a rollout until ``now``."""
    lines = traffic.read(settings, params.case, of.opened, now)
    pairs = traffic.pairs(settings, params.case, of.opened, now)
    cap = _cap(settings, params, of)
    lost = _losses(params, settings, of, pairs, cap, now) if limits.loss is not None else []
    seen = windows.seen(of, lines, pairs, lost, now, number=load_fields(params.case).number is not None)
    return Looked(seen, _bound(params, cap), of, lines, pairs)


def _next(
    settings: Settings, head: Release, answer: Answer, said: Said, due: Callable[[], str]
) -> tuple[Order | None, str]:
    """The order that follows from the guard's answer, or why there is none yet; ``due`` is the stage's."""
    assert head.trial is not None
    if answer.verdict == "fail":
        by_guard = said.model_copy(update={"actor": GUARD})
        if head.stage != "soak":
            return stages.abort(head, by_guard), ""
        below = ledger.previous_release(settings.ledger, head.case)
        if below is None:
            return None, f"the guard would take it back ({answer.reason}), and there is no release below it"
        return stages.take_back(head, below, by_guard), ""
    if head.trial.held:
        return None, f"held: {head.trial.held}"
    if waiting := due():
        return None, waiting
    if answer.verdict != "pass":
        return None, f"the guard does not know enough yet: {answer.reason}"
    if head.stage == "soak":
        return stages.settle(head, said), ""
    return stages.advance(head, said), ""


def _compared(
    settings: Settings,
    fields: Fields,
    rows: Sequence[Release],
    answer: Answer,
    said: Said,
    watched: datetime,
    due: Callable[[], str],
) -> tuple[Order | None, str]:
    """The order that follows from the answer of an experiment, by a rollout's rows, or why there is none yet.

    ``watched`` is now by :func:`stages.watched`.
    """
    head = rows[-1]
    assert head.trial is not None
    plan = stages.plan_of(head.trial)
    compared = experiment.compare(settings, fields, rows, plan, said.now)
    asked = plan.experiment
    assert asked is not None
    assert compared is not None  # its first step has begun
    result = compared.result
    evidence = said.evidence | {"experiment": compared.model_dump(mode="json", exclude={"looks"})}
    digest = storage.digest([said.evidence_hash, list(compared.looks)])
    said = said.model_copy(
        update={"reason": f"{result.verdict}: {result.reason}", "evidence": evidence, "evidence_hash": digest}
    )
    if compared.unsplit:
        return None, compared.unsplit
    if result.verdict == "no difference yet":
        waited = watched - head.trial.since >= timedelta(hours=asked.every_hours)
        if compared.weight is None or not waited or abs(compared.weight - head.weight) < LEAST_MOVE:
            return None, said.reason
        why = f"the bandit has it at {compared.weight / WHOLE:.0%} of all keys: {result.reason}"
        return stages.weigh(head, compared.weight, said.model_copy(update={"reason": why})), ""
    ended = result.verdict == "ended without a difference"
    if result.verdict == "worse" or (ended and asked.otherwise == "champion"):
        return stages.abort(head, said), ""
    if waiting := due():
        return None, f"{said.reason}; {waiting}"
    if answer.verdict != "pass":
        return None, f"{said.reason}; the guard does not know enough yet: {answer.reason}"
    return stages.advance(head, said), ""


def _write(params: Params, settings: Settings, fields: Fields, order: Order, done: Outcome) -> tuple[Outcome, str]:
    try:
        with repository.alone(settings.model_repository, params.case):
            ledger.require_in_service(settings.ledger, params.case)
            row = moves.write(params, settings, fields, order, aliases.project, "tick")
    except ConflictError as error:
        # Somebody else was first: that row stands, and the next tick goes on from it.
        return "overtaken", str(error)
    return done, f"{row.action}: {stages.told(row)}: {row.reason}"


def whose(chain: Sequence[Release], trial: Trial, limits: GuardParams) -> windows.Trial:
    """Whose windows a rollout's are, be it under way or over."""
    rows = stages.of_trial(chain, trial)
    version = rows[0].challenger or rows[0].champion
    before = [row.champion for row in chain if row.seq <= rows[0].seq and row.champion != version]
    return windows.Trial(
        champion=before[-1],
        challenger=version,
        opened=trial.opened,
        window=timedelta(minutes=limits.window_minutes),
        # The row that ends a rollout begins no stage: its `since` is that of the last one.
        weights=[(row.trial.since, row.weight) for row in rows if row.trial is not None and stages.underway(row)],
    )


def _losses(
    params: Params, settings: Settings, of: windows.Trial, pairs: pl.DataFrame, cap: float | None, now: datetime
) -> list[Loss]:
    """The losses of the labelled rows: of those that both answered their difference, of the others each arm's own.

    Of numbers whose losses have no bound there are none. In a case that follows today's clock a label counts once all
    labels of its row's time should have come: those that come first are often of one kind.
    """
    if params.gate.metric in losses.NUMBERS and cap is None:
        return []
    known = pl.col("label").is_not_null()
    both = pairs.filter(known & pl.col("champion_score").is_not_null() & pl.col("challenger_score").is_not_null())
    alone = traffic.answered(settings, params.case, of.opened, now).filter(known & pl.col("score").is_not_null())
    alone = alone.filter(~pl.col("prediction_id").is_in(both["prediction_id"].implode()))
    more, less = (_row_losses(both, params.gate, cap, f"{side}_") for side in ("challenger", "champion"))
    found = [Loss(at, "both", own - other) for at, own, other in zip(_mature(both, params), more, less, strict=True)]
    # What the champion answered for a challenger that gave none are rows that were hard for that one alone.
    stood_in = (pl.col("arm") == "challenger") & (pl.col("version") == of.champion)
    arms: tuple[tuple[Arm, int], ...] = (("champion", of.champion), ("challenger", of.challenger))
    for side, version in arms:
        rows = alone.filter((pl.col("version") == version) & ~stood_in)
        own = _row_losses(rows, params.gate, cap)
        found += [Loss(at, side, loss) for at, loss in zip(_mature(rows, params), own, strict=True)]
    return sorted(found)


def _row_losses(rows: pl.DataFrame, gate: GateParams, cap: float | None, of: str = "") -> list[float]:
    import numpy as np

    if rows.is_empty():
        return []
    answers = rows[f"{of}score"].to_numpy()
    if rows[f"{of}scores"].null_count() == 0:
        answers = np.array(rows[f"{of}scores"].to_list())
    found: list[float] = losses.row_losses(rows["label"].to_numpy(), answers, gate, cap).tolist()
    return found


def _mature(rows: pl.DataFrame, params: Params) -> list[datetime]:
    """When each label may count."""
    at = pl.col("label_received_at")
    if params.schedule.live:
        at = pl.max_horizontal(at, pl.col("received_at") + timedelta(days=params.label_delay_days))
    return rows.select(at).to_series().to_list()


def _cap(settings: Settings, params: Params, of: windows.Trial) -> float | None:
    """The largest loss of a number that counts: the 99% quantile on the holdout of the champion; None: not known."""
    if params.gate.metric not in losses.NUMBERS:
        return None
    champion = rollout.kept(settings, params.case).get(of.champion)
    if champion is None:
        return None
    found = counts.read(rollout.bundle_of(settings, champion) / reference.FILE).baseline.get("cap")
    if not found:
        return None
    return float(found) if params.gate.metric == "rmse" else float(found) ** 0.5


def _bound(params: Params, cap: float | None) -> float:
    if params.gate.metric in losses.NUMBERS and cap is None:
        return LOG_LOSS  # of nothing: without a cap there are no losses
    return losses.bound(params.gate, cap)


# --- a candidate that waits for its turn --------------------------------------------------------------


def _opened(params: Params, settings: Settings, as_of: datetime, now: datetime) -> tuple[Outcome, str]:
    """Open the rollout of the run's candidate, if nothing has become of it yet."""
    run = Run(params, settings, as_of)
    read = runner.reads(ROLLOUT, run)
    candidate = promoted(run, read)
    if candidate is None:
        return "none", "the gate did not promote the candidate"
    chain = ledger.chain(settings.ledger, params.case)
    champion = DatasetFacts.of(read["dataset"]).champion
    if rollout.settled(chain, candidate.candidate_key, candidate.version, champion, as_of) is not None:
        return "none", stages.told(chain[-1])
    order = moves.opening(params, chain[-1], candidate, actor=CLOCK, now=now)
    return _write(params, settings, load_fields(params.case), order, "opened")


def _over(params: Params, settings: Settings, as_of: datetime, newest: Release, over: bool) -> tuple[bool, str]:
    """Whether nothing more can become of the run's candidate, and what did."""
    run = Run(params, settings, as_of)
    read = runner.reads(ROLLOUT, run)
    candidate = promoted(run, read)
    if candidate is None:
        return True, ""
    chain, champion = ledger.chain(settings.ledger, params.case), DatasetFacts.of(read["dataset"]).champion
    known = rollout.settled(chain, candidate.candidate_key, candidate.version, champion, as_of)
    if known is None:
        return False, f"version {candidate.version} waits"
    became, row = known
    if newest.trial is not None and newest.trial.candidate_key == candidate.candidate_key:
        return over, ""
    return became != "opened", f"version {candidate.version}: {became}{f' by row {row.seq}' if row else ''}"


def _told(params: Params, settings: Settings, chain: Sequence[Release]) -> bool:
    """Whether people know that the guard took a version back, if it did so by the newest row.

    Or by the one before the rollout that is under way: the next candidate may be on trial before anybody was told.
    """
    ended = chain[-1]
    if ended.trial is not None and stages.underway(ended):
        ended = chain[stages.of_trial(chain, ended.trial)[0].seq - 2]  # the first row of a case is no rollout's
    if ended.actor != GUARD or ended.action not in {"abort", "rollback"}:
        return True
    done = runs.tell_once(params, settings, runs.rollout_aborted(params, settings.runbooks, ended))
    storage.failpoint("tick", "told")
    return done
