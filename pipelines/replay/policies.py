"""The policies that a replay can play, as plain data; only ``oracle`` knows the future."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from pipelines.drift.profile.spec import numbers
from pipelines.errors import ConfigError
from pipelines.feature_names import OUTPUTS
from pipelines.fields import Fields
from pipelines.params import DriftParams
from pipelines.replay.ticks import Tick


@dataclass(frozen=True)
class Policy:
    """When to retrain: at the end of every month or quarter, or when the drift step asks for it.

    ``watches`` says what the drift step may look at: inputs, outputs and labels, labels alone, or a probe's gain.
    """

    name: str
    about: str
    every: Literal["month", "quarter"] | None = None
    watches: Literal["all", "labels", "gain"] | None = None


ORACLE = "oracle"
POLICIES = {
    policy.name: policy
    for policy in (
        Policy("never", "the first champion serves for good"),
        Policy("monthly", "a training run at the end of every calendar month", every="month"),
        Policy("quarterly", "a training run at the end of every calendar quarter", every="quarter"),
        Policy("drift", "the case's own drift policy: a training run when drift is confirmed", watches="all"),
        Policy(
            "performance",
            "the same with labels alone: the e-CUSUM of the errors and the rise of the log-loss",
            watches="labels",
        ),
        Policy("headroom", "a training run when a probe of newer rows gains more than its price", watches="gain"),
        Policy(ORACLE, "with hindsight: of all candidates those that make loss and price smallest"),
    )
}


def parse(text: str) -> tuple[Policy, ...]:
    """The policies of a list with commas, in its order, each once.

    Raises ConfigError for a name that is none, naming the choices.

    >>> [policy.name for policy in parse("never, drift,never")]
    ['never', 'drift']
    """
    names = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    for name in names:
        if name not in POLICIES:
            near = difflib.get_close_matches(name, POLICIES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"there is no policy {name!r}: {hint}choose from {', '.join(POLICIES)}")
    if not any(name != ORACLE for name in names):
        raise ConfigError(
            f"--policies {text!r} names no policy to play: choose from {', '.join(POLICIES)} (the oracle chooses "
            "among what the others trained)"
        )
    return tuple(POLICIES[name] for name in names)


def due(policy: Policy, tick: Tick) -> bool:
    """Whether a schedule falls on the end of ``tick``: the tick is the last one of its month or quarter."""
    if policy.every is None:
        return False
    return {"month": tick.ends_month, "quarter": tick.ends_quarter}[policy.every]


def watching(policy: Policy, params: DriftParams, fields: Fields) -> DriftParams:
    """The case's drift parameters as the policy uses them: who watches labels alone ignores every input and output."""
    if policy.watches == "gain":
        return params.model_copy(update={"triggers": ("headroom",)})
    ignored = params.ignore
    if policy.watches == "labels":
        ignored = tuple(sorted({*fields.names, *numbers(fields), *OUTPUTS, *params.ignore}))
    return params.model_copy(update={"triggers": ("drift", "performance"), "ignore": ignored})
