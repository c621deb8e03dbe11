"""Triton's admin calls and a real inference, over HTTP: what a rollout needs, and no more.

Where the server restricts its admin calls (compose/triton/start.sh), loading and unloading carry its key.

"Ready" is not believed anywhere: a model whose Python stub was killed stays ready, and loading a model
that has not changed does nothing. Only an inference tells.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from pipelines.errors import IntegrityError, Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY_HEADER = "admin-key"
"""The name that the server was started with: ``--http-restricted-api=model-repository,...:admin-key=<secret>``."""
LOAD_SECONDS = 60.0
ANSWER_SECONDS = 10.0
_TYPES = {"int64": "INT64", "float32": "FP32"}


def load(address: str, case: str, key: SecretStr | None = None) -> None:
    """Load what the case's configuration names; versions that are loaded and unchanged go on undisturbed.

    A version whose file is newer than what is loaded is loaded beside the old one, which answers until then.
    Raises IntegrityError with Triton's reason if it refuses, Unavailable if it does not answer.
    """
    status, answer = _call(address, "POST", f"/v2/repository/models/{case}/load", {}, LOAD_SECONDS, key)
    if status != http.client.OK:
        reason = _reason(answer)
        hint = "; its --model-repository must be the model_repository in PERENNIAL_HOME" if "failed to poll" in reason else ""
        raise IntegrityError(f"Triton at {address} refuses to load {case}: {reason}{hint}")


def unload(address: str, case: str, key: SecretStr | None = None) -> None:
    """Unload all versions of a case; none of them answers afterwards."""
    status, answer = _call(address, "POST", f"/v2/repository/models/{case}/unload", {}, ANSWER_SECONDS, key)
    if status != http.client.OK:
        raise IntegrityError(f"Triton at {address} refuses to unload {case}: {_reason(answer)}")


def devices(address: str, case: str, key: SecretStr | None = None) -> list[str]:
    """Where the case's instances compute, as Triton resolved its configuration: ``cpu``, ``gpu``.

    Raises Unavailable if Triton does not answer, IntegrityError with its reason if it does not tell.
    """
    status, answer = _call(address, "GET", f"/v2/models/{case}/config", None, ANSWER_SECONDS, key)
    if status != http.client.OK:
        raise IntegrityError(f"Triton at {address} does not tell where {case} computes: {_reason(answer)}")
    return sorted({str(group["kind"]).removeprefix("KIND_").lower() for group in json.loads(answer)["instance_group"]})


def loaded(address: str, case: str, version: int) -> bool:
    """Whether Triton lists the version as ready; False also if the version is not loaded. See :func:`infer` for the truth."""
    return _call(address, "GET", f"/v2/models/{case}/versions/{version}/ready", None, ANSWER_SECONDS)[0] == http.client.OK


def infer(address: str, case: str, version: int, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Scores ``[B]`` (with classes ``[B, K]``) of one explicit version for the tensors of :func:`pipelines.encoding.encoder`.

    Raises Unavailable with Triton's reason if this version does not answer.
    """
    import numpy as np

    inputs = [
        {"name": name, "shape": list(value.shape), "datatype": _TYPES[str(value.dtype)], "data": value.ravel().tolist()} for name, value in tensors.items()
    ]
    status, answer = _call(address, "POST", f"/v2/models/{case}/versions/{version}/infer", {"inputs": inputs}, ANSWER_SECONDS)
    if status != http.client.OK:
        raise Unavailable(f"Triton at {address} has no answer from {case} version {version}: {_reason(answer)}")
    output = json.loads(answer)["outputs"][0]
    scores = np.asarray(output["data"], np.float64)
    return scores if output["shape"][-1] == 1 else scores.reshape(output["shape"])


def _call(address: str, method: str, path: str, body: Any, timeout: float, key: SecretStr | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"} | ({} if key is None else {KEY_HEADER: key.get_secret_value()})
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"Triton at {address} does not answer {method} {path} ({error or type(error).__name__}): start it, or set PERENNIAL_TRITON_HTTP to where it is"
        ) from error
    finally:
        connection.close()


def _reason(answer: bytes) -> str:
    """Triton's own words without the stack trace of a Python backend."""
    try:
        text = str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.decode(errors="replace")
    return text.partition("\n\nAt:")[0].strip() or "no reason given"
