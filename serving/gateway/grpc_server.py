"""Open Inference Protocol, version 2, over gRPC: the same cases, keys, bounds and log as over HTTP.

It runs in the worker's event loop. Several workers share the port, as the kernel gives each new connection to one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pipelines.errors import ConfigError
from serving.gateway import inference, tensors, tracing
from serving.gateway.metrics import GONE
from serving.gateway.predict import in_time
from serving.gateway.protections import HEADER
from serving.gateway.readiness import Readiness
from serving.gateway.refusal import Refused, refusal
from serving.gateway.state import Gateway
from serving.gateway.tensors import BOOL, BYTES, Tensor

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    410: grpc.StatusCode.FAILED_PRECONDITION,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""gRPC's word for each HTTP status of the gateway; INTERNAL for any other."""
_CONTENTS = {
    BYTES: "bytes_contents",
    BOOL: "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a request has a tensor's elements that does not have them as bytes."""


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # generated, without types
    """The protocol's methods; those of Triton beyond it are UNIMPLEMENTED."""

    def __init__(self, gateway: Gateway, readiness: Readiness) -> None:
        self._gateway = gateway
        self._readiness = readiness

    async def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - the protocol's names
        """Whether the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Whether every champion answers."""
        return pb.ServerReadyResponse(ready=(await self._readiness.answer())["ready"])

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """What this server is."""
        about = {"name": inference.NAME, "version": inference.VERSION, "extensions": inference.EXTENSIONS}
        return pb.ServerMetadataResponse(**about)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether a case's champion answers, and is the version that is asked for."""

        async def answer() -> Any:
            only = inference.version_of(request.version)
            with self._gateway.using(request.name):
                found = inference.model_ready(await self._readiness.answer(), request.name, only)
            return pb.ModelReadyResponse(ready=found)

        return await self._told(context, request.name, "ready", answer)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """A case's inputs, which are its declared fields, and its outputs."""

        async def answer() -> Any:
            only = inference.version_of(request.version)
            with self._gateway.using(request.name) as case:
                tensor = pb.ModelMetadataResponse.TensorMetadata
                return pb.ModelMetadataResponse(
                    name=case.name,
                    versions=inference.versions(self._gateway, case, only),
                    platform=inference.PLATFORM,
                    inputs=[tensor(**one._asdict()) for one in tensors.inputs(case.fields)],
                    outputs=[tensor(**one._asdict()) for one in tensors.outputs(case.fields)],
                )

        return await self._told(context, request.name, "metadata", answer)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Score rows whose fields come as tensors; each answered row is in the prediction log."""

        async def answer() -> Any:
            gateway = self._gateway
            key = dict(context.invocation_metadata() or ()).get(HEADER, "")
            caller = await gateway.door.admit(str(key), _address(context.peer()))
            size = request.ByteSize()
            with (
                gateway.using(request.model_name) as case,
                gateway.door.place(case.name, caller, case.serving.slo.p99_ms) as place,
            ):
                in_time(gateway, case)
                place.hold(size)
                found = await inference.infer(
                    gateway,
                    case,
                    place,
                    size,
                    lambda: _tensors(request),
                    inference.version_of(request.model_version),
                    [output.name for output in request.outputs],
                )
                return await gateway.apart(size, _reply, found, request.id)

        return await self._told(context, request.model_name, inference.ROUTE, answer)

    async def _told(self, context: Any, name: str, route: str, answer: Callable[[], Awaitable[Any]]) -> Any:
        """An answer, counted and timed; what stands against it is the call's status."""
        metrics = self._gateway.metrics
        case = name if name in self._gateway.cases else ""
        began = time.perf_counter()
        status = GONE
        parent = str(dict(context.invocation_metadata() or ()).get(tracing.TRACEPARENT, ""))
        try:
            with tracing.request(f"gRPC {route}", parent) as course:
                answered = await answer()
                context.set_trailing_metadata((("server-timing", course.server_timing()),))
                status = 200
                return answered
        except Exception as error:  # noqa: BLE001 - every error is an answer, as over HTTP
            told = refusal(metrics, case, error)
            status = told.status
            wait = (told.headers or {}).get("Retry-After")
            more = () if wait is None else (("retry-after", wait),)
            await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), told.text, more)
        finally:
            metrics.answered(case, route, status, course, time.perf_counter() - began)


def _tensors(request: Any) -> list[Tensor]:
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Refused(400, "shape", f"raw_input_contents has {len(raw)} tensors, inputs {len(request.inputs)}")
    found = []
    for place, one in enumerate(request.inputs):
        if raw:
            found.append(tensors.from_bytes(one.name, one.datatype, one.shape, raw[place]))
            continue
        if one.datatype not in _CONTENTS:
            raise Refused(400, "shape", f"inputs: datatype must be one of {', '.join(_CONTENTS)}")
        values = list(getattr(one.contents, _CONTENTS[one.datatype]))
        if len(values) != (count := tensors.size(one.shape)):
            raise Refused(400, "shape", f"inputs: contents have {len(values)} elements, the shape says {count}")
        found.append(Tensor(one.name, one.datatype, one.shape, values))
    return found


def _reply(found: inference.Inferred, given: str) -> Any:
    tensor = pb.ModelInferResponse.InferOutputTensor
    return pb.ModelInferResponse(
        model_name=found.case,
        model_version=found.version,
        id=given or found.request_id,
        outputs=[tensor(name=one.name, datatype=one.datatype, shape=[len(one.values)]) for one in found.outputs],
        raw_output_contents=[one.raw() for one in found.outputs],
        parameters={name: pb.InferParameter(bool_param=value) for name, value in found.parameters.items()},
    )


def _address(peer: str) -> str:
    """The client's address without its port: ``ipv4:127.0.0.1:5000``."""
    return peer.partition(":")[2].rpartition(":")[0]


@asynccontextmanager
async def serving(gateway: Gateway, readiness: Readiness) -> AsyncIterator[None]:
    """Answer over gRPC until the block ends, where an address is given. Raises ConfigError if it cannot be had."""
    address = gateway.bounds.grpc
    if not address:
        yield
        return
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", gateway.bounds.max_body_bytes),
            ("grpc.max_concurrent_streams", gateway.bounds.max_requests),
        ]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(gateway, readiness), server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"PERENNIAL_GATEWAY_GRPC={address} cannot be listened at ({error}): name another host:port"
        ) from error
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=5)
