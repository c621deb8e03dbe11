"""The daily page's bars: how far the window's strongest features moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.contracts import FeatureDrift
from pipelines.drift_report import CategoryChange, NumberChange
from pipelines.params import DriftParams
from pipelines.reports.daily.colour import colour
from pipelines.reports.daily.figures import psi
from pipelines.reports.daily.view import View

FEATURES = 30
"""Features with a bar."""
FLOOR = 0.005
"""The smallest PSI that has a bar, in nats."""
THIN = 0.6
"""The narrowest bar, in percent of the axis."""


@dataclass(frozen=True)
class Bar:
    """One feature: ``width`` in percent of the axis, its PSI in words, and how its values changed, where that is known.

    ``ignored``: shown, never decides.
    """

    feature: str
    width: float
    value: str
    colour: str
    drifted: bool
    ignored: bool
    moved: NumberChange | CategoryChange | None


@dataclass(frozen=True)
class Mark:
    """A threshold, ``at`` so many percent of the axis."""

    name: str
    value: float
    at: float


@dataclass(frozen=True)
class Bars:
    """The bars of the strongest features, of so many (``of``)."""

    rows: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    of: int


def bars(view: View) -> Bars:
    """This window's debiased PSI of its strongest features on a logarithmic axis."""
    features = view.report.features
    policy = view.policy
    top = max([10 * FLOOR, 2 * policy.severe_psi, *(one.debiased_psi for one in features)]) * 1.15
    changes = {one.feature: one for one in view.changes}
    return Bars(
        rows=tuple(_bar(one, top, policy, changes.get(one.feature)) for one in features[:FEATURES]),
        marks=(
            Mark("warn", policy.warn_psi, _at(policy.warn_psi, top)),
            Mark("severe", policy.severe_psi, _at(policy.severe_psi, top)),
        ),
        of=len(features),
    )


def _at(value: float, top: float) -> float:
    """Where a PSI lies on the axis that ends at ``top``, in percent."""
    return round(100 * math.log(max(value, FLOOR) / FLOOR) / math.log(top / FLOOR), 2)


def _bar(one: FeatureDrift, top: float, policy: DriftParams, moved: NumberChange | CategoryChange | None) -> Bar:
    return Bar(
        feature=one.feature,
        width=max(THIN, _at(one.debiased_psi, top)),
        value=psi(one.debiased_psi),
        colour=colour(one.debiased_psi, policy.warn_psi, policy.severe_psi),
        drifted=one.drifted,
        ignored=one.ignored,
        moved=moved,
    )
