"""Which version answers for a case: the ledger's head, polled in the background.

While the ledger is away, the last good copy goes on being used; how old it is shows in a metric. A row that is not what
the ledger wrote is not followed either: its case goes on with the last good copy, or is refused where there is none,
and the other cases go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from sqlalchemy.exc import SQLAlchemyError

from pipelines import ledger
from pipelines.contracts import Release, Retirement
from pipelines.errors import DatabaseDamaged, IntegrityError, PerennialError, Unavailable
from pipelines.fields import Fields
from pipelines.settings import Settings
from serving.gateway.metrics import Metrics
from serving.gateway.refusal import Refused
from serving.gateway.versions import Version, load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """A case's champion (or why it is refused), and the release before it; None where there is none that may serve.

    ``damaged`` says what of the case's rows is not what the ledger wrote ("": nothing is known to be); ``release`` is
    None if that is the head. ``retired`` says since when the case is out of service: then there is no champion.
    """

    release: Release | None
    champion: Version | None
    previous: Version | None
    refused: str = ""
    damaged: str = ""
    retired: Retirement | None = None


def _numbers(route: Route | None) -> set[int]:
    """The versions that a route leads to, a refused champion too."""
    if route is None:
        return set()
    own = {version.number for version in (route.champion, route.previous) if version is not None}
    return own | ({route.release.champion} if route.release is not None else set())


class Routing:
    """Reads the ledger. ``polled`` is the monotonic time at which it last answered, None: it never has."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.polled: float | None = None
        metrics.watch_poll(lambda: self.polled)

    def poll(self, cases: Mapping[str, tuple[Fields, Route | None]]) -> dict[str, Route | None]:
        """The routes of these cases, given their fields and their routes so far. For a thread.

        There is nothing if the ledger does not answer, and nothing of a case whose rows it cannot read: what was known
        goes on.
        """
        found: dict[str, Route | None] = {}
        failed = 0
        retired = self._retired(cases)
        for case, (fields, known) in cases.items():
            try:
                found[case] = self._now(case, fields, known, retired)
            except IntegrityError as error:
                found[case] = self._damaged(case, known, str(error))
                if isinstance(error, DatabaseDamaged):  # nothing was read
                    self._metrics.ledger_errors.inc()
                    failed += 1
            except PerennialError as error:  # nobody answers, or not to this gateway: so it is for every case
                self._failed(case, error)
                return {}
            except (SQLAlchemyError, OSError, ValueError) as error:
                self._failed(case, error)
                failed += 1
        if failed < len(cases) or not failed:
            self.polled = time.monotonic()
        return found

    def _retired(self, cases: Collection[str]) -> ledger.Retired | Exception:
        """Who is retired, or what keeps that from being known: of no case, then."""
        try:
            return ledger.retired(self._settings.ledger, list(cases))
        except (PerennialError, SQLAlchemyError, OSError, ValueError) as error:
            return error

    def _now(self, case: str, fields: Fields, known: Route | None, retired: ledger.Retired | Exception) -> Route | None:
        if isinstance(retired, Exception):
            raise retired
        if case in retired.damaged:
            raise IntegrityError(retired.damaged[case])
        if case not in retired.now:
            return self._route(case, fields, None if known is None or known.retired else known)
        now = retired.now[case]
        if known is None or known.retired != now:
            log.info("%s: no predictions any more, labels of earlier ones are taken", now)
        return Route(None, None, None, str(now), retired=now)

    def _failed(self, case: str, error: Exception) -> None:
        log.warning("the ledger of %s cannot be read, the last copy is kept: %s", case, error)
        self._metrics.ledger_errors.inc()

    def _damaged(self, case: str, known: Route | None, problem: str) -> Route:
        if known is None or known.damaged != problem:
            served = "the last good copy goes on"
            if known is None or known.champion is None:
                served = "nothing is served"
            log.error("%s: %s; %s", case, problem, served)
        if known is None:
            return Route(None, None, None, problem, problem)
        return replace(known, damaged=problem)

    def _route(self, case: str, fields: Fields, known: Route | None) -> Route | None:
        release = ledger.head(self._settings.ledger, case)
        same = known is not None and known.release == release
        if release is None or (same and known is not None and not known.refused and not known.damaged):
            if release is None:
                return None
            return known
        self._check_verdict(case, release)
        before = None
        damaged = ""
        try:
            before = ledger.previous_release(self._settings.ledger, case)
        except IntegrityError as error:
            damaged = str(error)
        if damaged and (known is None or known.damaged != damaged):
            log.error("%s: %s; its champion is whole and serves, without a release to stand in for it", case, damaged)
        if same and known is not None and known.champion is not None and damaged:
            return replace(known, damaged=damaged)
        previous = None
        if before is not None and before.champion != release.champion:
            with suppress(Unavailable):
                previous = load(self._settings.root, fields, before)
        try:
            route = Route(release, load(self._settings.root, fields, release), previous, damaged=damaged)
        except Unavailable as error:
            route = Route(release, None, previous, str(error), damaged)
        if known is None or known.release != release:
            log.info(
                "%s: champion %d from release %d on (%s)",
                case,
                release.champion,
                release.seq,
                route.refused or release.action,
            )
        return route

    def _check_verdict(self, case: str, release: Release) -> None:
        """Raises IntegrityError if the ledger has no verdict that promoted the release.

        Either it does not have the verdict that the release cites, or that one did not promote it.
        """
        if release.verdict_hash is None:
            return
        verdict = ledger.verdict(self._settings.ledger, case, release.verdict_hash)["verdict"]
        if release.action == "promote" and verdict.get("decision") != "promote":
            raise IntegrityError(
                f"ledger of {case}: row {release.seq} of releases promotes on a verdict that says "
                f"{verdict.get('decision')}: {ledger.LOOK}"
            )

    def show(self, case: str, route: Route | None) -> None:
        """Let the metrics say what a case's route is."""
        champion = 0
        refused = False
        if route and route.release:
            champion = route.release.champion
            refused = bool(route.refused)
        self._metrics.champion.labels(case).set(champion)
        self._metrics.routed(case, _numbers(route))
        self._metrics.case_retired.labels(case).set(int(bool(route and route.retired)))
        self._metrics.fields_refused.labels(case).set(int(refused))
        self._metrics.ledger_damaged.labels(case).set(int(bool(route and route.damaged)))

    def versions(self, case: str, route: Route | None, only: int | None = None) -> tuple[Version, Version | None]:
        """What a route leads to: the champion, and what stands in for it, unless ``only`` one version may answer.

        Raises Refused: 410 of a retired case, 404 if the champion is another version than ``only``; Unavailable if
        there is no champion yet, or none that may be served.
        """
        if route is None:
            if self.polled is None:
                raise Unavailable(f"{case}: the ledger has not answered yet: see /readyz")
            raise Unavailable(f"{case} has no champion yet: run its training (DAG {case}_training), then try again")
        if route.retired is not None:
            raise Refused(410, "retired", f"{route.retired}: it predicts no more; labels of its predictions are taken")
        if route.champion is None:
            raise Unavailable(route.refused)
        if only is None:
            return route.champion, route.previous
        if only != route.champion.number:
            serves = route.champion.number
            raise Refused(404, "version", f"{case}: version {only} does not serve: version {serves} does")
        return route.champion, None
