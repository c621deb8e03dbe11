"""Inference in Triton over gRPC: explicit versions, one deadline, one retry, a breaker per version.

The raw stub, not tritonclient's own client: a request is two tensors that were checked already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import stamina
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pipelines.errors import Unavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BATCH = 1024
"""Rows per inference: Triton's ``max_batch_size`` in every case's config.pbtxt."""
FAILURES, PAUSE_SECONDS = 5, 1.0
"""So many failures in a row open a version's breaker; after the pause the next request tries again."""
RETRY_WAIT_SECONDS = 0.05
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a Triton that came back answers within a second or so
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
]
_TYPES = {"int64": "INT64", "float32": "FP32"}


class Triton:
    """One channel to one Triton; make it inside the running event loop, close it there."""

    def __init__(self, address: str, deadline_seconds: float) -> None:
        self.address = address
        self.deadline_seconds = deadline_seconds
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL)
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        # A client that goes away says nothing about Triton.
        self._breakers = AsyncCircuitBreakerFactory(FAILURES, PAUSE_SECONDS, exclude=[asyncio.CancelledError])

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def deadline(self) -> float:
        """The monotonic time by which a request that starts now must be answered."""
        return time.monotonic() + self.deadline_seconds

    async def score(self, case: str, version: int, tensors: Mapping[str, NDArray[Any]], deadline: float) -> list[float]:
        """Probabilities [B] of one version, by ``deadline`` (monotonic). Raises Unavailable with the reason."""
        name = f"{case} version {version}"
        rows = len(tensors["numeric"])
        try:
            async with await self._breakers.get_breaker(f"{case}/{version}"):
                scores: list[float] = []
                for start in range(0, rows, MAX_BATCH):
                    part = tensors if rows <= MAX_BATCH else {key: value[start : start + MAX_BATCH] for key, value in tensors.items()}
                    scores += await self._score(name, _request(case, version, part), deadline)
                return scores
        except OpenedState as error:
            raise Unavailable(f"Triton has not answered for {name} {FAILURES} times: it is left alone for {PAUSE_SECONDS:g} s") from error.with_traceback(None)

    async def _score(self, name: str, request: Any, deadline: float) -> list[float]:
        try:
            answer = await self._retried(request, deadline)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(self._explain(name, error)) from error
        values: list[float] = np.frombuffer(answer.raw_output_contents[0], np.float32).astype(np.float64).tolist()
        if len(values) != request.inputs[0].shape[0] or not all(0.0 <= value <= 1.0 for value in values):
            raise Unavailable(f"{name} answered something that is not one probability per row: roll it back")
        return values

    async def _retried(self, request: Any, deadline: float) -> Any:
        try:
            return await self._infer(request, timeout=max(0.0, deadline - time.monotonic()))
        except grpc.aio.AioRpcError as error:
            if not _connection_lost(error):
                raise
            lost = error
        # stamina is asked only now: its bookkeeping costs more than an inference.
        async for attempt in stamina.retry_context(
            on=_connection_lost,
            attempts=2,
            timeout=max(0.0, deadline - time.monotonic()),
            wait_initial=RETRY_WAIT_SECONDS,
            wait_jitter=RETRY_WAIT_SECONDS,
        ):
            with attempt:
                if attempt.num == 1:
                    raise lost  # the call above
                return await self._infer(request, timeout=max(0.0, deadline - time.monotonic()))
        raise lost

    def _explain(self, name: str, error: grpc.aio.AioRpcError) -> str:
        code, details = error.code(), (error.details() or "").partition("\n")[0]
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"Triton at {self.address} did not answer for {name} within {self.deadline_seconds:g} s"
        if _connection_lost(error):
            return f"Triton at {self.address} does not answer: start it, or set PERENNIAL_TRITON_GRPC to where it is"
        if "not healthy" in details:
            return f"Triton at {self.address} has lost {name} ({details}): unload and load the model"
        return f"Triton at {self.address} has no answer from {name} ({code.name}: {details}): load the model, or see Triton's log"


def _request(case: str, version: int, tensors: Mapping[str, NDArray[Any]]) -> Any:
    return pb.ModelInferRequest(
        model_name=case,
        model_version=str(version),
        inputs=[pb.ModelInferRequest.InferInputTensor(name=name, datatype=_TYPES[str(value.dtype)], shape=value.shape) for name, value in tensors.items()],
        raw_input_contents=[value.tobytes() for value in tensors.values()],
    )


def _connection_lost(error: Exception) -> bool:
    """Whether nobody answered at all. Triton itself also says UNAVAILABLE, of a version that is not loaded: that is an answer."""
    return isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.UNAVAILABLE and "not at ready state" not in (error.details() or "")
