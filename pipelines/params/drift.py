"""What is watched of a case that serves: drift, headroom, replays, and who is told."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.contracts import AlertRule, Severity
from pipelines.params.base import Days, Strict, ascending, not_below


def _labels_wanted(value: tuple[int, int, float]) -> tuple[int, int, float]:
    most, least, share = value
    if not 0 <= least <= most or share < 0:
        raise ValueError(
            f"at most {most}, at least {least}, a share of {share:g}: the first is not below the second, and none is "
            "negative"
        )
    return value


class NewData(Strict):
    """How many labelled rows must be new for a retraining without any drift.

    ``rows``, or ``share`` of the champion's training rows. Given both, the smaller number counts.
    """

    rows: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> NewData:
        if self.rows is None and self.share is None:
            raise ValueError("new_data needs rows or share: give one, or null to switch it off")
        return self


WARN_REFUSED, BLOCK_REFUSED = 0.01, 0.05


class DriftParams(Strict):
    """Windows, tests and the retrain policy of ../drift/policy.py."""

    window: Literal["day", "week", "month", "quarter"] = "week"
    partition: Literal["hour", "day"] = "hour"
    """The smallest stretch of time that has a profile file of its own; days are made of hours."""
    mapped: bool = False
    """Profile every day of the window in an Airflow task of its own, then merge.

    Worth it where the days of a window are tens of millions of rows each and the executor has several machines
    (Celery, Kubernetes): a task costs some tenths of a second, a day of a million rows about one.
    """
    bins: int = Field(default=10, ge=2)
    delta0: float = Field(default=0.01, gt=0)
    q: float = Field(default=0.01, gt=0, lt=1)
    confirm: int = Field(default=2, gt=0)
    out_of: Annotated[int, not_below("confirm")] = Field(default=3, gt=0)
    clean_windows: int = Field(default=3, gt=0)
    clean_psi: float = Field(default=0.05, gt=0)
    warn_psi: Annotated[float, not_below("clean_psi")] = Field(default=0.1, gt=0)
    severe_psi: Annotated[float, not_below("warn_psi")] = Field(default=0.25, gt=0)
    min_rows: int = Field(default=200, gt=0)
    allow_empty: bool = False
    max_null_share: float = Field(default=0.01, ge=0, le=1)
    warn_refused_share: float = Field(default=WARN_REFUSED, gt=0, le=1, exclude_if=lambda share: share == WARN_REFUSED)
    """From this share of rows on that the gateway refused, of the window or of the worst of its stretches, people are
    told.
    """
    block_refused_share: Annotated[float, not_below("warn_refused_share")] = Field(
        default=BLOCK_REFUSED, gt=0, le=1, exclude_if=lambda share: share == BLOCK_REFUSED
    )
    """From this share on the window is blocked: nothing is retrained on the rows that were not refused."""
    volume_band: Annotated[tuple[Annotated[float, Field(ge=0)], float], AfterValidator(ascending)] = (0.2, 5.0)
    cusum_threshold: float = Field(default=10_000.0, gt=1)
    min_metric_drop: float = Field(default=0.01, ge=0)
    """How much worse the champion has to be: nats of log-loss; of a number squared units, which have no default."""
    cooldown_days: Days = 7.0
    max_cooldown_days: Annotated[Days, not_below("cooldown_days")] = 28.0
    max_retrains: int = Field(default=2, gt=0)
    max_retrains_days: Annotated[Days, Field(gt=0)] = 60.0
    min_new_labels: Annotated[tuple[int, int, float], AfterValidator(_labels_wanted)] = (1000, 200, 0.1)
    """(at most, at least, share of the champion's training rows): new labelled rows a retrain needs."""
    triggers: tuple[Literal["drift", "performance", "headroom"], ...] = ("drift", "performance", "headroom")
    """What may open an episode: inputs and outputs that moved, arrived labels that show more errors, a gain above its
    price.
    """
    new_data: NewData | None = None
    """New labelled rows that open an episode by themselves; ``None``: none do."""
    report_rows: int = Field(default=50_000, gt=0)
    evidently: Literal["alert", "daily", "never"] = "alert"
    """When Evidently's page is drawn, of a sample of at most ``report_rows`` rows: some seconds and 4 MB each."""
    ignore: tuple[str, ...] = ()
    """Fields that are profiled and shown but never decide: those that move by construction, like the month."""


class HeadroomParams(Strict):
    """How a probe measures what a retraining would gain (pipelines/headroom), and what a retraining costs."""

    price: float = Field(default=0.01, ge=0)
    """What one retraining must save to have paid: nats of mean log-loss per row, or of a number squared units.

    A drift run asks for one when the gain is above it with confidence. A replay counts it for every retraining, spread
    over one tick (a calendar month, or the drift window where that is shorter).
    """
    family: Literal["auto", "logistic", "boosting", "own"] = "auto"
    """``auto``: logistic regression on a text's words and of more than 127 classes, else boosted trees.

    ``own``: the case's ``probe.py``.
    """
    against: Literal["auto", "past", "champion"] = "auto"
    """What the probe is compared with to decide; both are shown.

    ``past``: a probe of the same family on what the champion was trained on. The difference is due to newer rows alone,
    whatever the champion is made of. ``champion``: its own answers, which says the gain itself where both are of one
    family. ``auto``: the champion for the case's own probe, else the past.
    """
    window_days: int | None = Field(default=None, gt=0, le=36_500)
    """The days before the window that the probe learns from; ``None``: those of ``dataset.window_days``."""
    max_rows: int = Field(default=8_000, ge=100)
    """At most so many rows for the probe to learn from, and to be judged on, evenly spaced in time."""
    min_rows: int = Field(default=100, ge=30)
    """Fewer labelled rows on either side give no figure."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """Of all intervals, both sides: their lower end, which is held against the price, is too high once in twenty."""


class ReplayParams(Strict):
    """What `python -m pipelines replay` plays when its options do not say otherwise."""

    first_as_of: date
    until: Annotated[date, not_below("first_as_of", strictly=True)]
    min_rows: int = Field(default=100, gt=0)
    """Ticks with fewer rows are played and stay out of every mean."""
    variant: str | None = None
    """The folder below the case's ``variants/`` whose parameters are played."""


class AlertParams(Strict):
    """Who is told of what, how soon they should look, and how often they may be told.

    The rules lie in ../alerts/rules.py.
    """

    owner: str = "ml-on-call"
    owners: dict[AlertRule, str] = {}
    severities: dict[AlertRule, Severity] = {}
    off: tuple[AlertRule, ...] = ()
    response_hours: dict[Severity, Annotated[float, Field(gt=0)]] = {"critical": 1.0, "warning": 24.0, "info": 168.0}
    push: Severity = "warning"
    """The least severity that goes to the webhook and by e-mail; the log gets all."""
    resolve_after: int = Field(default=2, gt=0)
    """Runs in a row without a finding before its alert counts as resolved."""
    max_notices: int = Field(default=20, gt=0)
    """Notices of one case in ``per_hours`` (event time); the others wait, the most severe go first."""
    per_hours: float = Field(default=24.0, gt=0, le=876_000)
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    late_after: float = Field(default=2.0, gt=0)
    """Labels are late after so many times ``label_delay_days``."""
    max_champion_days: Annotated[Days | None, Field(gt=0)] = None
    max_unjudged_windows: int = Field(default=3, gt=0)
