"""The REST routes of the Open Inference Protocol, version 2: health, metadata and inference of every case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from serving.gateway import inference, tensors
from serving.gateway.inference import Inferred
from serving.gateway.predict import in_time
from serving.gateway.readiness import Readiness
from serving.gateway.refusal import JSON, Refused
from serving.gateway.routes import admitted
from serving.gateway.state import Gateway
from serving.gateway.tensors import Tensor

HEAD = "inference-header-content-length"
"""How many bytes of a body are JSON, where tensors follow as bytes."""
BINARY = "application/octet-stream"
MODEL = "/v2/models/{case}"
VERSION = MODEL + "/versions/{version}"
router = APIRouter(include_in_schema=False)
_encode = msgspec.json.Encoder().encode


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, Any] = {}


class _Asked(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Asked] = []
    parameters: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Body).decode


@router.get("/v2")
async def server() -> Response:
    """What this server is."""
    return _json({"name": inference.NAME, "version": inference.VERSION, "extensions": inference.EXTENSIONS})


@router.get("/v2/health/live")
async def live() -> Response:
    """Whether the process runs."""
    return _json({"live": True})


@router.get("/v2/health/ready")
async def ready(request: Request) -> Response:
    """Whether every champion answers: 200, else 503, as /readyz says with the reasons."""
    readiness: Readiness = request.app.state.readiness
    return _ready((await readiness.answer())["ready"])


@router.get(MODEL + "/ready")
@router.get(VERSION + "/ready")
async def model_ready(request: Request, case: str, version: str = "") -> Response:
    """Whether the case's champion answers, and is this version: 200, else 503; 404 for an unknown case."""
    gateway: Gateway = request.app.state.gateway
    only = inference.version_of(version)
    with gateway.using(case):
        readiness: Readiness = request.app.state.readiness
        return _ready(inference.model_ready(await readiness.answer(), case, only))


@router.get(MODEL)
@router.get(VERSION)
async def model(request: Request, case: str, version: str = "") -> Response:
    """A case's inputs, which are its declared fields, and its outputs."""
    gateway: Gateway = request.app.state.gateway
    only = inference.version_of(version)
    with gateway.using(case) as known:
        about = {
            "name": known.name,
            "versions": inference.versions(gateway, known, only),
            "platform": inference.PLATFORM,
            "inputs": [one._asdict() for one in tensors.inputs(known.fields)],
            "outputs": [one._asdict() for one in tensors.outputs(known.fields)],
        }
    return _json(about)


@router.post(MODEL + "/infer")
@router.post(VERSION + "/infer")
async def infer(request: Request, case: str, version: str = "") -> Response:
    """Score rows whose fields come as tensors; each answered row is in the prediction log, as those of /v1 are."""
    gateway: Gateway = request.app.state.gateway
    caller = await admitted(gateway, request.scope)
    with gateway.using(case) as known, gateway.door.place(case, caller, known.serving.slo.p99_ms) as place:
        in_time(gateway, known)
        body = await place.read(request.scope, request.receive)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refused(415, "body", "a compressed body is not read: send it as it is")
        head, rest = _parts(body, request.headers.get(HEAD, ""))
        asked = await gateway.apart(len(body), _read, head)
        found = await inference.infer(
            gateway,
            known,
            place,
            len(body),
            lambda: _tensors(asked.inputs, rest),
            inference.version_of(version),
            [output.name for output in asked.outputs],
        )
        return await gateway.apart(len(body), _reply, found, asked)


def _parts(body: bytes, length: str) -> tuple[bytes, bytes]:
    """A body's JSON, and the bytes of tensors that follow it."""
    if not length:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) <= 20 and int(length) <= len(body)):
        raise Refused(400, "shape", f"{HEAD} must be the number of the body's first bytes that are JSON")
    return body[: int(length)], body[int(length) :]


def _read(head: bytes) -> _Body:
    try:
        return _decode(head)
    except msgspec.ValidationError as error:
        form = '{"inputs": [{"name", "datatype", "shape", "data"}, ...]}'
        raise Refused(400, "shape", f"the body must be {form}, with shape a list of whole numbers") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, "json", "the body is not JSON") from error


def _tensors(inputs: Sequence[_Input], rest: bytes) -> list[Tensor]:
    found = []
    for one in inputs:
        count = tensors.size(one.shape)
        length = one.parameters.get("binary_data_size")
        if length is not None:
            if type(length) is not int or not 0 <= length <= len(rest):
                raise Refused(400, "shape", "inputs: binary_data_size is beyond the bytes of the body")
            found.append(tensors.from_bytes(one.name, one.datatype, one.shape, rest[:length]))
            rest = rest[length:]
            continue
        values = [] if one.data is UNSET else list(tensors.flattened(one.data))
        if len(values) != count:
            raise Refused(400, "shape", f"inputs: data has {len(values)} elements, the shape says {count}")
        found.append(Tensor(one.name, one.datatype, one.shape, values))
    if rest:
        raise Refused(400, "shape", f"{len(rest)} bytes follow that no input's binary_data_size accounts for")
    return found


def _reply(found: Inferred, asked: _Body) -> Response:
    raw = {output.name: bool(output.parameters.get("binary_data", False)) for output in asked.outputs}
    all_raw = bool(asked.parameters.get("binary_data_output", False))
    head: dict[str, Any] = {"model_name": found.case, "id": asked.id or found.request_id}
    if found.version:
        head["model_version"] = found.version
    if found.parameters:
        head["parameters"] = found.parameters
    described = []
    rest = []
    for output in found.outputs:
        about: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": [len(output.values)]}
        if raw.get(output.name, all_raw):
            rest.append(output.raw())
            about["parameters"] = {"binary_data_size": len(rest[-1])}
        else:
            about["data"] = output.values
        described.append(about)
    text = _encode(head | {"outputs": described})
    if not rest:
        return Response(text, media_type=JSON)
    return Response(b"".join((text, *rest)), headers={HEAD: str(len(text))}, media_type=BINARY)


def _json(answer: Any) -> Response:
    return Response(_encode(answer), media_type=JSON)


def _ready(is_ready: bool) -> Response:
    return Response(_encode({"ready": is_ready}), 200 if is_ready else 503, media_type=JSON)
