"""A version as MLflow keeps it: the bundle, and the project's own code that answers raw rows by it.

``python_function`` takes a frame with the case's declared fields (:mod:`pipelines.answering`) and needs nothing of this
project where it is loaded; ``onnx`` is the same file as a graph over the tensors that bundle.json names.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import answering
from pipelines.encoding import BUNDLE
from pipelines.errors import DataError
from pipelines.fields import EVENT_TIME, FIELDS, SCORES, Fields, of_bundle, to_json
from pipelines.problems import allowed
from pipelines.registry import code
from pipelines.runtime import MODEL
from pipelines.storage import canonical_json
from pipelines.text import TOKENIZER

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

DATA = "bundle"
"""The bundle's folder in a model's ``data``."""
CONTRACT = "contract.json"
KEPT = (MODEL, BUNDLE, FIELDS, CONTRACT, TOKENIZER)
"""What a model takes of a bundle, as far as it is there."""
CLIENT = "mlflow-skinny"
"""MLflow's package that loads and serves a model; the whole of it is several times as large."""


def write(folder: Path, bundle: Path, fields: Fields, about: Model) -> None:
    """Write the model into ``folder``, which does not exist; ``about`` is MLflow's description, told what is in it.

    ``fields`` are those of a bundle that does not say its own. Raises DataError if its model is not ONNX.
    """
    import mlflow.pyfunc
    import onnx

    try:
        onnx.load(bundle / MODEL, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no typed home of its own
        raise DataError(f"{bundle / MODEL} is not an ONNX model: remove it and run the step 'export' again") from error
    parts = folder.with_name(f"{folder.name}.parts")
    (data := parts / DATA).mkdir(parents=True)
    for name in KEPT:
        if (bundle / name).exists():
            (data / name).symlink_to((bundle / name).resolve())  # MLflow copies what it leads to
    if (data / FIELDS).exists():
        fields = of_bundle(data)
    else:
        (data / FIELDS).write_text(canonical_json(to_json(fields)))
    module = code.write(answering.__name__, parts)
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=module,
        data_path=str(data),
        code_paths=[str(parts / module.partition(".")[0])],
        mlflow_model=about,
        signature=_signature(fields),
        input_example=_example(fields),
        pip_requirements=[_pinned(name) for name in (CLIENT, *answering.requirements(fields))],
        metadata={"case": fields.case, "fields": fields.hash},
    )
    about.add_flavor(
        "onnx", onnx_version=onnx.__version__, data=f"data/{DATA}/{MODEL}", providers=["CPUExecutionProvider"]
    )
    about.save(str(folder / "MLmodel"))


def _pinned(name: str) -> str:
    return f"{name}=={importlib.metadata.version(name)}"


def _signature(fields: Fields) -> ModelSignature:
    """The declared fields as columns of any type: what a row may hold is checked by the fields, row by row.

    MLflow's own types refuse a whole frame for one value, and whole numbers where others are declared.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    kind = DataType.string if fields.classes else DataType.long
    given = [ColSpec(DataType.double if fields.number else kind, answering.PREDICTION)]
    if fields.number is None:
        given.append(ColSpec(DataType.double, answering.SCORE))
    if fields.classes:
        given.append(ColSpec(Array(DataType.double), SCORES))
    given.append(ColSpec(DataType.string, answering.PROBLEM, required=False))
    read = [ColSpec(AnyType(), name, required=needed) for name, needed in answering.columns(fields).items()]
    return ModelSignature(Schema(read), Schema(given))


def _example(fields: Fields) -> Any:
    """A row that the gateway takes: none that anybody ever sent."""
    import pandas as pd

    row = {field.name: allowed(field) for field in fields.fields}
    if EVENT_TIME in answering.columns(fields):
        row[EVENT_TIME] = "2024-05-01T12:00:00Z"
    return pd.DataFrame([row], dtype=object)
