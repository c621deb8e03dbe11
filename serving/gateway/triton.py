"""Inference in Triton over gRPC (mutual TLS): explicit versions, one deadline, one retry, a breaker per version.

The raw stub, not tritonclient's own client: a request is two tensors that were checked already.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import grpc
import numpy as np
import stamina
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from pydantic import SecretStr
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pipelines.channel import OPTIONS, credentials, of_queue
from pipelines.encoding import Columns, Encode
from pipelines.errors import Crowded, Unavailable
from pipelines.fields import EVENT_TIME, Fields
from pipelines.parts import MAX_BATCH, Part, together
from serving.gateway.joining import Call, Lane, Late, Refusal, TimedOut
from serving.gateway.tracing import Turn, carried, phase
from serving.gateway.versions import Version, probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

IN_FLIGHT = 4
"""Inferences of one request that Triton holds at a time.

Enough to keep it busy, few enough to let other requests through.
"""
MOST_LANES = 64
"""Versions and lengths of texts whose calls are kept apart; beyond, those that are idle are forgotten."""
FAILURES, PAUSE_SECONDS = 5, 1.0
"""So many failures in a row open a version's breaker; after the pause the next request tries again."""
RETRY_WAIT_SECONDS = 0.05
MOST_SECONDS = 60.0
LEFT_SECONDS = 60.0
"""How long a call may go on that nobody waits for any more."""
LEAVE_SECONDS = 1.0
"""How long calls may go on when the channel is closed."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a row may sum from 1: far above what float32 loses, far below a softmax left out."""
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a Triton that came back answers within a second or so
    ("grpc.keepalive_time_ms", 20_000),
    *OPTIONS,
]
_OF_ROWS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""What Triton says where the values of single rows may be the reason."""
_SICK = "not healthy"
"""What Triton says of a version whose process has died, whatever its rows are."""
PACE = 0.1
"""How much the newest call counts in what calls of its version usually take."""
FAIR = 4.0
"""So many times its version's usual seconds a call must have had, if its failure shall say something of Triton."""
_TYPES = {"i": "INT64", "f": "FP32"}
"""Triton's name of a tensor's type, by numpy's letter for its kind: to spell a type out takes numpy 10 us."""


class Hurried(TimedOut):
    """A call that was not answered in time, and had less of it than such calls usually take."""


