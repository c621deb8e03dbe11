"""Which version answers for a case: the ledger's head, polled in the background.

While the ledger is away, the last good copy goes on being used; how old it is shows in a metric. A row that is not what
the ledger wrote is not followed either: its case goes on with the last good copy, or is refused where there is none,
and the other cases go on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from pipelines import ledger
from pipelines.arms import WHOLE, challenged
from pipelines.contracts import Arm, Release, Retirement, Stage
from pipelines.errors import DatabaseDamaged, IntegrityError, PerennialError, Unavailable
from pipelines.fields import Fields
from pipelines.settings import Settings
from serving.gateway.metrics import Metrics
from serving.gateway.refusal import Refused
from serving.gateway.versions import Version, load

AGAIN_SECONDS = 30.0
"""How long a release before the champion that could not be loaded is left alone: what kept it may have passed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollout:
    """What is under way beside the champion: whose keys (of WHOLE, ``weight``) meet the challenger, by ``salt``.

    ``number`` is the challenger's version (None: none is, in a soak), ``challenger`` what it is made of (None: it is
    ``refused`` here for a reason, and the champion answers its rows). ``place`` is the position of the declared key
    among the fields (None: the prediction id is the key).
    """

    stage: Stage
    number: int | None = None
    challenger: Version | None = None
    weight: int = 0
    salt: str = ""
    place: int | None = None
    mirror: bool = False
    refused: str = ""

    @property
    def mirrors(self) -> bool:
        """Whether the version that did not answer a row is asked for it after the reply."""
        return self.number is not None and (self.mirror or self.stage == "shadow")

    def arm(self, features: Sequence[Any], prediction_id: str) -> Arm:
        """The arm of a row, by the value that keeps its arm, or its id where it has none."""
        value = None if self.place is None else features[self.place]
        return self.arm_of(prediction_id if value is None else str(value))

    def arm_of(self, key: str) -> Arm:
        """The arm of a key."""
        return "challenger" if challenged(self.salt, key, self.weight) else "champion"


@dataclass(frozen=True)
class Route:
    """A case's champion (or why it is refused), and the release before it; None where there is none that may serve.

    ``damaged`` says what of the case's rows is not what the ledger wrote ("": nothing is known to be); ``release`` is
    None if that is the head. ``retired`` says since when the case is out of service: then there is no champion.
    ``rollout`` is what is under way, None: nothing is. ``below`` is the row of the release before; where its version
    could not be loaded, ``absent`` says why, and from ``again`` on (monotonic) it is tried again.
    """

    release: Release | None
    champion: Version | None
    previous: Version | None
    refused: str = ""
    damaged: str = ""
    retired: Retirement | None = None
    rollout: Rollout | None = None
    below: Release | None = None
    absent: str = ""
    again: float = math.inf


def _numbers(route: Route | None) -> set[int]:
    """The versions that a route leads to, a refused champion too."""
    if route is None:
        return set()
    own = {version.number for version in (route.champion, route.previous) if version is not None}
    if route.rollout is not None and route.rollout.number is not None:
        own.add(route.rollout.number)
    return own | ({route.release.champion} if route.release is not None else set())


def _same_artefact(one: Release, other: Release) -> bool:
    """Whether two rows let the same files serve: those of a rollout leave its champion as it is."""
    return (one.champion, one.candidate_key, one.bundle) == (other.champion, other.candidate_key, other.bundle)


def _version(root: Path, fields: Fields, release: Release, known: Route | None) -> Version:
    """The version of a release: one that is here already, whatever it was here for; else :func:`load`."""
    if known is not None:
        contender = None if known.release is None else known.release.contender
        challenger = None if known.rollout is None else known.rollout.challenger
        here = ((known.release, known.champion), (known.below, known.previous), (contender, challenger))
        for row, version in here:
            if row is not None and version is not None and _same_artefact(row, release):
                return version
    return load(root, fields, release)


def _place(case: str, fields: Fields, key: str | None) -> int | None:
    """The position of a rollout's key among the fields; None: the prediction id is the key."""
    if key is None:
        return None
    if key in fields.names:
        return fields.names.index(key)
    log.warning("%s: its rollout goes by the key %s, which is none of its fields: prediction ids stand in", case, key)
    return None


