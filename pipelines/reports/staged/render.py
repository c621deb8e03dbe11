"""The page of a rollout, rendered: nothing is loaded from elsewhere, and every name and text is escaped."""

from __future__ import annotations

import math

from pipelines.amounts import amount, share
from pipelines.reports.daily.figures import count
from pipelines.reports.staged import draw, words
from pipelines.reports.staged.template import TEMPLATE
from pipelines.reports.staged.view import Sign, View


def page(view: View) -> str:
    """The page of one rollout as HTML."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "moment": words.moment,
        "share": share,
        "count": count,
        "amount": amount,
        "e": _e_value,
    }
    limit = 20.0 if view.guarded is None else view.guarded.limit

    def bar(one: Sign) -> float:
        """How far a signal alone has come to the limit, on a logarithmic scale, in percent."""
        reached = math.log(max(one.weight * one.e_value, 1e-9) / limit) / math.log(limit) + 1
        return round(100 * min(max(reached, 0.0), 1.0), 1)

    return environment.from_string(TEMPLATE).render(
        v=view,
        headline=words.headline(view),
        tone=words.tone(view),
        answers=words.answers(view),
        met=words.met(view),
        weights=draw.weights(view),
        evidence=None if view.guarded is None else draw.evidence(view, view.guarded),
        estimates=None if view.compared is None else draw.estimates(view, view.compared),
        bar=bar,
    )


def _e_value(value: float) -> str:
    if value >= 1e6:
        return "over a million"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
