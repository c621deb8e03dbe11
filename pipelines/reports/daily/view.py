"""What the daily page shows, as one frozen value: the page is rendered from it alone, and the step's key holds it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from pipelines.contracts import Alert, Instant, Release, Trigger, Value, Verdict
from pipelines.drift_report import CategoryChange, DriftReport, NumberChange
from pipelines.params import DriftParams
from pipelines.reports.promises import Promise

PROVENANCE = {"actor", "mlflow_run", "recorded_at", "hash", "previous_hash", "trial"}
"""What a release carries beside what it is."""


class Past(Value):
    """What an earlier run, or this one, reported of its window."""

    as_of: Instant
    report: DriftReport


class Judged(Value):
    """A training and its verdict, as the ledger keeps it under ``hash``; ``promise``: what a probe had said of it."""

    as_of: Instant
    trigger: Trigger
    hash: str
    verdict: Verdict
    promise: Promise | None = None


class Served(Value):
    """How many rows of the window a version answered."""

    version: int
    rows: int


class HeatColumn(Value):
    """A day, or the window that ends with the day ``last``: its rows, and the version whose reference it is against."""

    last: date
    rows: int
    version: int | None


class HeatRow(Value):
    """A feature's debiased PSI (nats) in every column; None where there were too few rows."""

    feature: str
    values: tuple[float | None, ...]


class Heat(Value):
    """What moved, by day or by window, oldest first; ``rows`` of so many features (``of``), the strongest now first."""

    unit: Literal["day", "window"]
    columns: tuple[HeatColumn, ...] = ()
    rows: tuple[HeatRow, ...] = ()
    of: int = 0


class View(Value):
    """Everything that the page of one window says.

    ``history`` has a report per window, oldest first, this one's the last; releases, verdicts and open alerts are those
    up to ``as_of``. ``champion`` is the newest release of the version that the window was compared with. ``stages`` are
    the rows of rollouts that left the champion as it was.
    """

    as_of: Instant
    report: DriftReport
    policy: DriftParams
    label_delay_days: float
    history: tuple[Past, ...]
    releases: tuple[Release, ...] = ()
    champion: Release | None = None
    stages: tuple[Release, ...] = ()
    verdicts: tuple[Judged, ...] = ()
    alerts: tuple[Alert, ...] = ()
    served: tuple[Served, ...] = ()
    changes: tuple[NumberChange | CategoryChange, ...] = ()
    heat: Heat

    @property
    def case(self) -> str:
        """The case's name."""
        return self.report.case

    @property
    def kind(self) -> str:
        """What a window is: day, week, month or quarter."""
        return self.policy.window

    def said(self) -> dict[str, Any]:
        """The view as JSON values, without who released and when, and in which run of MLflow.

        The page does not say it, and one history played twice differs in it.
        """
        said = self.model_dump(mode="json", exclude={"releases", "champion", "stages"})
        releases = [release.model_dump(mode="json", exclude=PROVENANCE) for release in self.releases]
        champion = None if self.champion is None else self.champion.model_dump(mode="json", exclude=PROVENANCE)
        stages = [row.model_dump(mode="json", exclude=PROVENANCE) for row in self.stages]
        return {**said, "releases": releases, "champion": champion, **({"stages": stages} if stages else {})}


@dataclass(frozen=True)
class Links:
    """Where to read on. Addresses say *where*, so they are no part of the view."""

    model: str | None = None
    training: str | None = None
    history: str | None = None
    evidently: str | None = None
