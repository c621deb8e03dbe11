"""Rows that wait while a call to Triton is under way go together in the next one (adaptive micro-batching).

An idle model answers at once, so nothing is delayed; the busier it is, the more rows share a call, whose cost hardly
hangs on their number. Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System", NSDI 2017, section
4.3, with the queue's own pace in place of a tuned batch size.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.errors import DataError, Unavailable
from serving.gateway.pace import Pace, Wait, of_triton
from serving.gateway.refusal import Refused
from serving.gateway.tracing import Turn

Inputs = Mapping[str, Any]
"""Tensors by name, or columns of raw values that are yet to be encoded."""


class Call(NamedTuple):
    """One call: its inputs, the monotonic time by which it must be answered, and the requests that it is for.

    ``promised`` is the time by which it is to be answered if all goes well.
    """

    inputs: Inputs
    deadline: float
    turns: tuple[Turn, ...] = ()
    promised: float = math.inf

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(next(iter(self.inputs.values())))


class TimedOut(Unavailable):
    """No answer came before the deadline. Said by its kind: a timer may be early by a turn of the event loop."""


class Refusal(Unavailable):
    """Triton's word on what a call holds: of several rows one may be the reason, and the others have their answers."""


class Late(Refused):
    """More rows wait in ``lane`` than can be answered in time: who comes now would wait to fail."""

    def __init__(self, lane: Lane, seconds: float, rows: int) -> None:
        text = "the rows that wait already take as long as is promised: try again in a moment"
        super().__init__(503, "overload", text, rows=rows, headers={"Retry-After": str(max(1, math.ceil(seconds)))})
        self.lane = lane


Send = Callable[[Call], Awaitable[list[float]]]
"""Scores of a call's rows, in their order. Raises Unavailable; Refusal or DataError where single rows may be why."""


class _Waiting(NamedTuple):
    call: Call
    answer: asyncio.Future[list[float]]


class Lane:
    """The calls of one version whose inputs have the same form: one is under way, what comes meanwhile is the next.

    A joined call has the deadline of the row that can wait longest, and each row its own. If the rows' values are what
    a joined call fails of, its halves are asked for again, and theirs, until the wrong requests are alone: each gets
    the answer that it gets alone, and a wrong one among many costs few calls.
    """

    def __init__(self, send: Send, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``most`` rows go together at most; ``clock`` is the one of deadlines."""
        self._send = send
        self._most = most
        self._clock = clock
        self._pace = Pace()
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0  # of those that wait
        self._turned = 0.0  # when the event loop came round after the newest call was sent
        self._due = 0.0  # when the call that is under way should be answered
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._busy

    @property
    def waiting(self) -> int:
        """How many calls wait for the one that is under way."""
        return sum(not one.answer.done() for one in self._waiting)

    def wait(self, rows: int) -> Wait:
        """What so many rows would have to wait for that came now, at the pace of the newest calls.

        A call that takes longer than it should is thought to take as much longer again.
        """
        if not self._busy:
            return Wait(0.0, 0.0)
        now = self._clock()
        answered, others = self._answered(rows, now)
        own = self._pace.seconds(rows)
        return Wait(max(0.0, answered - now - own), own, others - now)

    def admit(self, rows: int, promised: float, deadline: float) -> float:
        """When rows are promised that would be asked for now: never, where they alone take longer.

        Raises Late if they would be answered later, or after the deadline, or make others late.
        """
        if not self._busy:
            return promised
        now = self._clock()
        answered, others = self._answered(rows, now)
        if answered <= promised and answered <= deadline and answered <= others:
            return promised
        wait = self.wait(rows)
        if late := wait.late(promised - now, deadline - now):
            raise Late(self, late, rows)
        return promised if wait.own <= promised - now else math.inf

    def _answered(self, rows: int, now: float) -> tuple[float, float]:
        """When rows that came now would be answered, and when those have to be whose call they would share."""
        ready = now + abs(self._due - now)
        every = self._rows + rows
        if every > self._most:  # what comes later fills the last call, too
            return ready + -(-every // self._most) * self._pace.seconds(self._most), math.inf
        # One call for all who wait: whoever waits longest has to be answered first.
        answered = ready + self._pace.seconds(every)
        longest = next((one.call.promised for one in self._waiting if not one.answer.done()), math.inf)
        if answered > longest and ready + self._pace.seconds(self._rows) > longest:
            return answered, math.inf  # too late for that one anyway: nobody has to stand back for it
        return answered, longest

    async def ask(self, call: Call) -> list[float]:
        """The scores of a call's rows. Raises what ``send`` raises, Unavailable after the deadline."""
        if self._busy:
            return await self._wait(call)
        self._busy = True
        try:
            return await self._timed(call)
        finally:
            self._go_on()

    async def _timed(self, call: Call) -> list[float]:
        rows, began = call.rows, self._clock()
        self._due = began + self._pace.seconds(rows)
        asyncio.get_running_loop().call_soon(self._turn)
        scores = await self._send(call)
        self._pace.note(rows, of_triton(self._clock() - began, self._turned - began))
        return scores

    def _turn(self) -> None:
        self._turned = self._clock()

    async def _wait(self, call: Call) -> list[float]:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(call, loop.create_future())
        self._waiting.append(waiting)
        self._rows += call.rows
        late = loop.call_later(max(0.0, call.deadline - self._clock()), _too_late, waiting.answer)
        try:
            return await waiting.answer
        finally:
            late.cancel()

    def _go_on(self) -> None:
        """Send what waits, in a task of its own: whoever asked first has an answer."""
        if not self._waiting:
            self._busy = False
            return
        self._task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while together := self._next():
                await self._answer(together)
        finally:
            self._busy = False
            self._rows = 0
            while self._waiting:  # the loop was ended: nobody may wait for ever
                self._waiting.popleft().answer.cancel()

    def _next(self) -> list[_Waiting]:
        """Those that go together; whoever has gone away is left out."""
        found: list[_Waiting] = []
        rows = 0
        while self._waiting and (not found or rows + self._waiting[0].call.rows <= self._most):
            one = self._waiting.popleft()
            self._rows -= one.call.rows
            if not one.answer.done():
                found.append(one)
                rows += one.call.rows
        return found

    async def _answer(self, together: Sequence[_Waiting]) -> None:
        try:
            scores = await self._timed(_joined([one.call for one in together]))
        except (Refusal, DataError) as error:
            if len(together) == 1:
                _fail(together, error)
                return
            middle = len(together) // 2
            for half in (together[:middle], together[middle:]):
                if left := [one for one in half if not one.answer.done()]:  # it may have gone away meanwhile
                    await self._answer(left)
        except Exception as error:  # noqa: BLE001 - raised where the answer is waited for
            _fail(together, error)
        else:
            start = 0
            each = len(scores) // sum(one.call.rows for one in together)
            for one in together:
                end = start + one.call.rows * each
                if not one.answer.done():
                    one.answer.set_result(scores[start:end])
                start = end


def _too_late(answer: asyncio.Future[list[float]]) -> None:
    if not answer.done():
        text = "Triton did not answer in time: as many rows as it can score were before these"
        answer.set_exception(TimedOut(text))


def _joined(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]
    inputs = {name: _end_to_end([call.inputs[name] for call in calls]) for name in calls[0].inputs}
    turns = tuple(turn for call in calls for turn in call.turns)
    return Call(inputs, max(call.deadline for call in calls), turns)


def _end_to_end(values: Sequence[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [*itertools.chain.from_iterable(values)]


def _fail(waiting: Sequence[_Waiting], error: Exception) -> None:
    for one in waiting:
        if not one.answer.done():
            one.answer.set_exception(error)
