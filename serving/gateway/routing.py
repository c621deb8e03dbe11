"""Which version answers for a case: the ledger's head, polled in the background.

While the ledger is away, the last good copy goes on being used; how old it is shows in a metric.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from pipelines import ledger
from pipelines.config import Settings
from pipelines.contracts import Release
from pipelines.errors import PerennialError, Unavailable
from pipelines.fields import Fields
from serving.gateway.metrics import Metrics
from serving.gateway.versions import Version, load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """A case's champion (or why it is refused), and the release before it; None where there is none that may serve."""

    release: Release
    champion: Version | None
    previous: Version | None
    refused: str = ""


class Routing:
    """The routes of all cases. :meth:`poll` runs in a thread, everything else in the event loop."""

    def __init__(self, settings: Settings, fields: Mapping[str, Fields], metrics: Metrics) -> None:
        self._settings = settings
        self._fields = fields
        self._metrics = metrics
        self._routes: dict[str, Route | None] = {}
        self.polled: float | None = None
        metrics.watch_poll(lambda: self.polled)

    def poll(self) -> bool:
        """Read every case's head; False if the ledger did not answer, and then nothing changes."""
        try:
            found = {case: self._route(case) for case in self._fields}
        except (PerennialError, SQLAlchemyError, OSError, ValueError) as error:
            log.warning("the ledger cannot be read, the last copy is kept: %s", error)
            self._metrics.ledger_errors.inc()
            return False
        for case, route in found.items():
            self._metrics.champion.labels(case).set(route.release.champion if route else 0)
            self._metrics.fields_refused.labels(case).set(1 if route and route.refused else 0)
        self._routes, self.polled = found, time.monotonic()
        return True

    def _route(self, case: str) -> Route | None:
        release = ledger.head(self._settings.ledger, case)
        known = self._routes.get(case)
        if release is None or (known is not None and known.release == release and not known.refused):
            return None if release is None else known
        before = ledger.previous_release(self._settings.ledger, case)
        previous = None
        if before is not None and before.champion != release.champion:
            with suppress(Unavailable):
                previous = load(self._settings.root, self._fields[case], before)
        try:
            route = Route(release, load(self._settings.root, self._fields[case], release), previous)
        except Unavailable as error:
            route = Route(release, None, previous, str(error))
        if known is None or known.release != release:
            log.info("%s: champion %d from release %d on (%s)", case, release.champion, release.seq, route.refused or release.action)
        return route

    def versions(self, case: str) -> tuple[Version, Version | None]:
        """The case's champion and what stands in for it; raises Unavailable if there is no champion yet, or none that may be served."""
        route = self._routes.get(case)
        if route is None:
            if self.polled is None:
                raise Unavailable(f"{case}: the ledger has not answered yet: see /readyz")
            raise Unavailable(f"{case} has no champion yet: run its training (DAG {case}_training), then try again")
        if route.champion is None:
            raise Unavailable(route.refused)
        return route.champion, route.previous

    def known(self, case: str) -> Route | None:
        """The case's route as it is, refused or not; None without a champion."""
        return self._routes.get(case)
