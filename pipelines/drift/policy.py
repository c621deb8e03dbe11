"""When to retrain: a pure state machine on one window's evidence at a time.

    STABLE ------> WATCH ------> CONFIRMED ------> RETRAINING ------> COOLDOWN ------> STABLE
      ^  drifted     |  confirmed    |  retrain allowed   outcome known    time is up
      '-- clean x3 --'-- clean x3 ---'
    any state ---> BLOCKED_DATA_QUALITY ---> the state it came from, once a window is sound again

WATCH: a feature moved by more than ``delta0`` (compare.py). CONFIRMED, by the first of these that holds:

1. *performance*: the e-CUSUM of the error rate reached its threshold, or the metric's drop exceeded
   ``min_metric_drop`` with confidence in ``confirm`` of the last ``out_of`` windows with labels. Inputs need
   not have moved: concept drift moves none.
2. *inputs, and labels agree*: the same feature drifted in ``confirm`` of the last ``out_of`` windows, and the
   metric's drop exceeds ``min_metric_drop`` now.
3. *inputs, and labels cannot speak yet*: the same feature drifted in ``confirm`` of ``out_of`` windows, fewer
   than half of the rows of the windows in which it drifted have a label, and it is severe, or what
   drifted is the score or the predicted class. Where labels of those rows have arrived and show no drop, the shift is
   harmless.

The first is the trigger *performance*, the other two are *drift*. The trigger *headroom* asks neither: a probe of newer
rows gained something ``BEYOND_DOUBT``, and more than the price of a retraining with confidence (pipelines/headroom), in
the newest window or in the last ``POOLED`` together; or in the sum of many by an e-CUSUM against "it gains no more than
its price". ``triggers`` says to which of the three a case listens. The trigger *volume* needs nothing of all that:
since the champion's training, or since the last retraining that was asked for under it, more labelled rows have arrived
than ``new_data`` declares. Schedules and people retrain beside this machine (their runs never pass it).

History, e-CUSUMs, drops and gains belong to one champion: another champion has another reference and starts anew.
A confirmed drift that may not retrain yet (labels, budget) stays CONFIRMED and asks for it at every window.
One step can pass several states (a month may outlast a cooldown); ``path`` names them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pipelines.amounts import amount
from pipelines.contracts import EpisodeTrigger, Mean
from pipelines.drift.evidence import DriftEvidence, Gain, PolicyState
from pipelines.drift.labels import sequential
from pipelines.drift_report import Action, HeldBy, Mark, Rule, State
from pipelines.feature_names import OUTPUTS
from pipelines.measures import around, pooled
from pipelines.moments import day
from pipelines.params import DriftParams

POOLED = 2
"""Windows whose gains are taken together."""
CONTRADICTS = 3.0
"""Two windows' gains that are further apart than so many standard errors are not of one world."""
BEYOND_DOUBT = 0.9995
"""A gain has to be above nothing with so much confidence, both sides.

Few rows reach far above any price by chance: at 90% in every twentieth window, however little a retraining gives. Two
figures a window, the newest alone and both together, do so once in 2,000 windows, and a little more often where a
window has few days.
"""
RETRAINED = {
    "promoted": "retrained and promoted",
    "overtaken": "retrained, not promoted",
    "kept": "retrained, not promoted",
    "missing": "the training run gave no verdict",
}
"""What became of a retraining, in words."""
ORDER: tuple[EpisodeTrigger, ...] = ("performance", "headroom", "drift", "volume")
"""Of several reasons the first one names the episode."""


def labels_needed(training_rows: int, config: DriftParams) -> int:
    """New labelled rows that a retraining needs: ``min(at_most, max(at_least, share * training_rows))``."""
    at_most, at_least, share = config.min_new_labels
    return min(at_most, max(at_least, math.ceil(share * training_rows)))


