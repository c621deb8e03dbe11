"""Who would be answered too late is told so at once: the pace of calls, and what is kept under a storm.

Time is a clock of the tests: whatever sleeps takes none.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import Unavailable
from serving.gateway.joining import Call, Lane, Late
from serving.gateway.pace import Limit, Pace, Wait, of_triton


class Warped(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to whatever is waited for."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        look = self._selector.select

        def jump(timeout=None):
            self.now += timeout or 0.0
            return look(0)

        self._selector.select = jump

    def time(self):
        """The clock."""
        return self.now


def played(make):
    """What a coroutine gives that ``make`` makes of the loop."""
    loop = Warped()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        loop.close()


def call(rows, deadline=math.inf, promised=math.inf):
    """A call of so many rows."""
    return Call({"x": np.zeros((rows, 1), np.float32)}, deadline, (), promised)


@given(st.floats(1e-4, 1), st.floats(0, 0.1), st.lists(st.integers(1, 1024), min_size=1, max_size=60))
def test_a_pace_is_what_a_call_and_a_row_cost(fixed, each, sizes):
    """Calls that cost so much each and so much a row are foretold, also of sizes that lie between those that were seen.

    Beyond, the line through the two longest goes on.
    """
    pace = Pace()
    assert pace.seconds(100) == 0
    for rows in sizes:
        pace.note(rows, fixed + each * rows)
    if len({rows.bit_length() for rows in sizes}) > 1:
        for rows in (max(sizes), 1024, sorted(sizes)[len(sizes) // 2]):
            assert rows < min(sizes) or pace.seconds(rows) == pytest.approx(
                max(fixed + each * rows, pace.seconds(1)), rel=1e-3
            )
    assert 0 < pace.seconds(1) <= fixed + each * max(sizes)


def test_calls_of_one_size_say_little_of_longer_ones():
    """A hundred rows are thought to take ten times as long as one, until a longer call has shown what they take."""
    pace = Pace()
    for _ in range(50):
        pace.note(1, 0.002)
    assert pace.seconds(100) == pytest.approx(0.02)
    pace.note(100, 0.2)
    assert pace.seconds(100) == pytest.approx(0.2)
    pace.note(100, 0.1)
    assert pace.seconds(100) == pytest.approx(0.18)


def test_a_pace_forgets():
    """What calls took long ago hardly counts: after forty faster ones the pace is theirs."""
    pace = Pace()
    for _ in range(100):
        pace.note(8, 5.0)
    for _ in range(40):
        pace.note(8, 0.01)
    assert pace.seconds(8) < 0.1


@pytest.mark.parametrize(
    ("wait", "promise", "deadline", "late"),
    [
        (Wait(0, 9), 1, 5, 0),  # nobody is waited for: it is tried, however long it takes
        (Wait(0.5, 0.4), 1, 5, 0),
        (Wait(0.5, 0.75), 1, 5, 0.25),
        (Wait(0.5, 3), 1, 5, 0),  # longer than any promise by itself: only its waiting has to keep it
        (Wait(1.5, 3), 1, 5, 0.5),
        (Wait(1.5, 4), 2, 5, 0.5),  # the deadline holds for all
        (Wait(1, 1, others=1.25), 3, 5, 0.75),  # and nobody who waits is made late
        (Wait(2, 2), math.inf, 5, 0),
        (Wait(4, 2), math.inf, 5, 1),
    ],
)
def test_who_is_late(wait, promise, deadline, late):
    """Waiting and own rows are held against the promise, and against the deadline."""
    assert wait.late(promise, deadline) == pytest.approx(late)


def test_a_lane_says_what_there_is_to_wait_for():
    """Nothing while it is idle, also at its start; else the rest of the call under way, and the calls of who waits."""

    async def run(loop):
        async def send(one):
            await asyncio.sleep(0.1 + 0.01 * one.rows)
            return [0.5] * one.rows

        lane = Lane(send, 10, loop.time)
        found = [lane.wait(5)]
        for rows in (1, 9) * 20:
            await lane.ask(call(rows))
        found.append(lane.wait(1000))
        tasks = [asyncio.create_task(lane.ask(call(10)))]
        await asyncio.sleep(0.05)
        found.append(lane.wait(1))
        tasks += [asyncio.create_task(lane.ask(call(5))) for _ in range(3)]
        await asyncio.sleep(0)
        found.append(lane.wait(4))
        await asyncio.gather(*tasks)
        return found

    start, idle, one, several = played(run)

    assert (start, idle) == (Wait(0, 0), Wait(0, 0))
    assert one.before == pytest.approx(0.2 - 0.05, abs=0.02)
    assert one.own == pytest.approx(0.11, abs=0.02)
    # Fifteen rows wait: with the four they make two calls, and the second one may be full before it goes.
    assert several.before + several.own == pytest.approx(0.15 + 2 * 0.2, abs=0.03)


def test_a_call_that_hangs_is_waited_for_longer_and_longer():
    """The longer a call takes beyond its time, the longer is who comes then thought to wait."""

    async def run(loop):
        async def send(one):
            await asyncio.sleep(60 if one.rows == 7 else 0.1)
            return [0.5] * one.rows

        lane = Lane(send, 10, loop.time)
        for _ in range(20):
            await lane.ask(call(1))
        stuck = asyncio.create_task(lane.ask(call(7)))
        await asyncio.sleep(5)
        found = lane.wait(1)
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        return found, lane.wait(1)

    hanging, after = played(run)

    assert hanging.before == pytest.approx(4.9, abs=0.2)
    assert after == Wait(0, 0)


def test_a_slow_event_loop_is_no_slow_triton():
    """Of a call's time only so much counts as the loop did not take to come round; of every call a quarter does."""
    assert of_triton(0.1, 0.0001) == pytest.approx(0.0996)
    assert of_triton(0.1, 0.02) == pytest.approx(0.025)
    assert of_triton(0.1, 5.0) == pytest.approx(0.025)

    async def run(slow):
        """What calls of 10 ms are thought to take, while each turn of a real loop takes so long."""
        loop = asyncio.get_running_loop()
        lane = Lane(send, 10)
        going = True

        def burn():
            time.sleep(slow)
            if going:
                loop.call_soon(burn)

        if slow:
            burn()
        for _ in range(12):
            await lane.ask(call(1))
        going = False
        return lane._pace.seconds(1)

    async def send(one):
        await asyncio.sleep(0.01)
        for _ in range(3):  # an answer of gRPC comes by as many turns
            await asyncio.sleep(0)
        return [0.5] * one.rows

    assert asyncio.run(run(0)) == pytest.approx(0.01, rel=0.8)
    assert asyncio.run(run(0.02)) < 0.06  # it takes more than eighty


