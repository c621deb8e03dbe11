"""From what was trained to an ONNX file that is byte for byte a function of what was learned."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.encoding import signature
from pipelines.errors import ConfigError
from pipelines.estimators import fitting
from pipelines.estimators import onnx as estimators
from pipelines.estimators.fitting import Fitted
from pipelines.fields import Fields
from pipelines.runtime import MODEL, OUTPUT
from pipelines.scored import Scored
from pipelines.text import TOKENIZER, TOKENS, load_tokenizer

OPSET = 20
MAX_BATCH = 65_536
"""The largest batch that the graph of a tabular model declares."""
MAX_TEXTS = 1_024
"""The largest batch that the graph of a model with texts declares."""
MAX_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, which ends at 2 GiB."""
_DTYPES = {"int64": torch.int64, "float32": torch.float32}
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Trained:
    """What is exported, whatever it is made of.

    ``write(folder)`` leaves its model.onnx there and returns the opset, ``answers(tensors)`` says what it answers
    itself, ``[B, outputs]`` as float64. ``name`` and ``mend`` are for the message that the two differ. ``quantises``:
    its weights can be int8.
    """

    write: Callable[[Path], int]
    answers: Callable[[Tensors], NDArray[np.float64]]
    name: str
    mend: str
    quantises: bool = True


def of_torch(model: nn.Module, fields: Fields) -> Trained:
    """A torch module as what is exported."""
    scored = Scored(model, fields).eval()
    names = [tensor["name"] for tensor in signature(fields)[0]]

    def write(folder: Path) -> int:
        write_onnx(model, fields, folder)
        return OPSET

    def answers(tensors: Tensors) -> NDArray[np.float64]:
        with torch.no_grad():
            found: NDArray[np.float64] = scored(*(torch.from_numpy(tensors[name]) for name in names)).double().numpy()
        return found

    return Trained(write, answers, "torch", "do not ship it; check the exporter's version")


def of_estimator(fitted: Fitted, fields: Fields) -> Trained:
    """A fitted estimator as what is exported."""

    def write(folder: Path) -> int:
        proto = estimators.graph(fitted, fields)
        if proto.ByteSize() > MAX_BYTES:
            raise _too_large(fields, proto.ByteSize(), "fewer or smaller trees")
        (folder / MODEL).write_bytes(proto.SerializeToString(deterministic=True))
        return estimators.OPSET

    return Trained(
        write,
        lambda tensors: fitting.answers(fitted, tensors),
        type(fitted.estimator).__name__,
        f"{estimators.converter(fitted.family)} changed what it answers; do not ship it, take other parameters or "
        "another family",
        quantises=False,
    )


def longest(fields: Fields, folder: Path) -> int:
    """Most tokens of a text: where the tokenizer in ``folder`` truncates; 1 without texts."""
    if fields.text is None:
        return 1
    return int(load_tokenizer(folder / TOKENIZER).truncation["max_length"])


def write_onnx(model: nn.Module, fields: Fields, folder: Path) -> Path:
    """Write ``folder/model.onnx``; equal weights give equal bytes.

    Inputs and output are those of :func:`pipelines.encoding.signature`, with a free batch and, for texts, a free
    sequence of 2 up to the truncation of ``folder/tokenizer.json``. Names of source files and stack traces are
    stripped. Raises ConfigError for a model that no ONNX file can hold.
    """
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > MAX_BYTES:
        raise _too_large(fields, size, "a smaller encoder")
    path = folder / MODEL
    inputs, _ = signature(fields)
    rows = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH if fields.text is None else MAX_TEXTS)}
    tokens = {}
    if fields.text is not None:
        tokens = {**rows, 1: torch.export.Dim("seq", min=2, max=longest(fields, folder))}
    with _quiet():
        program = torch.onnx.export(
            Scored(model, fields).eval(),
            example(fields),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor["name"] for tensor in inputs],
            output_names=[OUTPUT],
            dynamic_shapes=(tuple(tokens if tensor["name"] in TOKENS else rows for tensor in inputs),),
            external_data=False,
        )
    assert program is not None
    proto = program.model_proto
    strip(proto)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def _too_large(fields: Fields, size: int, smaller: str) -> ConfigError:
    return ConfigError(
        f"{fields.case}: the model has {size / 1e9:.1f} GB of weights, an ONNX file holds {MAX_BYTES / 1e9:g}: "
        f"choose {smaller}"
    )


def example(fields: Fields) -> tuple[Tensor, ...]:
    """Tensors to trace a model with, every free axis at least 2 long: of one row it would be specialised to batch 1.

    Code 0 is in every vocabulary, token 1 in every tokenizer's, and 1 is a mask that leaves nothing out.
    """
    free_axes = (3, 7)
    tensors = []
    for tensor in signature(fields)[0]:
        fill = 1 if tensor["name"] in TOKENS else 0
        shape = [free if size < 0 else size for size, free in zip(tensor["shape"], free_axes, strict=True)]
        tensors.append(torch.full(shape, fill, dtype=_DTYPES[tensor["dtype"]]))
    return tuple(tensors)


def strip(proto: Any) -> None:
    """Remove what depends on the machine and not on the model: documentation, stack traces, paths."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own internals; neither is for the step's reader."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
