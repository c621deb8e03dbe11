"""The client of Triton: what it believes, and what it turns away."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from purgatory.domain import model
from tritonclient.grpc import service_pb2 as pb

from pipelines.errors import Unavailable
from pipelines.fields import Fields, Number, Text
from pipelines.parts import cut
from pipelines.text import pad
from serving.gateway.joining import Late
from serving.gateway.triton import FAILURES, PAUSE_SECONDS, Triton
from tests.serving.gateway.world import Scores, fake_triton


class Said(Scores):
    """Answers every request with the rows that belong to the first id of each of its rows.

    ``most`` is how many requests it had at a time.
    """

    def __init__(self, rows):
        super().__init__()
        self.said = np.array(rows, np.float32)

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        ids = np.frombuffer(request.raw_input_contents[0], np.int64).reshape(list(request.inputs[0].shape))
        self.sizes.append(ids.shape)
        return pb.ModelInferResponse(raw_output_contents=[self.said[ids[:, 0]].tobytes()])


TEXTS = Fields("reports", (Text("text"),), "team", classes=("a", "b", "c"))
MINUTES = Fields("reports", (Text("text"),), "minutes", target=Number("min", 0.1, 90))


def score(rows, ids, fields=TEXTS):
    """What the client makes of a Triton that says ``rows[n]`` of a text whose first id is n.

    And the shapes that it sent.
    """

    async def ask(port):
        client = Triton(f"127.0.0.1:{port}", 5.0)
        try:
            return await client.score(fields, 1, cut(pad(ids), 64), client.deadline())
        finally:
            await client.close()

    with fake_triton(servicer=Said(rows)) as (triton, port):
        return asyncio.run(ask(port)), triton.sizes


def test_texts_of_several_lengths_come_back_in_their_order():
    """One inference per bucket of length; the answers stand where their rows stood."""
    rows = [[0.25, 0.25, 0.5], [1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    lengths = [3, 50, 4, 20]
    scores, sizes = score(rows, [[number] * length for number, length in enumerate(lengths)])
    np.testing.assert_array_equal(np.reshape(scores, (-1, 3)), rows)
    assert sorted(sizes) == [(1, 24), (1, 56), (2, 8)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([0.5, 0.5, float("nan")], "not 3 probabilities per row"),
        ([0.5, 0.6, -0.1], "not 3 probabilities per row"),
        ([2.5, -3.0, 1.5], "not 3 probabilities per row"),
        ([0.2, 0.2, 0.2], "do not sum to 1"),
        ([0.5, 0.5], "not 3 probabilities per row"),
    ],
)
def test_what_is_no_distribution_is_turned_away(row, says):
    """Scores that are not finite, outside of [0, 1], too few, or that do not sum to 1 are Unavailable.

    That holds, too, if only one bucket of several has them.
    """
    good = [0.25, 0.25, 0.5][: len(row)]
    for ids in ([[1]], [[0] * 20, [1]]):
        with pytest.raises(Unavailable, match=says):
            score([good, row], ids)


def test_texts_have_more_time():
    """Every text of a request adds to its deadline, up to a minute; dense rows do not."""

    async def granted():
        client = Triton("127.0.0.1:1", 5.0, 0.2)
        try:
            now = client.deadline()
            return [client.deadline(texts) - now for texts in (0, 40, 10_000)]
        finally:
            await client.close()

    assert asyncio.run(granted()) == pytest.approx([0, 8, 60], abs=1)


def test_a_number_is_taken_within_its_bounds():
    """Bounds count as a float32 holds them; what lies beyond, or is not finite, is Unavailable and names them."""
    scores, _ = score([[0.1], [90.0], [12.5]], [[0, 5], [1, 5], [2, 5]], MINUTES)
    assert scores == pytest.approx([0.1, 90.0, 12.5])
    for wrong in (0.0999, 90.001, float("nan"), float("inf")):
        with pytest.raises(Unavailable, match=r"not one number from 0\.1 to 90 per row"):
            score([[12.5], [wrong]], [[0, 5], [1, 5]], MINUTES)


def test_a_request_of_several_lengths_is_refused_whole_if_one_is_late():
    """Where the lane of one length would answer too late, nothing is sent of the others, and all rows are refused."""
    wait = 1.0

    class Slow(Said):
        def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
            """One inference; long texts take a while."""
            if request.inputs[0].shape[1] > 8:
                time.sleep(wait)
            return super().ModelInfer(request, context)

    async def ask(port, triton):
        client = Triton(f"127.0.0.1:{port}", 30.0)
        long, both = cut(pad([[1] * 20]), 64), cut(pad([[0] * 20, [1], [2]]), 64)
        try:
            await client.score(TEXTS, 1, long, client.deadline())
            going = asyncio.create_task(client.score(TEXTS, 1, long, client.deadline(), math.inf))
            await asyncio.sleep(wait / 6)
            sizes = list(triton.sizes)
            with pytest.raises(Late) as late:
                await client.score(TEXTS, 1, both, client.deadline(), time.monotonic() + 1.3 * wait)
            assert (late.value.rows, triton.sizes) == (3, sizes)
            assert len(await client.score(TEXTS, 1, both, client.deadline(), time.monotonic() + 20 * wait)) == 9
            # Who is promised nothing waits: readiness does.
            assert len(await client.score(TEXTS, 2, long, client.deadline())) == 3
            await going
        finally:
            await client.close()

    with fake_triton(servicer=Slow([[0.25, 0.25, 0.5], [1, 0, 0], [0, 1, 0]])) as (triton, port):
        asyncio.run(ask(port, triton))


class Failing(Scores):
    """Fails each request with these words, and has heard so many."""

    def __init__(self, code, words):
        super().__init__()
        self.code, self.words = code, words
        self.heard = 0

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        self.heard += 1
        context.abort(self.code, self.words)


@pytest.mark.parametrize(
    ("code", "words", "heard"),
    [
        (grpc.StatusCode.INTERNAL, "indices element out of data bounds", 20),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape", 20),
        (grpc.StatusCode.INTERNAL, "Stub process 'reports_0_0' is not healthy.", FAILURES),
        (grpc.StatusCode.UNAVAILABLE, "version 1 is not at ready state", FAILURES),
    ],
)
def test_values_that_triton_refuses_are_no_outage(code, words, heard):
    """Triton goes on being asked however often it refuses rows; a version that is gone is soon left alone."""

    async def ask(port):
        client = Triton(f"127.0.0.1:{port}", 5.0)
        try:
            for _ in range(20):
                with pytest.raises(Unavailable):
                    await client.score(TEXTS, 1, cut(pad([[1]]), 64), client.deadline())
        finally:
            await client.close()

    with fake_triton(servicer=Failing(code, words)) as (triton, port):
        asyncio.run(ask(port))
        assert triton.heard == heard


def test_a_clock_that_was_set_back_leaves_no_version_alone_for_long(monkeypatch):
    """A version that did not answer is asked again after the pause, though the clock was set back meanwhile."""

    async def ask(port):
        client = Triton(f"127.0.0.1:{port}", 5.0)

        async def once():
            with pytest.raises(Unavailable):
                await client.score(TEXTS, 1, cut(pad([[1]]), 64), client.deadline())

        try:
            with monkeypatch.context() as patch:  # of the breaker alone: gRPC has the clock of the machine
                patch.setattr(model, "time", SimpleNamespace(time=lambda: time.time() + 86_400))
                for _ in range(FAILURES):
                    await once()
            await once()
            await asyncio.sleep(1.1 * PAUSE_SECONDS)
            await once()
        finally:
            await client.close()

    said = (grpc.StatusCode.UNAVAILABLE, "version 1 is not at ready state")
    with fake_triton(servicer=Failing(*said)) as (triton, port):
        asyncio.run(ask(port))
        assert triton.heard == FAILURES + 1


class Slow(Scores):
    """Answers after a while, and notes whether the caller was still there."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.there = []

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        time.sleep(self.seconds)
        self.there.append(context.is_active())
        return pb.ModelInferResponse(raw_output_contents=[np.array([[0.5, 0.25, 0.25]], np.float32).tobytes()])


@pytest.mark.parametrize("way", ["late", "gone", "closed"])
def test_no_call_to_triton_is_cancelled(way):
    """Who has no time left, or goes away, is told at once, and the call ends by itself: a Triton can die of the other.

    The same when the gateway stops.
    """

    async def ask(port):
        client = Triton(f"127.0.0.1:{port}", 5.0)
        seconds = 0.1 if way == "late" else 5.0
        asked = asyncio.create_task(client.score(TEXTS, 1, cut(pad([[1]]), 64), time.monotonic() + seconds))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        if way == "gone":
            asked.cancel()
        if way != "closed":
            with pytest.raises((Unavailable, asyncio.CancelledError)):
                await asked
            assert time.monotonic() - began < 0.15
        await client.close()
        asked.cancel()

    with fake_triton(servicer=Slow(0.4)) as (triton, port):
        asyncio.run(ask(port))
        assert triton.there == [True]
