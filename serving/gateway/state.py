"""What one worker of the gateway holds (cases, channel to Triton, log) and does in the background."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines import objects
from pipelines.cases.surveying import survey
from pipelines.errors import ConfigError, IntegrityError, PerennialError, Unavailable
from pipelines.faults import of_disk
from pipelines.params import EventTimes, ServingParams
from pipelines.segments import adopt, asked
from pipelines.settings import Settings
from serving.gateway.cases import Case, open_case
from serving.gateway.metrics import Metrics
from serving.gateway.protections import Door
from serving.gateway.refusal import Refused
from serving.gateway.routing import Route, Routing
from serving.gateway.settings import Bounds
from serving.gateway.triton import Triton
from serving.gateway.versions import Version

LEAST_FREE = 64 * 1024
"""Bytes without which the disk counts as full: less than the rows of one request."""
T = TypeVar("T")
INLINE_BYTES = 64 * 2**10
"""Shorter bodies are worked on where they are read: in a few milliseconds."""

log = logging.getLogger(__name__)


@dataclass
class Gateway:
    """Everything that the routes use. ``aside`` asks Triton for what no request waits for.

    ``cases`` are those that are served, ``broken`` says what is wrong with those that cannot work: a case that
    breaks while it is served goes on as it was, and is in both. Both are replaced, never changed.
    """

    settings: Settings
    bounds: Bounds
    metrics: Metrics
    routing: Routing
    triton: Triton
    aside: Triton
    door: Door
    cases: Mapping[str, Case] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    leaving: list[Case] = field(default_factory=list)
    """Cases that are served no more, until the last request that uses one has its answer."""
    heavy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one long request that computes right now."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the background tasks shall end: they finish what they do, as a thread cannot be cancelled."""

    def disk(self) -> str:
        """Why nothing can be logged now, without a path; empty: it can."""
        # What it writes may be mounted apart from the rest of the state, which it only reads.
        written = [
            folder for folder in (self.settings.prediction_log, self.settings.root / "gateway") if folder.exists()
        ]
        full = next((why for folder in written or [self.settings.root] if (why := _unfit(folder))), "")
        return full or next(
            (
                why
                for case in self.cases.values()
                for why in (case.predictions_log.failing, case.labels_log.failing, case.figures_log.failing)
                if why
            ),
            "",
        )

    def using(self, name: str) -> Case:
        """The case of a request, to be entered: it stays whole until the block ends.

        Raises Refused: 404 if it is unknown, 503 if it is broken.
        """
        case = self.cases.get(name)
        if case is None and name in self.broken:
            raise Refused(503, "case", f"the case {name} is broken: {self.broken[name]}")
        if case is None:
            raise Refused(404, "case", f"unknown case: choose one of {', '.join(self.cases)}")
        return case

    async def apart(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """What ``function`` makes of a body of ``size`` bytes.

        Of a long one in a thread, one at a time, so that other requests go on.
        """
        if size <= INLINE_BYTES:
            return function(*arguments)
        async with self.heavy:
            return await in_thread(function, *arguments)

    async def poll(self) -> None:
        """Read the ledger until the gateway stops."""
        while not await self._stops_within(self.bounds.poll_seconds):
            await self._read_routes(self.cases)

    async def follow(self) -> None:
        """Look which cases there are until the gateway stops."""
        while not await self._stops_within(self.bounds.cases_seconds):
            try:
                await self.take_up()
            except OSError as error:
                log.warning("the folders of the cases cannot be read, those that are served go on: %s", error)

    async def take_up(self) -> Exception | None:
        """Serve the cases as they are now: new and mended ones too, changed ones as declared, removed ones no more.

        A case that cannot work is left as it is, and in ``broken``. Returns what keeps one from being served that is
        whole (its log cannot be written, its index does not answer); it is tried again by the next call.
        """
        found = await asyncio.to_thread(survey, self.settings, trains=False)
        served = dict(self.cases)
        broken = {case.name: case.problem for case in found if case.problem}
        failed: Exception | None = None
        for case in found:
            known = served.get(case.name)
            if case.fields is None:
                continue
            times, serving = EventTimes(), ServingParams()
            if case.params is not None:
                times, serving = case.params.times, case.params.serving
            elif known is not None:
                times, serving = known.times, known.serving
            if known is not None and known.fields == case.fields:
                known.times, known.serving = times, serving
                continue
            try:
                fresh = await asyncio.to_thread(
                    open_case, case.fields, times, serving, self.settings, self.bounds, self.metrics
                )
            except (PerennialError, OSError, sqlite3.Error) as error:
                told = of_disk(error) or error
                broken[case.name] = str(told)
                failed = failed if isinstance(error, ConfigError | IntegrityError) else told
            else:
                served[case.name] = fresh
        for name in served.keys() - {case.name for case in found}:
            del served[name]
        await self._read_routes({name: case for name, case in served.items() if self.cases.get(name) is not case})
        self._serve(served, broken)
        return failed

    def _serve(self, served: Mapping[str, Case], broken: Mapping[str, str]) -> None:
        for name, case in self.cases.items():
            if served.get(name) is not case:
                why = "removed: served no more"
                if name in served:
                    why = "its fields have changed"
                log.info("%s: %s", name, why)
                self.leaving.append(case)
        for name in self.cases.keys() - served.keys():
            self.metrics.forget(name)
        for name, case in served.items():
            self.routing.show(name, case.route)
        for name in served.keys() | broken.keys() | self.broken.keys():
            self.metrics.case_broken.labels(name).set(int(name in broken))
            if broken.get(name, "") != self.broken.get(name, ""):
                now = "mended"
                if name in broken:
                    now = f"broken: {broken[name]}"
                log.warning("%s: %s", name, now)
        self.metrics.promise({name: case.serving.slo for name, case in served.items()})
        self.cases = served
        self.broken = broken

    async def _read_routes(self, cases: Mapping[str, Case]) -> None:
        """Ask the ledger who answers for these cases; while it is away, nothing changes."""
        asked = {name: (case.fields, case.route) for name, case in cases.items()}
        for name, route in (await asyncio.to_thread(self.routing.poll, asked)).items():
            if cases[name].standing_in and _champion(route) != _champion(cases[name].route):
                cases[name].standing_in = ""  # who stood in did so for another one; the next request sees who answers
                self.metrics.fallback.labels(name).set(0)
            cases[name].route = route
            if self.cases.get(name) is cases[name]:  # not removed meanwhile
                self.routing.show(name, route)

    async def keep_log(self) -> None:
        """Sync and rotate the log until the gateway stops; close what a step asks to have closed."""
        pause = min(self.bounds.sync_seconds, self.settings.log_segment_seconds / 4)
        while not await self._stops_within(pause):
            self.metrics.refresh()
            for case in self.cases.values():
                await self.heed(case)
            for case in [case for case in self.leaving if not case.users]:
                case.shadow.stop(case.traffic)
                await self.tidy(case, close=True)
                if all(segments.closed for segments in case.logs):
                    case.index.close()
                    self.leaving.remove(case)

    async def heed(self, case: Case) -> None:
        """Tidy a case's log; where a step has asked since, close all of it, and what dead workers left."""
        request = asked(self.settings.log_request(case.name))
        wanted = request != case.asked
        case.asked = request
        await self.tidy(case, close=wanted)
        if wanted:
            for segments in case.logs:
                await asyncio.to_thread(adopt, segments.folder)

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return self.stopping.is_set()

    async def tidy(self, case: Case, *, close: bool = False) -> None:
        """Sync a case's segments and close the old ones (``close``: all of them).

        A retired case predicts no more: what it predicted is closed at once.
        """
        retired = case.route is not None and case.route.retired is not None
        self.metrics.log_lines.labels(case.name, "refusals").inc(case.refused.write(case.refusals_log))
        self.metrics.log_lines.labels(case.name, "traffic").inc(case.traffic.write(case.traffic_log, every=close))
        for segments in case.logs:
            if close or (retired and segments is case.predictions_log and not segments.closed):
                closed = await segments.close()
            else:
                closed = await segments.tick()
            if closed and segments is case.predictions_log:
                # Every client-made id in them is indexed already; without the mark a start would read them again, no
                # more.
                with suppress(Unavailable, Refused):  # which the log says
                    async with case.alone:
                        await case.index.begin()
                        with case.index.writing():
                            for position in closed:
                                case.index.mark(position)


def _champion(route: Route | None) -> tuple[int | None, Version | None]:
    """The number of a route's champion, which may be none that serves here, and the version that does."""
    if route is None or route.release is None:
        return None, None
    return route.release.champion, route.champion


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What ``function`` gives, from a thread.

    Who is cancelled waits until the thread has ended, as nothing stops it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _unfit(folder: Path) -> str:
    """Why nothing can be written into a folder now, without its path; empty: it can."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return "the state folder cannot be read"
    free = found.f_frsize * (found.f_bavail if os.geteuid() else found.f_bfree)
    if found.f_flag & os.ST_RDONLY:
        return "the state folder is read-only: mount it writable"
    if free < LEAST_FREE:
        return "the disk of the state folder is full: make room"
    return ""


async def start(settings: Settings, bounds: Bounds, metrics: Metrics) -> Gateway:
    """Take up the cases and what dead workers left of them, read the ledger once, open the channel.

    Raises ConfigError without an API key, Unavailable without a Triton, and what keeps a case that is whole from being
    served; a broken one raises nothing.
    """
    objects.attach(settings)
    door = Door(bounds, settings.key_file, settings.limits_url, metrics.inside.set)
    triton = Triton(
        settings.address("triton_grpc"),
        bounds.deadline_seconds,
        bounds.deadline_seconds_per_text,
        settings.triton_client,
        lambda case: metrics.call_rows.labels(case).observe,
    )
    metrics.watch_waiting(triton.waiting)
    gateway = Gateway(settings, bounds, metrics, Routing(settings, metrics), triton, triton.aside(), door)
    if (failed := await gateway.take_up()) is not None:
        raise failed
    return gateway


async def stop(gateway: Gateway) -> None:
    """Close the log's segments and the channel."""
    for case in (*gateway.cases.values(), *gateway.leaving):
        case.shadow.stop(case.traffic)
        await gateway.tidy(case, close=True)
        case.index.close()
    await gateway.triton.close()
