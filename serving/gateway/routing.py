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
    """Reads the ledger. ``polled`` is the monotonic time at which it last answered, None: it never has."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.polled: float | None = None
        metrics.watch_poll(lambda: self.polled)

    def poll(self, cases: Mapping[str, tuple[Fields, Route | None]]) -> dict[str, Route | None]:
        """The routes of these cases, given their fields and their routes so far; nothing if the ledger does not answer. For a thread."""
        try:
            found = {case: self._route(case, fields, known) for case, (fields, known) in cases.items()}
        except (PerennialError, SQLAlchemyError, OSError, ValueError) as error:
            log.warning("the ledger cannot be read, the last copy is kept: %s", error)
            self._metrics.ledger_errors.inc()
            return {}
        self.polled = time.monotonic()
        return found

    def _route(self, case: str, fields: Fields, known: Route | None) -> Route | None:
        release = ledger.head(self._settings.ledger, case)
        if release is None or (known is not None and known.release == release and not known.refused):
            return None if release is None else known
        before = ledger.previous_release(self._settings.ledger, case)
        previous = None
        if before is not None and before.champion != release.champion:
            with suppress(Unavailable):
                previous = load(self._settings.root, fields, before)
        try:
            route = Route(release, load(self._settings.root, fields, release), previous)
        except Unavailable as error:
            route = Route(release, None, previous, str(error))
        if known is None or known.release != release:
            log.info("%s: champion %d from release %d on (%s)", case, release.champion, release.seq, route.refused or release.action)
        return route

    def show(self, case: str, route: Route | None) -> None:
        """Let the metrics say what a case's route is."""
        self._metrics.champion.labels(case).set(route.release.champion if route else 0)
        self._metrics.fields_refused.labels(case).set(1 if route and route.refused else 0)

    def versions(self, case: str, route: Route | None) -> tuple[Version, Version | None]:
        """What a route leads to: the champion, and what stands in for it. Raises Unavailable if there is no champion yet, or none that may be served."""
        if route is None:
            if self.polled is None:
                raise Unavailable(f"{case}: the ledger has not answered yet: see /readyz")
            raise Unavailable(f"{case} has no champion yet: run its training (DAG {case}_training), then try again")
        if route.champion is None:
            raise Unavailable(route.refused)
        return route.champion, route.previous
