"""pipelines/deploy/stages.py on the real ledger: whatever happens to a rollout, in any order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipelines import ledger
from pipelines.arms import challenged
from pipelines.audit import within
from pipelines.contracts import CHANGES, Order, Release
from pipelines.deploy import stages
from pipelines.deploy.rollout import settled
from pipelines.deploy.stages import Candidate, Said
from pipelines.errors import ConflictError
from pipelines.params import RolloutParams

T0 = datetime(2026, 11, 1, tzinfo=UTC)
PLANS = {
    "safe": RolloutParams.model_validate("safe"),
    "careful": RolloutParams.model_validate({"preset": "careful", "soak_minutes": 30}),
    "blue-green": RolloutParams.model_validate({"soak_minutes": 10}),
    "replace": RolloutParams.model_validate({"preset": "safe", "meanwhile": "replace"}),
    "bandit": RolloutParams.model_validate(
        {
            "steps": [0.3, 0.6, 1.0],
            "soak_minutes": 10,
            "experiment": {"outcome": "label", "horizon_hours": 1, "bandit": True, "bounds": [0.1, 0.9]},
        }
    ),
}
KEYS = [f"customer-{number}" for number in range(40)]
CASES = count()


def candidate(version: int) -> Candidate:
    """The candidate that would be this version."""
    return Candidate(
        version=version,
        candidate_key=f"k{version}",
        bundle=f"artefacts/{version}",
        mlflow_run=f"run-{version}",
        verdict_hash=f"v{version}",
        trigger="schedule",
        as_of=T0,
    )


def said(minute: int = 0, actor: str = "ada", reason: str = "because") -> Said:
    """Somebody's word, a minute of the rollout's clock."""
    now = T0 + timedelta(minutes=minute)
    return Said(actor=actor, reason=reason, now=now, as_of=now)


def first(url: str, case: str) -> Release:
    """A first champion, version 1."""
    own = candidate(1).model_dump(exclude={"version", "reason", "by_hand"})
    return ledger.append(url, Order(case=case, after=0, champion=1, action="promote", reason="r", actor="a", **own))


class Rollouts(RuleBasedStateMachine):
    """Trainings that come, ticks, people and the guard, and orders of somebody who looked before another one wrote."""

    url = ""

    @initialize()
    def begin(self) -> None:
        """A case of its own, with a champion."""
        self.case = f"case{next(CASES)}"
        self.head, self.minute, self.version = first(self.url, self.case), 0, 1
        self.stale = self.head

    def _said(self) -> Said:
        self.minute += 1
        return said(self.minute)

    def _append(self, make, *given) -> bool:
        """What somebody would write who sees the newest row, and then what one would who saw an older one."""
        try:
            order = make(self.head, *given)
        except ConflictError:
            return False
        before, self.head = self.head, ledger.append(self.url, order)
        with pytest.raises(ConflictError):
            ledger.append(self.url, order)
        self.stale = before
        return True

    @rule(plan=st.sampled_from(sorted(PLANS)), by_hand=st.booleans())
    def train(self, plan: str, by_hand: bool) -> None:
        """A candidate that the gate promoted: it opens its rollout if it may, else it waits or takes the place."""
        self.version += 1
        declared = PLANS[plan]
        if not stages.underway(self.head) or declared.meanwhile == "replace":
            own = candidate(self.version).model_copy(update={"by_hand": by_hand})
            assert self._append(stages.open_, own, declared, self._said())

    @precondition(lambda self: self.head.challenger is not None)
    @rule(times=st.integers(1, 4))
    def advance(self, times: int) -> None:
        """The clock, or a person, goes on."""
        for _ in range(times):
            if self.head.challenger is not None:
                assert self._append(stages.advance, self._said())
                self.one_champion()

    @precondition(lambda self: _weighed(self.head))
    @rule(weight=st.integers(1000, 9000))
    def weigh(self, weight: int) -> None:
        """A bandit moves the weight, up or down."""
        assert self._append(lambda head, word: stages.weigh(head, weight, word), self._said())

    @precondition(lambda self: stages.underway(self.head))
    @rule()
    def hold_or_resume(self) -> None:
        """A person holds it, or lets it go on."""
        assert self._append(stages.resume if self.head.trial.held else stages.hold, self._said())

    @precondition(lambda self: self.head.challenger is not None)
    @rule()
    def abort(self) -> None:
        """The guard or a person ends it."""
        champion = self.head.champion
        assert self._append(stages.abort, self._said())
        assert (self.head.champion, self.head.stage, self.head.contender) == (champion, "full", None)

    @precondition(lambda self: self.head.stage == "soak")
    @rule()
    def settle(self) -> None:
        """A soak is over."""
        assert self._append(stages.settle, self._said())

    @rule()
    def impossible(self) -> None:
        """What cannot be in this stage is refused, and changes nothing."""
        refused = []
        if self.head.challenger is None:
            refused += [stages.advance, stages.abort]
        if self.head.stage != "soak":
            refused.append(stages.settle)
        if not stages.underway(self.head):
            refused += [stages.hold, stages.resume]
        for make in refused:
            assert not self._append(make, self._said())

    @precondition(lambda self: self.head.stage == "soak")
    @rule()
    def fail_in_soak(self) -> None:
        """The guard takes a version back that answers everybody."""
        below = ledger.previous_release(self.url, self.case)
        assert below is not None
        assert self._append(stages.take_back, below, self._said())
        assert self.head.champion == below.champion

    @precondition(lambda self: self.head.seq > 1)
    @rule()
    def roll_back(self) -> None:
        """From wherever a rollout is, the release below the champion can serve again by one row."""
        below = ledger.previous_release(self.url, self.case)
        if below is None:
            return
        target = below.model_dump(include={"champion", "candidate_key", "bundle", "mlflow_run", "verdict_hash"})
        more = {"action": "rollback", "trigger": "manual", "reason": "bad", "actor": "ada", "as_of": self.head.as_of}
        self.head = ledger.append(self.url, Order(case=self.case, after=self.head.seq, **target, **more))
        assert (self.head.champion, stages.underway(self.head)) == (below.champion, False)

    @invariant()
    def one_champion(self) -> None:
        """The newest row says who serves; a challenger is another version; only rows that may change the champion."""
        if not hasattr(self, "case"):
            return
        chain = ledger.chain(self.url, self.case)
        assert chain[-1] == ledger.head(self.url, self.case) == self.head
        for before, row in pairwise(chain):
            assert row.challenger != row.champion
            assert (row.champion == before.champion) or row.action in CHANGES
            assert (row.challenger is not None) == (row.stage in {"shadow", "canary"})
            same = row.challenger is not None and row.challenger == before.challenger
            if same:
                assert (row.salt, row.trial.opened, row.trial.plan) == (
                    before.salt,
                    before.trial.opened,
                    before.trial.plan,
                )
                if not (_weighed(before) and _weighed(row)):
                    assert row.weight >= before.weight
                    assert not [key for key in KEYS if _arm(before, key) and not _arm(row, key)]
            if row.action == "promote" and row.stage == "soak" and before.challenger is not None:
                assert row.champion == before.challenger

    @invariant()
    def the_audit_finds_nothing(self) -> None:
        """Whatever was done by the rules, no row looks as if somebody had written it past them."""
        if not hasattr(self, "case"):
            return
        rows, wrong, _ = ledger.stored(self.url, self.case)
        assert wrong == []
        # These candidates have no verdicts: that is not what is asked here.
        assert [one for one in within(self.case, rows) if "verdict" not in one.problem] == []

    @invariant()
    def who_was_taken_back_does_not_come_back(self) -> None:
        """A candidate that was tried and is not on trial any more is settled for good."""
        if not hasattr(self, "case"):
            return
        chain = ledger.chain(self.url, self.case)
        for row in chain:
            if row.trial is not None and (self.head.trial is None or self.head.trial.opened != row.trial.opened):
                found = settled(chain, row.trial.candidate_key, 0, self.head.champion, self.head.as_of)
                assert found is not None
                assert found[0] in {"aborted", "already_released"}


def _weighed(row: Release) -> bool:
    """Whether a bandit is at work."""
    return row.challenger is not None and "experiment" in row.trial.plan and row.trial.step == 0


def _arm(row: Release, key: str) -> bool:
    return challenged(row.salt, key, row.weight)


def play(url: str, examples: int) -> None:
    """Play the machine on the ledger."""
    machine = type("Machine", (Rollouts,), {"url": url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=10,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_whatever_happens_to_rollouts(tmp_path: Path):
    """Never two champions, a way back from everywhere, weights that rise, keys that keep their arm, no way back in."""
    play(f"sqlite:///{tmp_path / 'ledger.db'}", 50)


def test_whatever_happens_to_rollouts_on_postgresql(schema):
    """The same on the full stack's database."""
    play(schema, 8)