def _refused(route: Route) -> bool:
    """Whether a challenger is not served here, for a reason that may pass."""
    return route.rollout is not None and bool(route.rollout.refused)


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
        if release is None:
            return None
        sound = known is not None and not (known.refused or known.damaged or _refused(known))
        if same and known is not None and sound and time.monotonic() < known.again:
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
        rollout, doubt = self._rollout(case, fields, release, known)
        damaged = damaged or doubt
        route = Route(release, None, None, damaged=damaged, rollout=rollout)
        if before is not None and before.champion != release.champion:
            route = self._with_previous(fields, route, before, known)
        try:
            route = replace(route, champion=_version(self._settings.root, fields, release, known))
        except Unavailable as error:
            route = replace(route, refused=str(error))
        if known is None or known.release != release:
            log.info(
                "%s: champion %d from release %d on (%s)",
                case,
                release.champion,
                release.seq,
                route.refused or release.action,
            )
        return route

    def _with_previous(self, fields: Fields, route: Route, below: Release, known: Route | None) -> Route:
        """The route with the release that stands in for its champion; without, where that cannot be loaded now."""
        try:
            return replace(route, previous=_version(self._settings.root, fields, below, known), below=below)
        except Unavailable as error:
            told = str(error)
        if known is None or known.absent != told:
            log.warning("%s: no release stands in for its champion: %s", below.case, told)
        return replace(route, below=below, absent=told, again=time.monotonic() + AGAIN_SECONDS)

    def _rollout(self, case: str, fields: Fields, release: Release, known: Route | None) -> tuple[Rollout | None, str]:
        """What is under way by a row, and what of it is not what the ledger wrote: its champion answers all then."""
        own = release.trial
        if release.stage == "full" or own is None:
            return None, ""
        contender = release.contender
        if contender is None:
            return Rollout(release.stage), ""
        found = Rollout(
            release.stage,
            contender.champion,
            weight=0 if release.stage == "shadow" else release.weight,
            salt=release.salt,
            place=_place(case, fields, own.plan.get("key")),
            mirror=bool(own.plan.get("mirror", False)),
        )
        before = None if known is None else known.rollout
        told = before.refused if before is not None and before.number == found.number else ""
        doubt = ""
        try:
            # Who releases by hand may do so despite a verdict, which is in the ledger all the same.
            self._check_verdict(case, contender, promotes=not own.by_hand)
            return replace(found, challenger=_version(self._settings.root, fields, contender, known)), ""
        except IntegrityError as error:
            found, doubt = replace(found, refused=str(error)), str(error)
        except Unavailable as error:
            found = replace(found, refused=str(error))
        if told != found.refused:
            log.error("%s: the champion answers for the challenger, too: %s", case, found.refused)
        return found, doubt

    def _check_verdict(self, case: str, release: Release, *, promotes: bool | None = None) -> None:
        """Raises IntegrityError if the ledger has no verdict that promoted the release.

        Either it does not have the verdict that the release cites, or that one did not promote it, where the release
        ``promotes`` by it (None: if its action says so).
        """
        if release.verdict_hash is None:
            return
        verdict = ledger.verdict(self._settings.ledger, case, release.verdict_hash)["verdict"]
        by_verdict = release.action == "promote" if promotes is None else promotes
        if by_verdict and verdict.get("decision") != "promote":
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
        own = Rollout("full") if route is None or route.rollout is None else route.rollout
        self._metrics.show_rollout(case, own.stage, own.number or 0, own.weight / WHOLE, refused=bool(own.refused))
        self._metrics.routed(case, _numbers(route))
        self._metrics.case_retired.labels(case).set(int(bool(route and route.retired)))
        self._metrics.fields_refused.labels(case).set(int(refused))
        self._metrics.ledger_damaged.labels(case).set(int(bool(route and route.damaged)))

    def versions(self, case: str, route: Route | None, only: int | None = None) -> tuple[Version, Version | None]:
        """What a route leads to: the champion, and what stands in for it, unless ``only`` one version may answer.

        That may be a challenger on trial, too, for whoever asks for it by its number. Raises Refused: 410 of a retired
        case, 404 if ``only`` is neither; Unavailable if there is no champion yet, or none that may be served.
        """
        if route is None:
            if self.polled is None:
                raise Unavailable(f"{case}: the ledger has not answered yet: see /readyz")
            raise Unavailable(f"{case} has no champion yet: run its training (DAG {case}_training), then try again")
        if route.retired is not None:
            raise Refused(410, "retired", f"{route.retired}: it predicts no more; labels of its predictions are taken")
        if only is not None and route.rollout is not None and only == route.rollout.number:
            if route.rollout.challenger is None:
                raise Unavailable(route.rollout.refused)
            return route.rollout.challenger, None
        if route.champion is None:
            raise Unavailable(route.refused)
        if only is None:
            return route.champion, route.previous
        if only != route.champion.number:
            serves = route.champion.number
            raise Refused(404, "version", f"{case}: version {only} does not serve: version {serves} does")
        return route.champion, None
