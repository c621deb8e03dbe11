"""The gateway without joining, for `make bench-serving`: every request is a call of its own to Triton.

The gateway has no such setting: its lanes are bypassed here, and nothing else is.
"""

from __future__ import annotations

from serving.gateway.app import app
from serving.gateway.joining import Call, Lane

__all__ = ["app"]


async def _alone(lane: Lane, call: Call) -> list[float]:
    return await lane._send(call)  # noqa: SLF001 - the switch that the gateway does not have


Lane.ask = _alone  # type: ignore[assignment, method-assign]
