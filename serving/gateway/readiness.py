"""Whether the gateway can answer: asked once for all who want to know within a second."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from pipelines.errors import PerennialError
from serving.gateway.versions import probe

if TYPE_CHECKING:
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
        """The answer of /readyz, at most ``ready_seconds`` old: ``ready``, and why not."""
        if self._look is None or (self._look.done() and time.monotonic() >= self._fresh_until):
            self._look = asyncio.create_task(self._ask())
        return await asyncio.shield(self._look)  # a caller that goes away takes nobody's answer along

    async def _ask(self) -> dict[str, Any]:
        try:
            return await _ask(self._gateway)
        finally:
            self._fresh_until = time.monotonic() + self._gateway.bounds.ready_seconds


async def _ask(gateway: Gateway) -> dict[str, Any]:
    cases: dict[str, dict[str, Any]] = {}
    for name, case in gateway.cases.items():
        if (route := case.route) is None or route.retired:
            continue
        try:
            champion, _previous = gateway.routing.versions(name, route)
            probed = await champion.parts(probe(case.fields))
            await gateway.triton.score(case.fields, champion.number, probed, gateway.triton.deadline())
            cases[name] = {"champion": champion.number, "ready": True}
        except PerennialError as error:
            cases[name] = {
                "champion": route.release.champion if route.release else None,
                "ready": False,
                "error": str(error),
            }
        if route.damaged:
            cases[name]["damaged"] = route.damaged
    answer: dict[str, Any] = {"ready": all(case["ready"] for case in cases.values()), "cases": cases}
    out = {name: case.route.retired for name, case in gateway.cases.items() if case.route and case.route.retired}
    answer["retired"] = {name: str(retirement) for name, retirement in out.items()}
    answer["without_champion"] = [name for name in gateway.cases if name not in {*cases, *out}]
    answer["broken"] = gateway.broken
    if gateway.routing.polled is None:
        answer |= {"ready": False, "error": "the ledger has not answered yet: see PERENNIAL_LEDGER_URL"}
    if trouble := gateway.disk():
        answer |= {"ready": False, "error": trouble}
    return answer
