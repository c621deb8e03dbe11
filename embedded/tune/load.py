"""Clients that ask a Triton as the gateway's workers do, each worker in a process: one row a request, closed loop."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import uvloop
from pydantic import SecretStr

from embedded.tune.grid import Point
from pipelines.cases import load_fields
from pipelines.fields import Fields
from pipelines.parts import Part
from pipelines.processes import die_with_parent
from serving.gateway.triton import Triton

WARM_SECONDS = 0.3
"""What is not counted at the beginning."""
PATIENCE_SECONDS = 60.0
"""How long one request may take: what is measured is not cut off."""
Rows = Sequence[Sequence[Part]]
"""The inferences of each row, as the gateway makes them."""


class Target(NamedTuple):
    """A version in a Triton, and whose key opens it."""

    address: str
    client: SecretStr | None
    version: int


class Timed(NamedTuple):
    """What one worker saw: the latencies (s) of its requests, and how long (s) they took together."""

    latencies: list[float]
    seconds: float


class _Own(NamedTuple):
    """What a worker's process knows of the case."""

    fields: Fields
    rows: Rows


_own: list[_Own] = []


@contextmanager
def workers(case: str, rows: Rows, count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that ask for the rows of a case, as so many workers of the gateway."""
    spawn = multiprocessing.get_context("spawn")  # a channel of gRPC does not outlive a fork
    with ProcessPoolExecutor(count, spawn, _take, (case, rows, os.getpid())) as pool:
        yield pool


def measure(pool: ProcessPoolExecutor, target: Target, clients: int, seconds: float, *, count: int) -> Point:
    """What ``clients``, shared among ``count`` workers, come to. Raises what :meth:`Triton.score` raises."""
    shares = [share for number in range(count) if (share := clients // count + (number < clients % count))]
    found = [future.result() for future in [pool.submit(_ask, target, share, seconds) for share in shares]]
    latencies = np.concatenate([one.latencies for one in found]) * 1000
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist()
    return Point(sum(len(one.latencies) / one.seconds for one in found), p50, p95, p99)


def _take(case: str, rows: Rows, parent: int) -> None:
    die_with_parent(parent=parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends what it began
    _own.append(_Own(load_fields(case), rows))


def _ask(target: Target, clients: int, seconds: float) -> Timed:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_closed_loop(target, clients, seconds))


async def _closed_loop(target: Target, clients: int, seconds: float) -> Timed:
    [own] = _own
    triton = Triton(target.address, PATIENCE_SECONDS, client=target.client)
    begin = time.perf_counter() + WARM_SECONDS
    end = begin + seconds
    latencies = list[float]()

    async def client(number: int) -> float:
        row = number * len(own.rows) // clients
        while (begun := time.perf_counter()) < end or not latencies:  # one answer at least, however slow
            await triton.score(own.fields, target.version, own.rows[row % len(own.rows)], triton.deadline())
            if begun >= begin:
                latencies.append(time.perf_counter() - begun)
            row += 1
        return time.perf_counter()

    try:
        done = await asyncio.gather(*(client(number) for number in range(clients)))
    finally:
        await triton.close()
    return Timed(latencies, max(done) - begin)
