"""Whether the gateway can answer: asked once for all who want to know within a second."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipelines.errors import Crowded, PerennialError
from serving.gateway.versions import Version, probe

if TYPE_CHECKING:
    from serving.gateway.cases import Case
    from serving.gateway.routing import Rollout, Route
    from serving.gateway.state import Gateway


class Readiness:
    """The newest answer, and the look that is going on.

    Inferences cost Triton time: callers, who need no key, share them.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._look: asyncio.Task[dict[str, Any]] | None = None
        self._fresh_until = 0.0

    async def answer(self) -> dict[str, Any]:
        """The answer of /readyz, at most ``ready_seconds`` old: ``ready``, ``every`` case, and why not.

        One sick case does not make a worker unready, which serves the others: it is, if no champion answers.
        """
        if self._look is None or (self._look.done() and time.monotonic() >= self._fresh_until):
            self._look = asyncio.create_task(self._ask())
        return await asyncio.shield(self._look)  # a caller that goes away takes nobody's answer along

    async def _ask(self) -> dict[str, Any]:
        try:
            return await _ask(self._gateway)
        finally:
            self._fresh_until = time.monotonic() + self._gateway.bounds.ready_seconds


async def _ask(gateway: Gateway) -> dict[str, Any]:
    routes = {name: case.route for name, case in gateway.cases.items() if case.route and not case.route.retired}
    # At once: one that is waited for keeps nobody from knowing of the others.
    probed = await asyncio.gather(*(_probe(gateway, gateway.cases[name], route) for name, route in routes.items()))
    cases = dict(zip(routes, probed, strict=True))
    every = all(case["ready"] for case in probed)
    answer: dict[str, Any] = {"ready": every or any(case["ready"] for case in probed), "every": every, "cases": cases}
    out = {name: case.route.retired for name, case in gateway.cases.items() if case.route and case.route.retired}
    answer["retired"] = {name: str(retirement) for name, retirement in out.items()}
    answer["without_champion"] = [name for name in gateway.cases if name not in {*cases, *out}]
    answer["broken"] = gateway.broken
    if gateway.routing.polled is None:
        answer |= {"ready": False, "every": False, "error": "the ledger has not answered yet: see PERENNIAL_LEDGER_URL"}
    if trouble := gateway.disk():
        answer |= {"ready": False, "every": False, "error": trouble}
    return answer


async def _probe(gateway: Gateway, case: Case, route: Route) -> dict[str, Any]:
    """Whether the champion of a route answers a real inference; of a challenger on trial it is told as well."""
    about: dict[str, Any]
    try:
        champion, _previous = gateway.routing.versions(case.name, route)
        await _answers(gateway, case, champion)
        about = {"champion": champion.number, "ready": True}
    except PerennialError as error:
        number = route.release.champion if route.release else None
        about = {"champion": number, "ready": False, "error": str(error)}
    if route.rollout is not None and route.rollout.number is not None:
        about["challenger"] = await _on_trial(gateway, case, route.rollout)
    return about | ({"damaged": route.damaged} if route.damaged else {})


async def _on_trial(gateway: Gateway, case: Case, rollout: Rollout) -> dict[str, Any]:
    """The same of a challenger: the champion answers for one that does not."""
    about = {"version": rollout.number, "stage": rollout.stage}
    if rollout.challenger is None:
        return about | {"ready": False, "error": rollout.refused}
    try:
        await _answers(gateway, case, rollout.challenger)
    except PerennialError as error:
        return about | {"ready": False, "error": str(error)}
    return about | {"ready": True}


async def _answers(gateway: Gateway, case: Case, version: Version) -> None:
    """Raises what keeps a version from answering, beside a full queue: then it answers others."""
    parts = await version.parts(probe(case.fields))
    with suppress(Crowded):
        await gateway.triton.score(case.fields, version.number, parts, gateway.triton.deadline())
