"""Open Inference Protocol, version 2: what its two ways in, REST and gRPC, have in common.

A model is a case, and its version the one that the ledger has released. A request that names a version is refused if
that is neither the champion nor a challenger on trial, and is not answered by what stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipelines.errors import PerennialError
from serving.gateway import refusals, tensors
from serving.gateway.cases import Case
from serving.gateway.predict import answer
from serving.gateway.protections import Place
from serving.gateway.refusal import Refused
from serving.gateway.state import Gateway
from serving.gateway.tensors import Output, Tensor

NAME, VERSION = "perennial", "0.2.0"
PLATFORM = "perennial_rows"
"""What runs a model, in the protocol's words: raw rows of declared fields, not the tensors of a network."""
EXTENSIONS = ["binary_tensor_data"]
ROUTE = "infer"
"""The route's name in metrics, of REST and of gRPC."""


class Inferred(NamedTuple):
    """What a request is answered: ``version`` is that of all rows, or empty if they were answered by several.

    ``parameters`` are those of the response: ``default``, where any row has the declared default.
    """

    case: str
    version: str
    request_id: str
    outputs: list[Output]
    parameters: dict[str, bool]


async def infer(
    gateway: Gateway,
    case: Case,
    place: Place,
    size: int,
    read: Callable[[], Sequence[Tensor]],
    only: int | None,
    outputs: Sequence[str],
) -> Inferred:
    """Score the rows of tensors, which ``read`` takes from ``size`` bytes. Raises what predict.answer raises."""

    def rows() -> bytes:
        tensors.wanted(tensors.answered(case.fields, []), outputs)  # before anything is logged
        return tensors.body(case.fields, read(), gateway.bounds.max_rows)

    try:
        body = await gateway.apart(size, rows)
    except Refused as error:
        await refusals.note(gateway, case, error, b"", datetime.now(UTC))
        raise
    request_id, answers = await answer(gateway, case, place, body, only)
    found = await gateway.apart(len(body), tensors.answered, case.fields, answers)
    versions = {one.version for one in answers}
    version = str(versions.pop()) if len(versions) == 1 else ""
    parameters = {"default": True} if any(one.by_default for one in answers) else {}
    return Inferred(case.name, version, request_id, tensors.wanted(found, outputs), parameters)


def version_of(text: str) -> int | None:
    """The version that a request names, None if it names none. Raises Refused (404) for what is no number."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Refused(404, "version", "the version must be a number, or left out")
    return int(text)


def versions(gateway: Gateway, case: Case, only: int | None) -> list[str]:
    """The versions that a model's metadata names: the champion, if there is one, and a challenger on trial.

    Raises Refused (404) if ``only`` is another one.
    """
    try:
        champion, _ = gateway.routing.versions(case.name, case.route, only)
    except PerennialError:
        if only is not None:
            raise
        return []
    rollout = None if case.route is None else case.route.rollout
    if only is not None or rollout is None or rollout.challenger is None:
        return [str(champion.number)]
    return [str(champion.number), str(rollout.challenger.number)]


def model_ready(found: Mapping[str, Any], case: str, only: int | None) -> bool:
    """Whether a case's champion answers, or the version ``only`` on trial, by the answer of the gateway's readiness."""
    about = found["cases"].get(case, {"ready": False})
    challenger = about.get("challenger")
    if challenger is not None and only == challenger["version"]:
        return bool(challenger["ready"])
    return bool(about["ready"]) and only in (None, about["champion"])