def volume_needed(training_rows: int, config: DriftParams) -> int | None:
    """New labelled rows that open an episode by themselves, or None where none do.

    The smaller one of ``new_data.rows`` and ``new_data.share`` times the champion's ``training_rows``, rounded up.
    """
    declared = config.new_data
    if declared is None:
        return None
    shares = [] if declared.share is None else [math.ceil(declared.share * training_rows)]
    return max(1, min([*shares, *([] if declared.rows is None else [declared.rows])]))


def episode_id(case: str, confirmed: datetime) -> str:
    """The name of the episode confirmed by the window run of ``confirmed``.

    >>> from datetime import UTC
    >>> episode_id("bank", datetime(2008, 12, 1, tzinfo=UTC))
    'bank-20081201T000000Z'
    """
    return f"{case}-{confirmed:%Y%m%dT%H%M%SZ}"


def step(
    state: PolicyState | None, evidence: DriftEvidence, config: DriftParams, now: datetime, case: str, end: datetime
) -> tuple[PolicyState, Action]:
    """The state after the window that ended at ``end``, judged at ``now`` (both event time), and what to do.

    Pure: no clock, no input or output; equal arguments give equal answers. ``alert`` asks for a person,
    ``retrain`` comes once per episode.
    """
    before = state or PolicyState(champion=evidence.champion, end=end, cooldown_days=config.cooldown_days)
    path: list[State] = [before.name]
    after = _adopt(before, evidence, config).model_copy(
        update={"end": end, "action": "none", "rule": None, "reason": "", "path": (), "would": ()}
    )
    if after.name != before.name:
        path.append(after.name)
    if evidence.problems:
        resume = after.resume if after.name == State.BLOCKED_DATA_QUALITY else after.name
        after = after.model_copy(
            update={
                "name": State.BLOCKED_DATA_QUALITY,
                "resume": resume,
                "action": "alert",
                "rule": "data_quality",
                "reason": "; ".join(evidence.problems),
            }
        )
    else:
        if after.name == State.BLOCKED_DATA_QUALITY:
            after = after.model_copy(update={"name": after.resume, "resume": State.STABLE})
            path.append(after.name)
        after = _observe(after, evidence, config)
        after = after.model_copy(update={"would": tuple(one.trigger for one in reasons(after, evidence, config))})
        outcome: Rule | None = None
        because = ""
        for _ in range(len(TRANSITIONS) + 1):
            moved = TRANSITIONS[after.name](after, evidence, config, now, case)
            still, after = moved.name == after.name, moved
            if still or after.action == "retrain":
                break
            path.append(after.name)
            if after.name in {State.COOLDOWN, State.STABLE} and after.reason:
                outcome, because = after.rule, after.reason
        if because and because != after.reason:
            after = after.model_copy(update={"reason": f"{because}; {after.reason}"})
        if outcome == "calmed" and after.name == State.STABLE:
            after = after.model_copy(update={"rule": outcome})
    if path[-1] != after.name:
        path.append(after.name)
    after = after.model_copy(update={"path": tuple(path)} | _held_back(after, evidence, config))
    return after, after.action


