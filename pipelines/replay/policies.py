"""The policies that a replay can play, as plain data; only ``oracle`` knows the future."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipelines.drift.profile.spec import numbers
from pipelines.errors import ConfigError
from pipelines.feature_names import OUTPUTS
from pipelines.fields import Fields
from pipelines.params import Params
from pipelines.replay.ticks import Tick


@dataclass(frozen=True)
class Policy:
    """When to retrain: at the end of ``every`` so many calendar months, or when the drift step asks for it.

    ``watches`` says what the drift step may ask by: inputs, outputs and labels, labels alone, or what a probe says that
    a retraining would gain. With ``headroom`` there is such a probe, and ``price`` is what its gain is compared with
    (None: the replay's own).
    """

    name: str
    about: str
    every: int | None = None
    watches: Literal["all", "labels", "gain"] | None = None
    headroom: bool = False
    price: float | None = None


ORACLE = "oracle"
HEADROOM = "headroom"
AT = "@"
"""``headroom@0.05`` is the policy ``headroom`` at another price."""
POLICIES = {
    policy.name: policy
    for policy in (
        Policy("never", "the first champion serves for good"),
        Policy("monthly", "a training run at the end of every calendar month", every=1),
        Policy("quarterly", "a training run at the end of every calendar quarter", every=3),
        Policy("half-yearly", "a training run at the end of every calendar half-year", every=6),
        Policy(
            "drift",
            "the case's own drift policy without headroom: a training run when drift is confirmed",
            watches="all",
        ),
        Policy(
            "performance",
            "the same with labels alone: the e-CUSUM of the errors and the rise of the log-loss",
            watches="labels",
        ),
        Policy(
            HEADROOM,
            "the case's own drift policy, which also asks a probe what a retraining would gain",
            watches="all",
            headroom=True,
        ),
        Policy(
            "headroom-alone", "the same without any other trigger: the probe alone asks", watches="gain", headroom=True
        ),
        Policy(ORACLE, "with hindsight: of all candidates those that make loss and price smallest"),
    )
}


FIXED = tuple(policy.name for policy in POLICIES.values() if policy.every or policy.name == "never")
"""The schedules that no look at the data moves, ``never`` included."""
DEFAULT = (*(name for name in POLICIES if name != ORACLE), f"{HEADROOM}{AT}0.03", f"{HEADROOM}{AT}0.1", ORACLE)
"""The names that are played when nobody says which."""
CHOICES = f"{', '.join(POLICIES)}, or {HEADROOM}{AT}PRICE for headroom at another price"


def parse(text: str) -> tuple[Policy, ...]:
    """The policies of a list with commas, in its order, each once.

    Raises ConfigError for a name that is none, naming the choices, and for a price that is none.

    >>> [policy.name for policy in parse("never, drift,never, headroom@.050")]
    ['never', 'drift', 'headroom@0.05']
    """
    found = {policy.name: policy for part in text.split(",") if part.strip() for policy in [_named(part.strip())]}
    if not any(name != ORACLE for name in found):
        raise ConfigError(
            f"--policies {text!r} names no policy to play: choose from {CHOICES} (the oracle chooses among what the "
            "others trained)"
        )
    return tuple(found.values())


def _named(name: str) -> Policy:
    if name in POLICIES:
        return POLICIES[name]
    kind, at, price = name.partition(AT)
    if at and kind == HEADROOM:
        return _at_price(name, price)
    near = difflib.get_close_matches(name, POLICIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"there is no policy {name!r}: {hint}choose from {CHOICES}")


def _at_price(name: str, said: str) -> Policy:
    try:
        price = float(said)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise ConfigError(
            f"the policy {name!r} has no price: give nats of mean log-loss, 0 or more, as in {HEADROOM}{AT}0.05"
        )
    # One price, one name: its history lies in a folder of that name.
    about = f"the same at a price of {price:g}, whatever the replay's is"
    return replace(POLICIES[HEADROOM], name=f"{HEADROOM}{AT}{price:g}", about=about, price=price)


def due(policy: Policy, tick: Tick) -> bool:
    """Whether a schedule falls on the end of ``tick``: the tick is the last one of its month, quarter or half-year."""
    return policy.every is not None and tick.ends(policy.every)


def watching(policy: Policy, params: Params, fields: Fields) -> Params:
    """The case's parameters as the policy's drift runs use them.

    Who watches labels alone ignores every input and output; no policy without ``headroom`` listens to that trigger.
    """
    heard = tuple(trigger for trigger in params.drift.triggers if trigger != HEADROOM and policy.watches != "gain")
    drift: dict[str, Any] = {"triggers": (*heard, HEADROOM) if policy.headroom else heard}
    if policy.watches == "labels":
        drift["ignore"] = tuple(
            sorted(
                {
                    *(column.name for column in fields.columns),
                    *fields.shares,
                    *numbers(fields),
                    *OUTPUTS,
                    *params.drift.ignore,
                }
            )
        )
    price = {} if policy.price is None else {"price": policy.price}
    return params.model_copy(
        update={
            "drift": params.drift.model_copy(update=drift),
            "headroom": params.headroom.model_copy(update=price),
        }
    )
