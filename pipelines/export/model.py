"""From a trained model to the bundle that ships: written, held against the model, and in its declared variants."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipelines import runtime
from pipelines.encoding import BUNDLE, Columns
from pipelines.errors import IntegrityError
from pipelines.export import bundle, variants
from pipelines.export.onnx import Trained
from pipelines.export.variants import Metrics
from pipelines.fields import Fields
from pipelines.params import Params
from pipelines.storage import canonical_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A bundle: what its bundle.json says, ``parity`` (largest difference to the model's own answers), its variants.

    Of each variant there are its bytes, latency and how much an answer hangs on its ``neighbours`` in a batch, and of
    int8 what it changes on the holdout and why it was ``refused``, if it was.
    """

    about: dict[str, Any]
    parity: float
    variants: dict[str, dict[str, Any]]


def export_model(
    trained: Trained,
    fields: Fields,
    folder: Path,
    about: Mapping[str, Any],
    rows: Columns,
    labels: NDArray[Any],
    *,
    params: Params,
    metrics: Metrics,
) -> Exported:
    """Write the bundle of what was ``trained`` to ``folder``, as :func:`bundle.write_bundle` does, with its variants.

    ``rows`` (columns) and their ``labels`` [n] are the holdout: answers are compared, timed and judged by ``metrics``
    on them. Raises IntegrityError if ONNX Runtime does not answer what the model answers, or if an fp32 answer hangs on
    the rows beside it.
    """
    said = bundle.write_bundle(trained, fields, folder, about)
    parity = bundle.check_parity(trained, fields, folder, rows, params.train.seed)
    fp32 = _neighbours_of_fp32(fields, folder, rows, params.train.seed)
    if not (params.export.int8 and trained.quantises):
        cost = variants.cost(folder, runtime.MODEL, fields, rows)
        return Exported(said, parity, {"fp32": {**cost, "neighbours": fp32}})
    made = _with_int8(fields, folder, rows, labels, fp32, params, metrics)
    said["precision"] = next(name for name, variant in made.items() if variant["file"] == runtime.MODEL)
    (folder / BUNDLE).write_text(canonical_json(said))
    return Exported(said, parity, made)


def _neighbours_of_fp32(fields: Fields, folder: Path, rows: Columns, seed: int) -> float:
    """How much an answer of model.onnx hangs on the rows beside it. Raises IntegrityError if it is more than noise."""
    found = bundle.neighbours(fields, folder, rows, seed)
    if not found <= bundle.TOLERANCE:
        raise IntegrityError(
            f"{folder / runtime.MODEL}: a row's score changes by {found:.2e} with the rows beside it: "
            "take out of the model what mixes rows"
        )
    return found


def _with_int8(
    fields: Fields,
    folder: Path,
    rows: Columns,
    labels: NDArray[Any],
    fp32_neighbours: float,
    params: Params,
    metrics: Metrics,
) -> dict[str, dict[str, Any]]:
    """Add the int8 variant, let the declared one be model.onnx, and measure both.

    An int8 variant whose answers hang on the rows beside them is not shipped, whatever was declared.
    """
    files = {"fp32": runtime.MODEL, "int8": variants.write_int8(folder).name}
    scores = {name: runtime.score_rows(folder, fields, rows, model=file) for name, file in files.items()}
    change = variants.difference(labels, scores["fp32"], scores["int8"], metrics, number=fields.number is not None)
    neighbours = bundle.neighbours(fields, folder, rows, params.train.seed, variants.INT8)
    refused = _refusal(neighbours)
    if refused is not None:
        log.warning("%s: the int8 variant does not ship: %s", params.case, refused)
    elif params.export.ship == "int8":
        variants.ship_int8(folder)
        files = {"fp32": variants.FP32, "int8": runtime.MODEL}
    costs = {name: variants.cost(folder, file, fields, rows) for name, file in files.items()}
    return {
        "fp32": {**costs["fp32"], "neighbours": fp32_neighbours},
        "int8": {**costs["int8"], "neighbours": neighbours, "change": change, "refused": refused},
    }


def _refusal(neighbours: float) -> str | None:
    """Why a variant must not ship, or None."""
    if neighbours <= bundle.NEIGHBOURS:
        return None
    return f"a row's score changes by {neighbours:.2e} with the rows beside it, {bundle.NEIGHBOURS:g} is allowed"