def _adopt(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> PolicyState:
    """Start anew under another champion; a retraining and a cooldown under way go on."""
    if state.champion == evidence.champion:
        return state
    fresh = {
        "champion": evidence.champion,
        "marks": (),
        "drops": (),
        "gains": (),
        "grown": 0.0,
        "held_back": 0,
        "clean": 0,
        "log_e": 0.0,
        "alarmed": False,
        "cooldown_days": config.cooldown_days,
    }
    fresh["tried_labels"] = 0
    # Somebody else's promotion or rollback answers an episode that has not retrained yet.
    closed = {"episode": None, "name": State.STABLE} if state.name in {State.WATCH, State.CONFIRMED} else {}
    resume = (
        {"resume": State.STABLE, "episode": None}
        if state.name == State.BLOCKED_DATA_QUALITY and state.resume in {State.WATCH, State.CONFIRMED}
        else {}
    )
    return state.model_copy(update=fresh | closed | resume)


def _observe(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> PolicyState:
    """Enter the window into the history and the labels into the e-CUSUM."""
    labels = evidence.labels
    log_e = state.log_e if labels.log_e is None else sequential.grown(state.log_e, labels.log_e)
    alarmed = state.alarmed or log_e >= math.log(config.cusum_threshold)
    drifted, dropping = _drifted(evidence), _dropping(evidence, config)
    severe = tuple(feature.feature for feature in evidence.features if feature.drifted and feature.severity == "severe")
    calm = not drifted and not dropping and not alarmed
    clean = calm and all(
        feature.debiased_psi < config.clean_psi for feature in evidence.features if not feature.ignored
    )
    # Too few rows say nothing about inputs: such a window neither drifts, nor is clean, nor pushes another out.
    marks = state.marks if evidence.thin else (*state.marks, Mark(end=state.end, drifted=drifted, severe=severe))
    drops = state.drops if labels.drop is None else (*state.drops, dropping)
    quiet = state.clean + 1 if clean else 0
    if evidence.thin and calm:
        quiet = state.clean
    return state.model_copy(
        update={
            "log_e": log_e,
            "alarmed": alarmed,
            "marks": marks[-config.out_of :],
            "drops": drops[-config.out_of :],
            "clean": quiet,
        }
        | _gained(state, evidence)
    )


def _gained(state: PolicyState, evidence: DriftEvidence) -> dict[str, Any]:
    """The window's gain, beside that of the window before. A window without a figure changes nothing."""
    found = evidence.headroom
    if found.estimate is None and found.own_estimate is None:
        return {}
    gain = Gain(end=state.end, champion=found.estimate, own_past=found.own_estimate)
    return {"gains": (*state.gains, gain)[-POOLED:], "grown": sequential.grown(state.grown, found.log_e)}


def pooled_gains(gains: Sequence[Gain], confidence: float) -> tuple[Mean | None, Mean | None]:
    """The gain over the last windows, and that of a probe over one of the champion's time; None where there is none."""
    champion, past = together(gains, confidence)
    return pooled(champion) if champion else None, pooled(past) if past else None


def together(gains: Sequence[Gain], confidence: float) -> tuple[list[Mean], list[Mean]]:
    """The windows' figures that are taken together: the newest alone, or those before that do not contradict it, too.

    Whichever has the higher lower end: two windows are surer than one, but in a decline the older one lags behind.
    After a jump an older window says nothing of now, however sure it was.
    """
    champion = [gain.champion for gain in gains if gain.champion is not None]
    past = [gain.own_past for gain in gains if gain.own_past is not None]
    return _taken(champion, confidence), _taken(past, confidence)


def least(mean: Mean) -> float:
    """What a mean gain is at least, beyond doubt.

    >>> least(Mean(value=0.08, se=0.02)) > 0 > least(Mean(value=0.08, se=0.025))
    True
    """
    return around(mean, BEYOND_DOUBT).low


def _taken(means: Sequence[Mean], confidence: float) -> list[Mean]:
    if not means:
        return []
    newest = means[-1]
    agreeing = [
        mean for mean in means if abs(mean.value - newest.value) <= CONTRADICTS * math.hypot(mean.se, newest.se)
    ]
    return max([newest], agreeing, key=lambda taken: around(pooled(taken), confidence).low)


def _drifted(evidence: DriftEvidence) -> tuple[str, ...]:
    return tuple(feature.feature for feature in evidence.features if feature.drifted)


def _dropping(evidence: DriftEvidence, config: DriftParams) -> bool:
    drop = evidence.labels.drop
    return drop is not None and drop.low > config.min_metric_drop


class Confirmed(NamedTuple):
    """What opens an episode in a window, by which rule, and why, as a sentence."""

    trigger: EpisodeTrigger
    rule: Rule
    why: str


def confirmation(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> Confirmed | None:
    """What opens an episode in this window; None if nothing does that the case listens to."""
    heard = ("volume", *config.triggers)
    return next((found for found in reasons(state, evidence, config) if found.trigger in heard), None)


def reasons(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> list[Confirmed]:
    """All that has reason to open an episode in this window, listened to or not, in ``ORDER``."""
    found = {
        "performance": _worse(state, evidence, config),
        "headroom": _pays(state, evidence, config),
        "drift": _moved(state, evidence, config),
        "volume": _more_rows(state, evidence, config),
    }
    return [Confirmed(trigger, *why) for trigger in ORDER if (why := found[trigger]) is not None]


def _worse(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> tuple[Rule, str] | None:
    """Rule 1: labels alone."""
    if state.alarmed:
        reached = f"e-CUSUM e^{state.log_e:.1f} reached {config.cusum_threshold:g}"
        return "errors_rose", f"the champion errs more than on its holdout ({reached})"
    drop = evidence.labels.drop if _dropping(evidence, config) else None
    if drop is not None and sum(state.drops) >= config.confirm:
        of = f"{sum(state.drops)} of the last {len(state.drops)} windows with labels"
        return "loss_rose", f"the {evidence.labels.loss} rose in {of}, now by {amount(drop.value)}"
    return None


def _pays(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> tuple[Rule, str] | None:
    """A retraining gains more than it costs: over the last windows beyond doubt, or in the sum of many."""
    found, mean = evidence.headroom, _gain(state, evidence)
    if mean is None:
        return None
    gain = around(mean, found.confidence)
    told = f"a retraining would gain {found.told(gain)}"
    if gain.low > found.price and least(mean) > 0:
        return "gain_above_price", told
    if gain.value > found.price and state.grown >= math.log(config.cusum_threshold):
        reached = f"e-CUSUM e^{state.grown:.1f} reached {config.cusum_threshold:g}"
        return "gain_kept_up", f"{told}, and it was above that window after window ({reached})"
    return None


def _gain(state: PolicyState, evidence: DriftEvidence) -> Mean | None:
    """The gain that decides, over the last windows; None where this window has no figure."""
    found = evidence.headroom
    if found.deciding(found.estimate, found.own_estimate) is None:
        return None
    return found.deciding(*pooled_gains(state.gains, found.confidence))


def _held_back(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> dict[str, Any]:
    """In how many windows in a row a gain was above its price and nothing was asked for, and what was in the way.

    A window without a figure, or with wrong rows, says nothing of the gain: the count stays.
    """
    count = state.held_back
    if state.action == "retrain":
        count = 0
    elif state.name != State.BLOCKED_DATA_QUALITY and _gain(state, evidence) is not None:
        count = count + 1 if "headroom" in state.would else 0
    return {"held_back": count, "held_by": _held_by(state, config) if count else None}


def _held_by(state: PolicyState, config: DriftParams) -> HeldBy:
    if state.name == State.BLOCKED_DATA_QUALITY:
        return "data_quality"
    if state.name == State.RETRAINING:
        return "verdict"
    if state.name == State.CONFIRMED:
        return "labels" if state.rule == "waits_for_labels" else "budget"
    return "cooldown" if "headroom" in config.triggers else "trigger_off"


def _more_rows(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> tuple[Rule, str] | None:
    """Enough labelled rows are new."""
    needed, new = volume_needed(evidence.training_rows, config), evidence.fresh_labels - state.tried_labels
    if needed is None or new < needed:
        return None
    since = "the last retraining was asked for" if state.tried_labels else "the champion was trained"
    return "new_rows", f"{new} labelled rows are new since {since} ({needed} were declared enough)"


def _moved(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> tuple[Rule, str] | None:
    """Rules 2 and 3: inputs, with labels that agree or cannot speak yet."""
    drop = evidence.labels.drop if _dropping(evidence, config) else None
    counts = Counter(name for mark in state.marks for name in mark.drifted)
    again = sorted(
        (name for name, count in counts.items() if count >= config.confirm), key=lambda name: (-counts[name], name)
    )
    if not again:
        return None
    of = f"{config.confirm} of {config.out_of} windows"
    if drop is not None:
        return (
            "inputs_and_loss",
            f"{_named(again)} moved in {of}, and the {evidence.labels.loss} rose by {amount(drop.value)}",
        )
    dumb = [name for name in again if _unlabelled(state, evidence, name)]
    severe = {name for name in dumb if any(name in mark.severe for mark in state.marks)}
    if severe:
        return "inputs_severe", f"{_named(sorted(severe))} moved severely in {of} whose labels have not arrived"
    given = [name for name in dumb if name in OUTPUTS]
    if given:
        return "outputs_moved", f"the {given[0]} moved in {of} whose labels have not arrived"
    return None


def _unlabelled(state: PolicyState, evidence: DriftEvidence, name: str) -> bool:
    """Whether fewer than half of the rows of the windows in which ``name`` drifted have a label."""
    shares = [evidence.labelled.get(mark.end.isoformat(), 0.0) for mark in state.marks if name in mark.drifted]
    return sum(shares) < 0.5 * len(shares)


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _watching(
    state: PolicyState, evidence: DriftEvidence, config: DriftParams, now: datetime, case: str
) -> PolicyState:
    """STABLE and WATCH."""
    found = confirmation(state, evidence, config)
    if found is not None:
        opened = {
            "name": State.CONFIRMED,
            "episode": episode_id(case, now),
            "trigger": found.trigger,
            "verdict": "none",
            "rule": found.rule,
            "reason": found.why,
        }
        return state.model_copy(update=opened)
    if _drifted(evidence) or _dropping(evidence, config):
        moved = _named(list(_drifted(evidence)) or ["the log-loss"])
        why = f"{moved} moved in this window; not confirmed"
        return state.model_copy(update={"name": State.WATCH, "rule": "moved_once", "reason": why})
    if state.name == State.WATCH and state.clean >= config.clean_windows:
        return state.model_copy(
            update={"name": State.STABLE, "rule": "calmed", "reason": f"{state.clean} clean windows"}
        )
    rule, quiet = _quiet(evidence)
    if state.name != State.STABLE:
        quiet = f"{quiet}; {state.clean} of {config.clean_windows} clean windows"
    return state.model_copy(update={"rule": rule, "reason": quiet})


def _quiet(evidence: DriftEvidence) -> tuple[Rule, str]:
    """Why nothing was found."""
    if evidence.unread:
        return "unread", f"{evidence.unread:,} rows cannot be read yet: not compared"
    if evidence.thin:
        return "few_rows", "too few rows to compare"
    return "quiet", "nothing moved"


def _confirmed(
    state: PolicyState, evidence: DriftEvidence, config: DriftParams, now: datetime, case: str
) -> PolicyState:
    """CONFIRMED: retrain as soon as it is allowed."""
    del case
    if (gone := _gone(state, evidence, config)) is not None:
        return state.model_copy(update={"name": State.STABLE, "episode": None, "rule": "calmed", "reason": gone})
    rule, why = state.rule, state.reason
    if not why:
        found = confirmation(state, evidence, config)
        earlier = (
            "a gain above its price was found earlier" if state.trigger == "headroom" else "drift was confirmed earlier"
        )
        rule, why = (found.rule, found.why) if found else ("confirmed_before", earlier)
    needed = labels_needed(evidence.training_rows, config)
    recent = tuple(moment for moment in state.retrains if now - moment < timedelta(days=config.max_retrains_days))
    if evidence.fresh_labels < needed:
        wait = f"waiting for labels: {evidence.fresh_labels} of {needed} new labelled rows"
        return state.model_copy(update={"action": "alert", "rule": "waits_for_labels", "reason": f"{why}; {wait}"})
    if len(recent) >= config.max_retrains:
        wait = f"{len(recent)} retrainings in {config.max_retrains_days:g} days are enough: a person should look"
        return state.model_copy(update={"action": "alert", "rule": "too_many_retrainings", "reason": f"{why}; {wait}"})
    asked = {"retrained_at": now, "retrains": (*recent, now), "tried_labels": evidence.fresh_labels}
    return state.model_copy(update={"name": State.RETRAINING, "action": "retrain", "rule": rule, "reason": why} | asked)


def _gone(state: PolicyState, evidence: DriftEvidence, config: DriftParams) -> str | None:
    """Why there is nothing to retrain for any more; None: there is. New rows do not go away by themselves."""
    if state.trigger == "volume":
        return None
    if state.trigger == "headroom":
        mean, price, unit = _gain(state, evidence), evidence.headroom.price, evidence.headroom.unit
        if mean is None or mean.value > price:
            return None
        return f"a retraining would gain {amount(mean.value)} {unit} now, less than it costs ({price:g})"
    if state.clean >= config.clean_windows:
        return f"{state.clean} clean windows: the drift went away by itself"
    return None


def _retraining(
    state: PolicyState, evidence: DriftEvidence, config: DriftParams, now: datetime, case: str
) -> PolicyState:
    """RETRAINING: wait for the verdict; a run that gives none in the longest cooldown counts as not promoted."""
    del case
    asked = state.retrained_at or now
    late = now - asked >= timedelta(days=config.max_cooldown_days)
    if evidence.outcome in {"none", "pending"} and not late:
        return state.model_copy(
            update={"rule": "waits_for_verdict", "reason": f"the training run of {state.episode} has no verdict yet"}
        )
    verdict = "missing" if evidence.outcome in {"none", "pending"} else evidence.outcome
    renewed = verdict in {"promoted", "overtaken"}
    why = RETRAINED[verdict] + (f": {evidence.meanwhile}" if renewed and evidence.meanwhile else "")
    days, action = config.cooldown_days, "none"
    if not renewed:
        days, action = min(2 * state.cooldown_days, config.max_cooldown_days), "alert"
    # What was seen led to this retraining: the next one has to be seen anew. Under a new champion it is, and what this
    # window says of it counts: where windows are long, a decline would else be slept through for one of them.
    seen = {} if renewed else {"log_e": 0.0, "alarmed": False, "gains": (), "grown": 0.0}
    fresh = {
        "held_back": 0,
        "episode": None,
        "verdict": verdict,
        "cooldown_days": days,
        "cooldown_until": asked + timedelta(days=days),
    }
    return state.model_copy(
        update={
            "name": State.COOLDOWN,
            "action": action,
            "rule": "retrained",
            "reason": f"{why}; cooldown of {days:g} days",
        }
        | fresh
        | seen
    )


def _cooling(state: PolicyState, evidence: DriftEvidence, config: DriftParams, now: datetime, case: str) -> PolicyState:
    """COOLDOWN: look, do nothing."""
    del evidence, config, case
    if state.cooldown_until is not None and now < state.cooldown_until:
        return state.model_copy(
            update={
                "rule": state.rule or "cooling",
                "reason": state.reason or f"nothing is done until {day(state.cooldown_until)}",
            }
        )
    return state.model_copy(update={"name": State.STABLE, "rule": None, "reason": "", "cooldown_until": None})


TRANSITIONS: dict[State, Callable[[PolicyState, DriftEvidence, DriftParams, datetime, str], PolicyState]] = {
    State.STABLE: _watching,
    State.WATCH: _watching,
    State.CONFIRMED: _confirmed,
    State.RETRAINING: _retraining,
    State.COOLDOWN: _cooling,
}
