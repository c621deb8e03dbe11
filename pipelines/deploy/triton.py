"""Triton's admin calls and a real inference, over gRPC: what a rollout needs, and no more.

A Triton of ours answers only to who has a client's key (mutual TLS, ``PERENNIAL_TRITON_CLIENT``): its admin calls run
code. Without one the channel is plain, for a server that somebody else keeps closed.

"Ready" is not believed anywhere: a model whose Python stub was killed stays ready, and loading a model
that has not changed does nothing. Only an inference tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.channel import OPTIONS, credentials, of_queue
from pipelines.errors import Crowded, IntegrityError, Unavailable
from pipelines.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOAD_SECONDS = 60.0
ANSWER_SECONDS = 10.0
_TYPES = {"int64": "INT64", "float32": "FP32"}


class _Refused(Exception):
    """Triton answered, and did not do it: its own words."""


class Late(Unavailable):
    """Triton, or a version in it, was asked and gave no answer in time: it may hang, or have no time."""


def ready(settings: Settings) -> bool:
    """Whether the server answers "ready" to us (which says nothing about a model)."""
    from tritonclient.grpc import service_pb2 as pb

    try:
        return bool(_call(settings, "ServerReady", pb.ServerReadyRequest(), ANSWER_SECONDS).ready)
    except (_Refused, Unavailable):
        return False


def version(settings: Settings) -> str:
    """Name and version of the server. Raises Unavailable if it does not answer, IntegrityError if it does not tell."""
    from tritonclient.grpc import service_pb2 as pb

    try:
        found = _call(settings, "ServerMetadata", pb.ServerMetadataRequest(), ANSWER_SECONDS)
    except _Refused as refused:
        raise IntegrityError(f"Triton at {settings.triton_grpc} does not tell its version: {refused}") from refused
    return f"{found.name} {found.version}"


def load(settings: Settings, case: str) -> None:
    """Load what the case's configuration names; versions that are loaded and unchanged go on undisturbed.

    A version whose file is newer than what is loaded is loaded beside the old one, which answers until then.
    Raises IntegrityError with Triton's reason if it refuses, Unavailable if it does not answer.
    """
    from tritonclient.grpc import service_pb2 as pb

    try:
        _call(settings, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=case), LOAD_SECONDS)
    except _Refused as refused:
        hint = ""
        if "failed to poll" in str(refused):
            hint = "; its --model-repository must be the model_repository in PERENNIAL_HOME"
        raise IntegrityError(f"Triton at {settings.triton_grpc} refuses to load {case}: {refused}{hint}") from refused


def unload(settings: Settings, case: str) -> None:
    """Unload all versions of a case; none of them answers afterwards."""
    from tritonclient.grpc import service_pb2 as pb

    try:
        _call(settings, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=case), ANSWER_SECONDS)
    except _Refused as refused:
        raise IntegrityError(f"Triton at {settings.triton_grpc} refuses to unload {case}: {refused}") from refused


def index(settings: Settings) -> set[str]:
    """The models of which a version is loaded.

    Raises Unavailable if Triton does not answer, IntegrityError if it does not tell.
    """
    from tritonclient.grpc import service_pb2 as pb

    try:
        found = _call(settings, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True), ANSWER_SECONDS).models
    except _Refused as refused:
        raise IntegrityError(f"Triton at {settings.triton_grpc} does not tell what is loaded: {refused}") from refused
    return {model.name for model in found if model.state == "READY"}


def devices(settings: Settings, case: str) -> list[str]:
    """Where the case's instances compute, as Triton resolved its configuration: ``cpu``, ``gpu``.

    Raises Unavailable if Triton does not answer, IntegrityError with its reason if it does not tell.
    """
    from tritonclient.grpc import model_config_pb2 as config_pb
    from tritonclient.grpc import service_pb2 as pb

    try:
        config = _call(settings, "ModelConfig", pb.ModelConfigRequest(name=case), ANSWER_SECONDS).config
    except _Refused as refused:
        raise IntegrityError(
            f"Triton at {settings.triton_grpc} does not tell where {case} computes: {refused}"
        ) from refused
    return sorted(
        {
            config_pb.ModelInstanceGroup.Kind.Name(group.kind).removeprefix("KIND_").lower()
            for group in config.instance_group
        }
    )


def loaded(settings: Settings, case: str, version: int) -> bool:
    """Whether Triton lists the version as ready; False also if the version is not loaded.

    See :func:`infer` for the truth.
    """
    from tritonclient.grpc import service_pb2 as pb

    try:
        return bool(
            _call(settings, "ModelReady", pb.ModelReadyRequest(name=case, version=str(version)), ANSWER_SECONDS).ready
        )
    except _Refused:
        return False


def zeros(settings: Settings, case: str, version: int) -> dict[str, NDArray[Any]]:
    """One row of zeros in the shape of the version's own inputs; an axis that may differ has the length 1.

    Raises Unavailable with Triton's reason if it does not know the version.
    """
    import numpy as np
    from tritonclient.grpc import service_pb2 as pb

    kinds = {kind: name for name, kind in _TYPES.items()}
    try:
        inputs = _call(
            settings, "ModelMetadata", pb.ModelMetadataRequest(name=case, version=str(version)), ANSWER_SECONDS
        ).inputs
    except _Refused as refused:
        raise Unavailable(
            f"Triton at {settings.triton_grpc} has no answer from {case} version {version}: {refused}"
        ) from refused
    return {tensor.name: np.zeros([max(1, size) for size in tensor.shape], kinds[tensor.datatype]) for tensor in inputs}


def infer(settings: Settings, case: str, version: int, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Scores ``[B]`` (with classes ``[B, K]``) of one explicit version.

    ``tensors`` are those of :func:`pipelines.encoding.encoder`. Raises Unavailable with Triton's reason if this version
    does not answer, Crowded if its queue has no room now.
    """
    import numpy as np
    from tritonclient.grpc import service_pb2 as pb

    request = pb.ModelInferRequest(
        model_name=case,
        model_version=str(version),
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=_TYPES[str(value.dtype)], shape=value.shape)
            for name, value in tensors.items()
        ],
        raw_input_contents=[value.tobytes() for value in tensors.values()],
    )
    try:
        answer = _call(settings, "ModelInfer", request, ANSWER_SECONDS)
    except _Refused as refused:
        if queue := of_queue(str(refused)):
            raise Crowded(
                f"the queue of {case} version {version} in Triton at {settings.triton_grpc} {queue}: try again when "
                "less is asked of it"
            ) from refused
        raise Unavailable(
            f"Triton at {settings.triton_grpc} has no answer from {case} version {version}: {refused}"
        ) from refused
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32).astype(np.float64)
    shape = list(answer.outputs[0].shape)
    if shape[-1] == 1:
        return scores
    return scores.reshape(shape)