class Triton:
    """One channel to one Triton; make it inside the running event loop, close it there."""

    def __init__(
        self,
        address: str,
        deadline_seconds: float,
        per_text: float = 0.0,
        client: SecretStr | None = None,
        told: Callable[[str], Callable[[int], None]] = lambda _case: lambda _rows: None,
    ) -> None:
        """``deadline_seconds`` is what :meth:`deadline` grants, with ``per_text`` more for each text.

        ``client``: ``Settings.triton_client``; ``told`` gives of a case what hears how many rows each of its calls has.
        """
        self.address = address
        self.deadline_seconds = deadline_seconds
        self.per_text = per_text
        self._told = told
        if client is None:
            self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials(client), options=_CHANNEL)
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        self._left: set[Any] = set()
        self._begin()

    def _begin(self) -> None:
        self._lanes: dict[tuple[str, int, Any], Lane] = {}
        self._versions: WeakValueDictionary[tuple[str, int], Version] = WeakValueDictionary()
        self._sound: dict[str, Mapping[str, NDArray[Any]]] = {}  # a row that a version has had an answer for
        self._refused: Counter[str] = Counter()  # calls of a version in a row that were answered for with a Refusal
        self._usual: dict[str, float] = {}
        # Of Triton nothing is said by a client that goes away, by values that it answers for with an error (unless it
        # does so for all, see _doubt), and by a call that had no time; and a full queue says that it works.
        spared = [asyncio.CancelledError, Refusal, Hurried, Crowded]
        self._breakers = AsyncCircuitBreakerFactory(FAILURES, PAUSE_SECONDS, exclude=spared)

    def aside(self) -> Triton:
        """The same channel for calls that no request waits for: with lanes and breakers of their own.

        They keep no request waiting in a lane, and their failures keep none from Triton. They are not told of.
        """
        found = copy.copy(self)
        found._told = lambda _case: lambda _rows: None  # noqa: SLF001 - of our own kind
        found._begin()  # noqa: SLF001
        return found

    async def close(self) -> None:
        """Close the channel, once what was sent has had a moment to end."""
        await self._channel.close(LEAVE_SECONDS)

    def deadline(self, texts: int = 0, seconds: float | None = None) -> float:
        """The monotonic time by which a request (of so many texts) that starts now must be answered.

        ``seconds`` are the case's own, if it has any. A minute is the most that texts add.
        """
        granted = self.deadline_seconds if seconds is None else seconds
        return time.monotonic() + granted + min(texts * self.per_text, MOST_SECONDS)

    async def score_rows(
        self, fields: Fields, version: Version, columns: Columns, deadline: float, promised: float | None = None
    ) -> list[float]:
        """:meth:`score` of columns of raw values, which are encoded by their version.

        Rows of a table are encoded with those that share their call, at a fraction of what each takes alone; texts are
        before, as their lengths say which call they share. Raises DataError for a value that the encoding refuses.
        """
        count = len(columns[EVENT_TIME])
        self._knows(fields, version)
        if version.text or count > MAX_BATCH:
            with phase("encode"):
                parts = await version.parts(columns)
            return await self.score(fields, version.number, parts, deadline, promised)
        lane = self._lane(fields, version.number, None, MAX_BATCH, version.encode)
        if promised is not None:
            promised = lane.admit(count, promised, deadline)
        with Turn() as turn:
            return await lane.ask(Call(columns, deadline, (turn,), math.inf if promised is None else promised))

    def _knows(self, fields: Fields, version: Version) -> None:
        key = fields.case, version.number
        if self._versions.get(key) is not version:
            self._versions[key] = version

    async def score(
        self, fields: Fields, version: int, parts: Sequence[Part], deadline: float, promised: float | None = None
    ) -> list[float]:
        """Scores of one version in the order of the rows, ``fields.outputs`` for each, by ``deadline`` (monotonic).

        They are probabilities or, within its bounds, the predicted number. Raises Unavailable with the reason, Crowded
        if the version's queue in Triton has no room, and Late before anything is sent if they would not be there when
        they are ``promised`` (monotonic; None: whoever asks waits until the deadline).
        """
        if promised is not None:
            promised = self._admitted(fields, version, parts, deadline, promised)
        with Turn() as turn:
            whole = Call({}, deadline, (turn,), math.inf if promised is None else promised)
            if len(parts) == 1:  # its rows are in their order: one length has no other
                return await self._lane_of(fields, version, parts[0]).ask(whole._replace(inputs=parts[0].tensors))
            return await self._gather(fields, version, parts, whole)

    def _admitted(self, fields: Fields, version: int, parts: Sequence[Part], deadline: float, promised: float) -> float:
        """When rows are promised that may be asked for now. Raises Late (Lane.admit)."""
        asked: Counter[Lane] = Counter()
        for part in parts:
            asked[self._lane_of(fields, version, part)] += len(part.rows)
        try:
            return max(lane.admit(rows, promised, deadline) for lane, rows in asked.items())
        except Late as error:
            error.rows = sum(asked.values())  # all of them are refused
            raise

    def _lane_of(self, fields: Fields, version: int, part: Part) -> Lane:
        """The lane of calls that this part may share one with."""
        form = tuple((name, tensor.shape[1:]) for name, tensor in part.tensors.items())
        return self._lane(fields, version, form, together(part))

    def _lane(self, fields: Fields, version: int, form: Any, most: int, encode: Encode | None = None) -> Lane:
        """The lane of calls with inputs of this ``form``, of ``most`` rows each; ``encode`` makes tensors of them."""
        lane = self._lanes.get((fields.case, version, form))
        if lane is None:
            if len(self._lanes) >= MOST_LANES:  # versions of before, lengths of texts that are rare
                self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.idle}
            send = partial(self._send, fields, version, self._told(fields.case), encode)
            lane = self._lanes[fields.case, version, form] = Lane(send, most)
        return lane

    def waiting(self) -> Counter[str]:
        """How many calls of each case wait for those that are under way."""
        found: Counter[str] = Counter()
        for (case, _, _), lane in self._lanes.items():
            found[case] += lane.waiting
        return found

    async def _send(
        self, fields: Fields, version: int, told: Callable[[int], None], encode: Encode | None, call: Call
    ) -> list[float]:
        name = _name(fields, version)
        after, tensors = "queue", call.inputs
        if encode is not None:
            for turn in call.turns:
                turn.begins()
            after, tensors = "encode", encode(call.inputs)
        for turn in call.turns:
            turn.went(after)
        told(call.rows)
        try:
            async with await self._breakers.get_breaker(f"{fields.case}/{version}"):
                try:
                    return await self._score(name, fields, version, call._replace(inputs=tensors))
                except Refusal as error:
                    await self._doubt(name, fields, version, call, error)
                    raise
        except OpenedState as error:
            # A breaker goes by the wall clock: set back, that would keep it open for as long.
            error.opened_at = min(error.opened_at, time.time())
            why = f"Triton has not answered for {name} {FAILURES} times"
            if self._refused[name] >= FAILURES:
                why = f"{name} answers nothing that can be used, roll it back"
            raise Unavailable(f"{why}: it is left alone for {PAUSE_SECONDS:g} s") from error.with_traceback(None)
        finally:
            for turn in call.turns:
                turn.came()

    async def _doubt(self, name: str, fields: Fields, version: int, call: Call, error: Refusal) -> None:
        """Raise Unavailable where it is not the rows that a version has answered for with an ``error``.

        One that answers nothing else is asked for a row that it has answered before, or if there is none for one that
        is as declared, whatever clients send. Where nobody answers that question, the ``error`` stands.
        """
        self._refused[name] += 1
        if self._refused[name] < FAILURES:
            return
        tensors = self._sound.get(name)
        if tensors is None:
            own = self._versions.get((fields.case, version))
            if own is None:
                return
            tensors = (await own.parts(probe(fields)))[0].tensors
        try:
            await self._score(name, fields, version, call._replace(inputs=tensors))
        except Refusal:
            raise Unavailable(f"{error} (it has no answer for any row)") from error
        except Unavailable:
            return

    async def _gather(self, fields: Fields, version: int, parts: Sequence[Part], whole: Call) -> list[float]:
        """All parts, some at a time; the first failure gives up the others."""
        outputs = fields.outputs
        free = asyncio.Semaphore(IN_FLIGHT)
        scores = [0.0] * (sum(len(part.rows) for part in parts) * outputs)

        async def one(part: Part) -> None:
            async with free:
                call = whole._replace(inputs=part.tensors)
                values = await self._lane_of(fields, version, part).ask(call)
            for place, start in zip(part.rows, range(0, len(values), outputs), strict=True):
                scores[place * outputs : (place + 1) * outputs] = values[start : start + outputs]

        tasks = [asyncio.create_task(one(part)) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return scores

    async def _score(self, name: str, fields: Fields, version: int, call: Call) -> list[float]:
        outputs, (low, high) = fields.outputs, fields.answers
        request = _request(fields.case, version, call.inputs)
        began = time.monotonic()
        try:
            answer = await self._retried(request, call)
        except TimeoutError:
            kind = Hurried if call.deadline - began < FAIR * self._usual.get(name, 0.0) else TimedOut
            raise kind(
                f"Triton at {self.address} did not answer for {name} in time (the case's serving.deadline_seconds, "
                f"else PERENNIAL_GATEWAY_DEADLINE_SECONDS, {self.deadline_seconds:g} s; more for texts)"
            ) from None
        except grpc.aio.AioRpcError as error:
            if queue := of_queue(error.details()):
                raise Crowded(f"the queue of {name} in Triton {queue}: try again in a moment") from error
            told = self._explain(name, error)
            if error.code() in _OF_ROWS and _SICK not in told:
                raise Refusal(told) from error
            raise Unavailable(told) from error
        spent = time.monotonic() - began
        self._usual[name] = usual = self._usual.get(name, spent)
        self._usual[name] += PACE * (spent - usual)
        values: list[float] = np.frombuffer(answer.raw_output_contents[0], np.float32).astype(np.float64).tolist()
        # Written so that a NaN fails every comparison.
        if len(values) != request.inputs[0].shape[0] * outputs or not all(low <= value <= high for value in values):
            wanted = "one probability"
            if fields.number is not None:
                wanted = f"one number from {low:g} to {high:g}"
            if outputs > 1:
                wanted = f"{outputs} probabilities"
            raise Refusal(f"{name} answered something that is not {wanted} per row: roll it back")
        if outputs > 1 and not all(
            abs(sum(values[start : start + outputs]) - 1.0) <= SUM_TOLERANCE for start in range(0, len(values), outputs)
        ):
            raise Refusal(f"{name} answered probabilities that do not sum to 1: roll it back")
        self._refused.pop(name, None)
        if name not in self._sound:
            self._sound[name] = {tensor: rows[:1].copy() for tensor, rows in call.inputs.items()}
        return values

    async def _ask(self, request: Any, call: Call) -> Any:
        """One call, which nobody cancels: Triton 2.51 may die of that (issues 7368 and 8034 of its server).

        Who does not wait any longer leaves it to end by itself. Raises TimeoutError after its deadline.
        """
        loop = asyncio.get_running_loop()
        left = max(0.0, call.deadline - time.monotonic())
        # For a queue in Triton that a case declares a policy for.
        request.parameters["timeout"].int64_param = max(1, int(left * 1e6))
        sent = self._infer(request, timeout=left + LEFT_SECONDS, metadata=carried(call.turns))
        ended = loop.create_future()
        self._left.add(sent)  # grpc cancels a call that is forgotten

        def over(_sent: Any) -> None:
            self._left.discard(sent)
            if not ended.done():
                ended.set_result(None)

        sent.add_done_callback(over)
        late = loop.call_later(left, _late, ended)
        try:
            await ended
        finally:
            late.cancel()
        return await sent

    async def _retried(self, request: Any, call: Call) -> Any:
        try:
            return await self._ask(request, call)
        except grpc.aio.AioRpcError as error:
            if not _connection_lost(error):
                raise
            lost = error
        # stamina is asked only now: its bookkeeping costs more than an inference.
        async for attempt in stamina.retry_context(
            on=_connection_lost,
            attempts=2,
            timeout=max(0.0, call.deadline - time.monotonic()),
            wait_initial=RETRY_WAIT_SECONDS,
            wait_jitter=RETRY_WAIT_SECONDS,
        ):
            with attempt:
                if attempt.num == 1:
                    raise lost  # the call above
                return await self._ask(request, call)
        raise lost

    def _explain(self, name: str, error: grpc.aio.AioRpcError) -> str:
        code = error.code()
        details = (error.details() or "").partition("\n")[0]
        if _connection_lost(error):
            return (
                f"Triton at {self.address} does not answer ({details}): start it, or set PERENNIAL_TRITON_GRPC to "
                "where it is"
            )
        if _SICK in details:
            return f"Triton at {self.address} has lost {name} ({details}): unload and load the model"
        return (
            f"Triton at {self.address} has no answer from {name} ({code.name}: {details}): "
            "load the model, or see Triton's log"
        )


def _name(fields: Fields, version: int) -> str:
    return f"{fields.case} version {version}"


def _late(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_exception(TimeoutError())


def _request(case: str, version: int, tensors: Mapping[str, NDArray[Any]]) -> Any:
    return pb.ModelInferRequest(
        model_name=case,
        model_version=str(version),
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=_TYPES[value.dtype.kind], shape=value.shape)
            for name, value in tensors.items()
        ],
        raw_input_contents=[value.tobytes() for value in tensors.values()],
    )


def _connection_lost(error: Exception) -> bool:
    """Whether nobody answered at all.

    Triton itself also says UNAVAILABLE, of a version that is not loaded and of a full queue: that is an answer.
    """
    return (
        isinstance(error, grpc.aio.AioRpcError)
        and error.code() == grpc.StatusCode.UNAVAILABLE
        and "not at ready state" not in (error.details() or "")
        and not of_queue(error.details())
    )
