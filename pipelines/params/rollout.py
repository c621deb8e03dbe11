"""How a candidate that the gate promoted comes to answer everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.contracts import FIGURE_PATTERN
from pipelines.params.base import Share, Strict, ascending, not_below, rising


class ShadowParams(Strict):
    """How long a challenger answers beside the champion before it answers anybody: both of those that are given."""

    rows: int | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0, le=8760)

    @model_validator(mode="after")
    def _some(self) -> ShadowParams:
        if self.rows is None and self.hours is None:
            raise ValueError("shadow needs rows or hours: give one, or null for no shadow")
        return self


class HoldParams(Strict):
    """What a stage has to last, at least: minutes, and rows that the challenger answered in it."""

    minutes: float = Field(default=0.0, ge=0, le=525_600)
    rows: int = Field(default=0, ge=0)


class GuardParams(Strict):
    """When a rollout is taken back: pipelines/guard, after every window, against the concurrent champion."""

    window_minutes: float = Field(default=5.0, gt=0, le=1440)
    windows: int = Field(default=40, gt=0)
    """Windows that the error budget is declared for: a fault may begin in any of them."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """The chance that a challenger that is no worse is taken back, over the whole rollout, however often one looks."""
    tolerated: float = Field(default=1.5, ge=1)
    """How many times the champion's share of failures, and of slow answers, is no fault yet."""
    errors: float = Field(default=0.01, gt=0, lt=1)
    """The share of failed rows, fallbacks too, above which a window is bad unless the champion's is as bad."""
    refused: float = Field(default=0.05, gt=0, lt=1)
    """The share of rows that are refused above which a window is bad unless the champion's is as bad."""
    p95_ms: float | None = Field(default=None, gt=0)
    p99_ms: Annotated[float | None, not_below("p95_ms")] = Field(default=None, gt=0)
    """Latencies that count as slow; None: those of ``serving.slo``, and else what the champion's own windows say."""
    scores: float = Field(default=0.05, gt=0, lt=1)
    """By how much the share of any bin of scores may differ between the arms."""
    disagreement: float | None = Field(default=None, gt=0, lt=1)
    """The share of mirrored rows that the two may decide differently; None: any."""
    loss: float | None = Field(default=0.0, ge=0)
    """How much worse the challenger's mean loss may be, as the gate's metric has it; None: labels are not watched."""
    min_requests: int = Field(default=100, gt=0)
    """Fewer requests of the challenger in a window say nothing of its latency."""


LABEL = "label"
"""The outcome of an experiment that is the label itself, and so no name of a figure."""


