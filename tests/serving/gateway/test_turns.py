"""How long what is read next may have waited in its socket."""

import asyncio
import time
from pathlib import Path

import pytest
import uvloop

from serving.gateway.pace import TURNS
from serving.gateway.protections import FEW, UNREAD_SECONDS, Door
from serving.gateway.settings import Bounds
from serving.gateway.turns import Turns


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_a_turn_that_takes_long_is_told_of(loop):
    """What holds the loop up is told of in the next two turns that read something, and in no other."""

    async def run():
        told = []
        turns = Turns(told.append)
        for seconds in (0.0, 0.05, 0.0, 0.0, 0.0):
            turns.reads()
            time.sleep(seconds)
            await asyncio.sleep(0)
        return told[:5]

    with asyncio.Runner(loop_factory=loop) as runner:
        told = runner.run(run())
    assert [seconds >= 0.05 for seconds in told] == [False, True, True, False, False]


def test_a_loop_that_reads_nothing_rests():
    """A turn without reading is the last one that is told of, however long the loop waits; a later one begins anew."""

    async def run():
        told = []
        turns = Turns(told.append)
        turns.reads()
        await asyncio.sleep(0.05)
        count = len(told)
        turns.reads()
        await asyncio.sleep(0.01)
        return count, told

    count, told = asyncio.run(run())
    assert count == 2
    assert len(told) == 4
    assert max(told) < 0.04


def limit(door, case):
    """How many requests for a case are let in at a time."""
    places = []
    while not door.full(case):
        places.append(door.place(case))
        places[-1].__enter__()
    for place in places:
        place.__exit__(ValueError)
    return len(places)


def test_a_case_that_has_too_much_leaves_the_worker_time_to_read():
    """While its requests are turned away and wait long to be read, it has fewer places, never fewer than a few.

    Who has not asked for more has as many as before, and a turn in which nobody was turned away says nothing.
    """
    door = Door(Bounds(auth=False, max_requests=200, case_share=0.5), Path("key"))
    assert (limit(door, "loans"), limit(door, "bank")) == (100, 100)
    door.came_round(0.5 * UNREAD_SECONDS)
    door.came_round(1.0)
    assert limit(door, "loans") == 100
    door.came_round(2 * UNREAD_SECONDS)
    assert (limit(door, "loans"), door.full("bank")) == (80, "")
    for _ in range(9):
        time.sleep(0.01 + 2 * TURNS * UNREAD_SECONDS)
        limit(door, "loans")
        door.came_round(2 * UNREAD_SECONDS)
    assert (limit(door, "loans"), limit(door, "bank")) == (FEW, 100)
    for _ in range(10 * FEW):
        with door.place("loans"):
            pass
    assert FEW + 5 <= limit(door, "loans") <= FEW + 10
