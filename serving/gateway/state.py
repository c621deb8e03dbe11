"""What one worker of the gateway holds: its cases, its routes, its channel to Triton, its log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pipelines.cases import load_fields
from pipelines.config import Settings, case_names
from pipelines.errors import Unavailable
from pipelines.fields import Fields
from serving.gateway.identity import Index
from serving.gateway.log import Log, adopt, worker_name
from serving.gateway.metrics import Metrics
from serving.gateway.protections import Door
from serving.gateway.routing import Routing
from serving.gateway.rows import Shape, label_shape, row_shape
from serving.gateway.settings import Bounds
from serving.gateway.triton import Triton

log = logging.getLogger(__name__)


@dataclass
class Case:
    """One case: what its requests look like and where its rows and labels are logged."""

    fields: Fields
    rows: Shape
    labels: Shape
    predictions_log: Log
    labels_log: Log
    index: Index
    falling_back: bool = False

    @property
    def name(self) -> str:
        """The case's name."""
        return self.fields.case


@dataclass
class Gateway:
    """Everything that the routes use."""

    settings: Settings
    bounds: Bounds
    metrics: Metrics
    cases: Mapping[str, Case]
    routing: Routing
    triton: Triton
    door: Door
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the background tasks shall end: they finish what they do, as a thread cannot be cancelled."""

    async def poll(self) -> None:
        """Read the ledger until the gateway stops."""
        while not await self._stops_within(self.bounds.poll_seconds):
            await asyncio.to_thread(self.routing.poll)

    async def keep_log(self) -> None:
        """Sync and rotate the log until the gateway stops."""
        pause = min(self.bounds.sync_seconds, self.settings.log_segment_seconds / 4)
        while not await self._stops_within(pause):
            self.metrics.refresh()
            for case in self.cases.values():
                await self.tidy(case)

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return self.stopping.is_set()

    async def tidy(self, case: Case, *, close: bool = False) -> None:
        """Sync a case's segments and close the old ones (``close``: all of them)."""
        for segments in (case.labels_log, case.predictions_log):
            closed = await (segments.close() if close else segments.tick())
            if closed and segments is case.predictions_log:
                # Every client-made id in them is indexed already; without the mark a start would read them again, no more.
                with suppress(Unavailable), case.index.writing():
                    for position in closed:
                        case.index.mark(position)


async def start(settings: Settings, bounds: Bounds, metrics: Metrics) -> Gateway:
    """Take up what dead workers left, read the ledger once, open the channel. Raises ConfigError without an API key, Unavailable without a Triton."""
    door = Door(bounds, settings.key_file, settings.limits_url)
    worker = worker_name()
    cases = {name: await asyncio.to_thread(_case, load_fields(name), settings, bounds, metrics, worker) for name in case_names()}
    routing = Routing(settings, {name: case.fields for name, case in cases.items()}, metrics)
    await asyncio.to_thread(routing.poll)
    return Gateway(
        settings, bounds, metrics, cases, routing, Triton(settings.address("triton_grpc"), bounds.deadline_seconds, bounds.deadline_seconds_per_text), door
    )


async def stop(gateway: Gateway) -> None:
    """Close the log's segments and the channel."""
    for case in gateway.cases.values():
        await gateway.tidy(case, close=True)
        case.index.close()
    await gateway.triton.close()


def _case(fields: Fields, settings: Settings, bounds: Bounds, metrics: Metrics, worker: str) -> Case:
    folder = settings.prediction_log / fields.case
    logs = {}
    for kind in ("predictions", "labels"):
        metrics.log_lines.labels(fields.case, kind)
        errors = metrics.log_errors.labels(fields.case, kind)
        logs[kind] = Log(folder / kind, worker, max_bytes=settings.log_segment_bytes, max_seconds=settings.log_segment_seconds, on_error=errors.inc)
        if count := adopt(folder / kind):
            log.warning("%s: %d segment(s) of dead workers closed in %s", fields.case, count, folder / kind)
    metrics.fallback.labels(fields.case).set(0)
    index = Index(settings.root / "gateway" / f"{fields.case}.ids.db", folder / "predictions", fields.names)
    index.catch_up()
    return Case(fields, row_shape(fields, bounds.max_rows), label_shape(fields, bounds.max_rows), logs["predictions"], logs["labels"], index)