def _call(settings: Settings, method: str, request: Any, timeout: float) -> Any:
    """One call on a channel of its own.

    Unavailable if nobody answers (us), Late if it takes too long, _Refused with Triton's words if it says no.
    """
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    address = settings.address("triton_grpc")
    client = settings.triton_client
    missing = ""
    if client is None:
        channel = grpc.insecure_channel(address, OPTIONS)
        missing = ", and PERENNIAL_TRITON_CLIENT_FILE to the key that it knows"
    else:
        channel = grpc.secure_channel(address, credentials(client), OPTIONS)
    with channel:
        try:
            return getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(request, timeout=timeout)
        except grpc.RpcError as error:
            # Triton's own words without the stack trace of a Python backend.
            reason = (error.details() or "").partition("\n\nAt:")[0].strip() or "no reason given"
            if not is_away(error):
                raise _Refused(reason) from error
            kind = Late if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else Unavailable
            raise kind(
                f"Triton at {address} does not answer {method} ({reason}): start it, or set PERENNIAL_TRITON_GRPC to "
                f"where it is{missing}"
            ) from error


def is_away(error: Any) -> bool:
    """Whether a gRPC error says that nobody answered.

    Triton itself says UNAVAILABLE too, of a version that is not loaded and of a full queue: that is an answer.
    """
    import grpc

    details = error.details() or ""
    answered = "not at ready state" in details or of_queue(details)
    unavailable = error.code() == grpc.StatusCode.UNAVAILABLE and not answered
    return unavailable or error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
