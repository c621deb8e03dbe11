"""How a case is served."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipelines.params.base import Strict, not_below, rising_rows

Device = Literal["auto", "cpu", "gpu"]


class Slo(Strict):
    """What a case promises those who ask it: an alert comes where five minutes do not keep it.

    Latencies are of whole requests, in milliseconds, from the first byte that the gateway reads to the last that it
    sends. None: nothing is promised.
    """

    p95_ms: float | None = Field(default=None, gt=0)
    p99_ms: Annotated[float | None, not_below("p95_ms")] = Field(default=None, gt=0)
    errors: float = Field(default=0.01, gt=0, lt=1)
    """The share of requests that may go without an answer though nothing is wrong with them (5xx)."""


class Queue(Strict):
    """What may wait in Triton for its turn: Triton's ``default_queue_policy``, if anything of it is declared.

    It has a price: then its batcher begins no batch before an instance is idle, and may find that out late.
    """

    timeout_ms: float | None = Field(default=None, gt=0)
    """What has waited longer is refused. None: as long as the request's deadline allows."""
    size: int = Field(default=0, ge=0)
    """How many requests may wait; 0: any number."""


class Batching(Strict):
    """Requests that Triton joins, of all workers of all gateways: its dynamic batcher."""

    window_ms: float = Field(default=0.0, ge=0, le=20)
    """How long a request may wait for others; 0: only for those that are there already."""
    preferred_rows: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], AfterValidator(rising_rows)] = ()
    """Rows at which a batch goes at once."""
    queue: Queue = Queue()


class Cache(Strict):
    """Scores that a worker of the gateway keeps by the version and the row's features; every answer is logged."""

    seconds: float = Field(gt=0)
    rows: int = Field(default=10_000, gt=0)


class ServingParams(Strict):
    """How the case's answers are computed, what is promised of them, and what is answered if nobody can.

    No part of any key: a change is followed by the next reconciliation, and by gateways within seconds.
    """

    device: Device = "auto"
    """``auto``: on a GPU if Triton has one, else on the CPU. ``gpu``: on a GPU, and it is a warning if that has to be
    the CPU. ``cpu``: there, whatever Triton has; a network of a few thousand weights gains nothing elsewhere.
    """
    instances: int = Field(default=1, ge=1, le=64)
    """Copies of a version that Triton runs at a time, on each device."""
    batching: Batching | None = None
    """None: Triton joins nothing. The gateway joins what waits in a worker anyway."""
    deadline_seconds: float | None = Field(default=None, gt=0)
    """How long a request may wait for Triton; texts add to it. None: ``PERENNIAL_GATEWAY_DEADLINE_SECONDS``."""
    slo: Slo = Slo()
    default: float | dict[str, float] | None = None
    """The score (of a number: the number; of classes: each one's probability) that is answered, and flagged, where
    neither champion nor previous release can. None: such a request is refused.
    """
    cache: Cache | None = None


DEFAULT_SERVING = ServingParams()
"""How a case is served that says nothing of it."""