SPEEDS = {"a fast table": (0.001, 0.00003, 1024, 0.06), "a slow transformer": (0.02, 0.02, 8, 1.0)}


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("times", [0.6, 3.0])
def test_a_storm_keeps_the_promise_to_who_is_let_in(speed, times):
    """At three times what can be answered the 99th percentile of who is let in keeps the SLO.

    Nearly as much is answered as can be, the others are told at once, and what waits stays bounded; at three fifths
    hardly anybody is turned away.
    """
    fixed, each, most, slo = SPEEDS[speed]
    capacity = most / (fixed + each * most)
    # A table's joined call has room for more rows than come within its SLO.
    capacity = min(capacity, 12_000.0)
    chance = random.Random(7)

    async def run(loop):
        took, refused, longest = [], [], 0

        async def send(one):
            slow = chance.lognormvariate(0, 0.3)
            await asyncio.sleep(max((fixed + each * one.rows) * slow, one.rows / capacity))
            return [0.5] * one.rows

        lane = Lane(send, most, loop.time)

        async def come():
            nonlocal longest
            began = loop.time()
            late = lane.wait(1).late(0.7 * slo, 5.0)
            if late:
                refused.append(late)
                return
            await lane.ask(call(1, began + 5.0, began + 0.7 * slo))
            took.append(loop.time() - began)

        seconds = max(1.0, 900 / capacity)
        tasks = []
        while loop.time() < seconds:
            await asyncio.sleep(chance.expovariate(times * capacity))
            tasks.append(asyncio.create_task(come()))
            longest = max(longest, lane._rows)
        await asyncio.gather(*tasks)
        return took, refused, longest, seconds

    took, refused, longest, seconds = played(run)

    assert np.quantile(took, 0.99) < slo
    assert len(took) > 0.8 * min(times, 1) * capacity * seconds
    if times < 1:
        assert len(refused) < 0.02 * len(took)
    else:
        assert len(refused) > len(took)
        assert longest < 2 * capacity * slo


