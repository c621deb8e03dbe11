"""Rows that wait while a call to Triton is under way go together in the next one, and are answered as if alone."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError, Unavailable
from serving.gateway.joining import Call, Lane, Late, Refusal
from serving.gateway.tracing import Turn


def call(*values, seconds=5.0, turns=()):
    """A call of rows with these values."""
    return Call({"x": np.array(values, np.float64).reshape(-1, 1)}, time.monotonic() + seconds, turns)


class Triton:
    """Answers twice each value, a while later, and keeps what it was asked; a row of -1 is one it cannot score."""

    def __init__(self, seconds=0.01, outputs=1):
        self.seconds = seconds
        self.outputs = outputs
        self.calls = []
        self.away = False

    async def __call__(self, one):
        """One call."""
        self.calls.append(one)
        await asyncio.sleep(self.seconds)
        values = one.inputs["x"][:, 0]
        if self.away:
            raise Unavailable("nobody answers")
        if (values == -1).any():
            raise Refusal("a row is wrong")
        return np.repeat(values * 2, self.outputs).tolist()


def test_an_idle_lane_sends_at_once_and_what_comes_meanwhile_goes_together():
    """The first request goes alone; all that come while it is under way share the second call, in their order."""
    triton = Triton()

    async def run():
        lane = Lane(triton, 100)
        return await asyncio.gather(*(lane.ask(call(number, number + 0.5)) for number in range(10)))

    found = asyncio.run(run())

    assert found == [[2.0 * number, 2.0 * number + 1] for number in range(10)]
    assert [one.rows for one in triton.calls] == [2, 18]


def test_no_call_has_more_rows_than_it_may():
    """More waiting rows than go together make several calls, and a request with too many for any goes as it is."""
    triton = Triton()

    async def run():
        lane = Lane(triton, 4)
        sizes = [1, 3, 1, 2, 5, 1]
        return await asyncio.gather(*(lane.ask(call(*[7.0] * size)) for size in sizes))

    assert [len(one) for one in asyncio.run(run())] == [1, 3, 1, 2, 5, 1]
    assert [one.rows for one in triton.calls] == [1, 4, 2, 5, 1]


def test_a_wrong_row_fails_its_own_request_only():
    """Where a joined call fails of what rows hold, the others get their answers, and the wrong one its error."""
    triton = Triton()

    async def run():
        lane = Lane(triton, 100)
        return await asyncio.gather(*(lane.ask(call(value)) for value in (1, 2, -1, 3)), return_exceptions=True)

    one, two, wrong, three = asyncio.run(run())

    assert (one, two, three) == ([2.0], [4.0], [6.0])
    assert isinstance(wrong, Refusal)
    assert [one.rows for one in triton.calls] == [1, 3, 1, 2, 1, 1]


def test_columns_go_together_and_a_value_that_cannot_be_encoded_is_refused_alone():
    """Rows that are yet to be encoded are joined column by column; what the encoding refuses harms no neighbour."""
    sent = []

    async def send(call):
        sent.append(call.inputs)
        await asyncio.sleep(0.01)
        if None in call.inputs["age"]:
            raise DataError("age: must be finite")
        return [2.0 * age for age in call.inputs["age"]]

    async def run():
        lane = Lane(send, 100)
        asked = ((1,), (2, 3), (None,), (4,))
        calls = [Call({"age": ages, "city": ("Bonn",) * len(ages)}, time.monotonic() + 5) for ages in asked]
        return await asyncio.gather(*(lane.ask(one) for one in calls), return_exceptions=True)

    one, two, wrong, four = asyncio.run(run())

    assert (one, two, four) == ([2.0], [4.0, 6.0], [8.0])
    assert isinstance(wrong, DataError)
    assert sent[1] == {"age": [2, 3, None, 4], "city": ["Bonn"] * 4}


def test_a_wrong_row_among_many_costs_few_calls():
    """Of 128 requests that wait together a wrong one is found by halves: nobody waits for a call for each of them."""
    triton = Triton(seconds=0.001)

    async def run():
        lane = Lane(triton, 1000)
        values = [1.0, *(-1.0 if number == 77 else 1.0 * number for number in range(128))]
        return await asyncio.gather(*(lane.ask(call(value)) for value in values), return_exceptions=True)

    found = asyncio.run(run())[1:]

    assert [number for number, one in enumerate(found) if isinstance(one, Refusal)] == [77]
    assert all(found[number] == [2.0 * number] for number in range(128) if number != 77)
    assert len(triton.calls) == 2 + 2 * 7


def test_a_triton_that_is_away_is_asked_once_for_all_that_wait():
    """An outage fails a joined call for everybody at once: nobody is asked for alone again, and the lane goes on."""
    triton = Triton()
    triton.away = True

    async def run():
        lane = Lane(triton, 100)
        found = await asyncio.gather(*(lane.ask(call(value)) for value in range(5)), return_exceptions=True)
        triton.away = False
        return found, await lane.ask(call(1)), lane.idle

    found, after, idle = asyncio.run(run())

    assert all(type(one) is Unavailable for one in found)
    assert len(triton.calls) == 3
    assert (after, idle) == ([2.0], True)


def test_each_has_its_own_deadline():
    """Who cannot wait as long as the call before takes is told so in time; the others are answered."""
    triton = Triton(seconds=0.2)

    async def run():
        lane = Lane(triton, 100)
        asked = [lane.ask(call(1)), lane.ask(call(2, seconds=0.05)), lane.ask(call(3))]
        return await asyncio.gather(*asked, return_exceptions=True)

    one, late, three = asyncio.run(run())

    assert (one, three) == ([2.0], [6.0])
    assert isinstance(late, Unavailable)
    assert "in time" in str(late)
    assert [one.rows for one in triton.calls] == [1, 1]
    assert triton.calls[1].deadline > time.monotonic() + 1


@pytest.mark.parametrize(
    ("promised", "leaves", "refused"),
    [(0.5, False, True), (0.001, False, False), (0.5, True, False)],
    ids=["in time", "too late anyway", "gone"],
)
def test_nobody_stands_back_for_who_cannot_be_answered_in_time(promised, leaves, refused):
    """Rows that would make the longest waiting late are refused, but not if it is late without them, or has gone."""
    triton = Triton(seconds=0.05)

    async def run():
        lane = Lane(triton, 1000)
        await lane.ask(call(1))  # so that its pace is known
        under_way = asyncio.create_task(lane.ask(call(2)))
        await asyncio.sleep(0)
        now = time.monotonic()
        waits = asyncio.create_task(lane.ask(call(3)._replace(promised=now + promised)))
        await asyncio.sleep(0)
        if leaves:
            waits.cancel()
            await asyncio.sleep(0)
        try:
            lane.admit(900, now + 60, now + 60)  # some 30 times the seconds of one row
        except Late:
            return True
        finally:
            await asyncio.gather(under_way, waits, return_exceptions=True)
        return False

    assert asyncio.run(run()) == refused


def test_a_client_that_goes_away_takes_nobody_along():
    """Requests that are cancelled while they wait are not sent; one that is under way leaves the lane to the others."""
    triton = Triton(seconds=0.05)

    async def run():
        lane = Lane(triton, 100)
        tasks = [asyncio.create_task(lane.ask(call(value))) for value in (1, 2, 3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return found, lane.idle

    found, idle = asyncio.run(run())

    assert isinstance(found[0], asyncio.CancelledError)
    assert isinstance(found[1], asyncio.CancelledError)
    assert (found[2], idle) == ([6.0], True)
    assert [one.inputs["x"][:, 0].tolist() for one in triton.calls] == [[1], [3]]


def test_a_joined_call_is_for_all_of_its_requests():
    """A joined call has the turns of its requests, in their order: each is told when it goes out, and its trace."""
    triton = Triton()
    turns = [Turn() for _ in range(4)]

    async def run():
        lane = Lane(triton, 100)
        await asyncio.gather(*(lane.ask(call(n, turns=(turn,))) for n, turn in enumerate(turns)))

    asyncio.run(run())

    assert [one.turns for one in triton.calls] == [(turns[0],), tuple(turns[1:])]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from(["whole", "wrong", "leaves"])),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_whatever_comes_together_each_has_the_answer_that_it_has_alone(requests, most, outputs):
    """Requests of any size, come at any time, wrong ones and cancelled ones among them: each has its own answer."""
    triton = Triton(seconds=0.001, outputs=outputs)

    async def one(lane, number, rows, moment, kind):
        await asyncio.sleep(moment / 1000)
        values = [float(100 * number + row) for row in range(rows)]
        if kind == "wrong":
            values[-1] = -1.0
        asked = asyncio.create_task(lane.ask(call(*values)))
        if kind == "leaves":
            await asyncio.sleep(0)
            asked.cancel()
        return values, kind, (await asyncio.gather(asked, return_exceptions=True))[0]

    async def run():
        lane = Lane(triton, most)
        every = [one(lane, number, *request) for number, request in enumerate(requests)]
        return await asyncio.gather(*every), lane

    found, lane = asyncio.run(run())

    assert lane.idle
    for values, kind, answer in found:
        if kind == "whole":
            assert answer == np.repeat(np.array(values) * 2, outputs).tolist()
        elif kind == "wrong":
            assert isinstance(answer, Refusal)
        else:
            assert isinstance(answer, asyncio.CancelledError)
    assert not lane._waiting