class ExperimentParams(Strict):
    """An A/B test on the split of a rollout: which arm the declared outcome is better in (pipelines/guard).

    The rollout stays at its first step until there is an answer: the challenger is better (it is released), worse (it
    is taken back), or the experiment ended without a difference (``otherwise`` says who stays).
    """

    outcome: str = Field(pattern=FIGURE_PATTERN)
    """``label``: the label itself, in a case where answers change what happens (of two classes, or a number); else the
    name of a figure that is posted for predictions, like their revenue.
    """
    better: Literal["higher", "lower"] = "higher"
    """Which outcome is the better one."""
    horizon_hours: float = Field(gt=0, le=8760)
    """A unit counts once, when its first answer is so old, with what was known of it by then."""
    units: int | None = Field(default=None, ge=100)
    """Mature units of both arms at which it ends; None: it goes on until there is a difference, or a person ends it."""
    effect: float | None = Field(default=None, gt=0)
    """Without ``units``, of numbers: the size of difference that is looked for, in the outcome's unit."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """The chance that it finds a difference where there is none, however often one looks."""
    otherwise: Literal["champion", "challenger"] = "champion"
    """Who stays if it ended without a difference."""
    bandit: bool = False
    """Thompson sampling moves the weight within ``bounds``, at most once in ``every_hours``, to the arm that is more
    likely the better one. Keys near the limit then change their arm; a unit counts for the arm of its first answer.
    For labels of two classes and without ``units``: of those a test stays valid while weights move.
    """
    bounds: Annotated[tuple[Share, Share], AfterValidator(ascending), Field(strict=False)] = (0.1, 0.9)
    every_hours: float = Field(default=24.0, ge=1, le=8760)

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.better == "higher"

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentParams:
        if not self.bandit and (self.bounds, self.every_hours) != ((0.1, 0.9), 24):
            raise ValueError("bounds and every_hours need bandit: true: nothing else moves the weight of an experiment")
        if self.bandit and (self.outcome != LABEL or self.units is not None):
            what = f"outcome is {self.outcome}" if self.outcome != LABEL else f"units are {self.units}"
            raise ValueError(
                f"bandit moves the weight, and {what}: only the comparison of labels of two classes without a declared "
                "end stays valid then; leave bandit out, or give outcome: label and no units"
            )
        if self.outcome != LABEL and self.units is None and self.effect is None:
            raise ValueError(
                f"an experiment on {self.outcome} needs units, at which it ends, or effect, the size of difference "
                "that is looked for"
            )
        if self.effect is not None and self.units is not None:
            raise ValueError("effect and units are both given: with units, at which it ends, nothing reads effect")
        if self.bounds[1] == 1:
            raise ValueError("bounds end with 1: leave the champion some keys, as in [0.1, 0.9]")
        return self


Preset = Literal["instant", "safe", "careful"]
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "instant": {},
    "safe": {"steps": [0.05, 0.5, 1.0], "hold": [{"minutes": 30}, {"minutes": 60}]},
    "careful": {
        "shadow": {"rows": 1000, "hours": 1},
        "steps": [0.05, 0.25, 0.5, 1.0],
        "hold": {"minutes": 60, "rows": 500},
    },
}
"""Rollouts by their names; what is given beside ``preset`` stands in the place of its own."""


class RolloutParams(Strict):
    """How a candidate that the gate promoted comes to answer everybody. No part of any key.

    In ``shadow`` it answers nobody, then the shares of ``steps``, each for as long as ``hold`` says (one for all, or
    one for each step but the last), while the ``guard`` finds nothing; the last step is the release.
    """

    preset: Preset = "instant"
    shadow: ShadowParams | None = None
    steps: Annotated[tuple[Share, ...], AfterValidator(rising)] = Field(default=(1.0,), min_length=1, strict=False)
    hold: HoldParams | Annotated[tuple[HoldParams, ...], Field(strict=False)] = HoldParams()
    mirror: bool = False
    """Both versions answer every row while the rollout lasts, the second one after the reply: labels then judge pairs,
    which finds harm with a hundredth of the rows.
    """
    key: str | None = None
    """The field or attribute whose value keeps its arm, like the customer; None: the prediction's id."""
    soak_minutes: float = Field(default=0.0, ge=0, le=525_600)
    """How long the guard goes on watching after the last step; what it finds then is a rollback."""
    meanwhile: Literal["wait", "replace"] = "wait"
    """What a candidate does that is promoted while a rollout is under way: waits for its end, or takes its place."""
    guard: GuardParams | None = GuardParams()
    experiment: ExperimentParams | None = Field(default=None, exclude_if=lambda experiment: experiment is None)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"preset": given}
        if isinstance(given, Mapping) and (preset := PRESETS.get(given.get("preset", "instant"))) is not None:
            return {**preset, **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> RolloutParams:
        if self.steps[-1] != 1:
            raise ValueError(f"steps end with {self.steps[-1]:g}: the last one is 1.0, the release")
        if isinstance(self.hold, tuple) and len(self.hold) != len(self.steps) - 1:
            raise ValueError(
                f"hold has {len(self.hold)} stages and steps {len(self.steps) - 1} before the last: give one for each, "
                "or one for all"
            )
        if self.staged and self.guard is None:
            raise ValueError("a rollout in stages needs a guard: remove guard: null, or choose preset instant")
        if self.mirror and not self.staged:
            raise ValueError("mirror needs a rollout in stages: give shadow or steps, or remove it")
        return self

    @model_validator(mode="after")
    def _splits(self) -> RolloutParams:
        experiment, first = self.experiment, self.steps[0]
        if experiment is None:
            return self
        if first == 1:
            raise ValueError(
                "experiment compares two arms, and the first step is 1.0, which leaves one: give steps: [0.5, 1.0]"
            )
        low, high = experiment.bounds
        if experiment.bandit and not low <= first <= high:
            raise ValueError(
                f"experiment.bounds are {low:g} and {high:g}, and the rollout begins at {first:g}: begin within them"
            )
        return self

    @property
    def staged(self) -> bool:
        """Whether anything lies between the gate and the release, or follows it."""
        return self.shadow is not None or len(self.steps) > 1 or self.soak_minutes > 0

    def held(self, step: int) -> HoldParams:
        """What the step at this position has to last."""
        return self.hold[step] if isinstance(self.hold, tuple) else self.hold