def test_who_comes_later_makes_nobody_late():
    """Rows that would share a call are turned away where it would then take longer than who waits in it is promised."""

    async def run(loop):
        async def send(one):
            await asyncio.sleep(0.1 + 0.01 * one.rows)
            return [0.5] * one.rows

        lane = Lane(send, 1000, loop.time)
        for rows in (1, 90) * 10:
            await lane.ask(call(rows))
        tasks = [asyncio.create_task(lane.ask(call(1)))]
        await asyncio.sleep(0)
        alone = lane.wait(80).late(1.5, 5.0)
        tasks.append(asyncio.create_task(lane.ask(call(1, promised=loop.time() + 0.5))))
        await asyncio.sleep(0)
        beside = lane.wait(80).late(1.5, 5.0), lane.wait(1).late(1.5, 5.0)
        await asyncio.gather(*tasks)
        return alone, beside

    alone, beside = played(run)

    assert alone == 0
    assert beside == (pytest.approx(0.11 + 0.1 + 0.81 - 0.5, abs=0.03), 0)


def test_a_lane_that_refuses_leaves_the_others_alone():
    """One lane's full queue is no matter of another's, which is idle."""

    async def run(loop):
        async def send(one):
            await asyncio.sleep(1.0)
            return [0.5] * one.rows

        busy, calm = Lane(send, 1, loop.time), Lane(send, 1, loop.time)
        await busy.ask(call(1))
        tasks = [asyncio.create_task(busy.ask(call(1))) for _ in range(5)]
        await asyncio.sleep(0)
        found = busy.wait(1).late(2.0, 5.0), calm.wait(1).late(2.0, 5.0)
        await asyncio.gather(*tasks)
        return found

    assert played(run) == (pytest.approx(4.0), 0.0)


def test_who_is_late_is_told_when_to_come_again():
    """A refusal is a 503 that counts its rows, with whole seconds in Retry-After, one at least."""
    lane = Lane(None, 1)
    assert [Late(lane, seconds, 3).headers["Retry-After"] for seconds in (0.01, 1.0, 2.4)] == ["1", "1", "3"]
    assert (Late(lane, 1, 3).status, Late(lane, 1, 3).reason, Late(lane, 1, 3).rows) == (503, "overload", 3)
    assert not isinstance(Late(lane, 1, 3), Unavailable)  # the previous release is in the same Triton


def test_a_failed_call_says_nothing_of_the_pace():
    """What fails at once does not make a lane look fast."""

    async def run(loop):
        state = itertools.count()

        async def send(one):
            if next(state) % 2:
                raise Unavailable("away")
            await asyncio.sleep(0.5)
            return [0.5] * one.rows

        lane = Lane(send, 1, loop.time)
        await asyncio.gather(*(lane.ask(call(1)) for _ in range(40)), return_exceptions=True)
        return lane._pace.seconds(1)

    assert played(run) == pytest.approx(0.5)


def test_a_limit_follows_what_answers_take():
    """A late answer takes a fifth of it, once for as long as is promised; a round of answers in time gives one back.

    One place is left whatever happens, and it never has more than it began with.
    """
    limit = Limit(100)
    limit.note(0.1, 0.2, now=0.0)
    assert limit.requests == 100
    for moment in (0.0, 0.1, 0.19):
        limit.note(0.3, 0.2, now=moment)
    assert limit.requests == 80
    limit.note(0.3, 0.2, now=0.2)
    assert limit.requests == 64
    for _ in range(65):
        limit.note(0.1, 0.2, now=1.0)
    assert limit.requests == 65
    for number in range(100):
        limit.note(9.0, 0.2, now=2.0 + number)
    assert limit.requests == 1
    for _ in range(10_000):
        limit.note(0.0, 0.2, now=200.0)
    assert limit.requests == 100
