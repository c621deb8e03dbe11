"""The cases that a worker serves: what a request looks like, where rows are logged, which version answers."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Self

from pipelines.cases import kept_target
from pipelines.fields import Fields
from pipelines.params import EventTimes, ServingParams
from pipelines.segments import EVERY, Stamp, adopt, asked
from pipelines.settings import Settings
from serving.gateway.cache import Kept
from serving.gateway.identity import Index
from serving.gateway.joining import Lane
from serving.gateway.log import Log, worker_name
from serving.gateway.metrics import Metrics
from serving.gateway.refusals import Tally
from serving.gateway.routing import Route
from serving.gateway.rows import Shape, figure_shape, label_shape, row_shape
from serving.gateway.settings import Bounds
from serving.gateway.shadow import Shadow
from serving.gateway.traffic import Traffic

log = logging.getLogger(__name__)


@dataclass
class Case:
    """One case as it is declared now. A case whose fields change is another one, with a log and an index of its own.

    ``route`` is what the ledger said last (None: no champion); ``standing_in`` says who answers in the champion's place
    ("": nobody), ``pressed`` is the lane that turned the newest request away; ``users`` counts the requests that are
    using the case; ``asked`` is the newest request to close its segments that was followed. ``alone`` is held by who
    uses the index or appends to the prediction log. ``trying`` says why the champion answers for the challenger ("": it
    answers itself).
    """

    fields: Fields
    times: EventTimes
    serving: ServingParams
    rows: Shape
    labels: Shape
    figures: Shape
    predictions_log: Log
    labels_log: Log
    refusals_log: Log
    figures_log: Log
    traffic_log: Log
    shadow_log: Log
    index: Index
    traffic: Traffic
    shadow: Shadow
    route: Route | None = None
    standing_in: str = ""
    trying: str = ""
    pressed: Lane | None = None
    kept: Kept | None = None
    users: int = 0
    asked: Stamp = None
    refused: Tally = field(default_factory=Tally)
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __enter__(self) -> Self:
        """One request uses it."""
        self.users += 1
        return self

    def __exit__(self, *_error: object) -> None:
        """Its answer is given."""
        self.users -= 1

    @property
    def name(self) -> str:
        """The case's name."""
        return self.fields.case

    def cache(self) -> Kept | None:
        """The scores that are kept as the case declares it now; None: none are. A changed declaration begins anew."""
        declared = self.serving.cache
        if declared is None:
            self.kept = None
        elif self.kept is None or self.kept.declared != declared:
            self.kept = Kept(declared)
        return self.kept

    @property
    def logs(self) -> tuple[Log, ...]:
        """Everything that it writes lines into."""
        judged = self.labels_log, self.figures_log
        return *judged, self.predictions_log, self.refusals_log, self.traffic_log, self.shadow_log


def open_case(
    fields: Fields, times: EventTimes, serving: ServingParams, settings: Settings, bounds: Bounds, metrics: Metrics
) -> Case:
    """Take up what dead workers left of a case, and begin its log; for a thread.

    Raises ConfigError if requests cannot have such fields, or what is logged of the case would mean something else with
    them, and what the file system raises.
    """
    rows = row_shape(fields, bounds.max_rows)
    labels = label_shape(fields, bounds.max_rows)
    figures = figure_shape(bounds.max_rows)
    kept_target.keep_beside_log(fields, settings)
    # Segments are named by their worker: a case that comes again must not take the names of its earlier ones.
    folder = settings.prediction_log / fields.case
    worker = worker_name()
    logs = {}
    for kind in EVERY:
        metrics.log_lines.labels(fields.case, kind)
        errors = metrics.log_errors.labels(fields.case, kind)
        most = settings.log_segment_bytes
        logs[kind] = Log(
            folder / kind, worker, max_bytes=most, max_seconds=settings.log_segment_seconds, on_error=errors.inc
        )
        if count := adopt(folder / kind):
            log.warning("%s: %d segment(s) of dead workers closed in %s", fields.case, count, folder / kind)
    metrics.fallback.labels(fields.case).set(0)
    index = Index(settings.root / "gateway" / f"{fields.case}.ids.db", folder / "predictions", fields.names)
    index.catch_up()
    newest = asked(settings.log_request(fields.case))
    traffic = Traffic(
        bounds.traffic_seconds,
        lambda arm, outcome, count: metrics.arm_rows.labels(fields.case, arm, outcome).inc(count),
        number=fields.number is not None,
    )
    return Case(
        fields,
        times,
        serving,
        rows,
        labels,
        figures,
        logs["predictions"],
        logs["labels"],
        logs["refusals"],
        logs["figures"],
        logs["traffic"],
        logs["shadow"],
        index,
        traffic,
        Shadow(bounds.shadow_rows),
        asked=newest,
    )
