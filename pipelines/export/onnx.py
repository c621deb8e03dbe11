"""From a torch model to an ONNX file that is byte for byte a function of the weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.fields import Fields
from pipelines.runtime import MODEL, OUTPUT

OPSET = 20
MAX_BATCH = 65_536
"""The largest batch that the exported graph declares."""


class Scored(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """A model with the sigmoid inside: what ships answers probabilities ``[B, 1]``, not logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """Probabilities ``[B, 1]`` of int64 codes ``[B, C]`` and float32 numbers ``[B, N]``."""
        return torch.sigmoid(self.model(categorical, numeric))


def example(fields: Fields, rows: int) -> tuple[Tensor, Tensor]:
    """Zero tensors of the fields' shapes: code 0 is in every vocabulary."""
    return torch.zeros(rows, len(fields.categorical), dtype=torch.int64), torch.zeros(rows, len(fields.numeric))


def write_onnx(model: nn.Module, fields: Fields, folder: Path) -> Path:
    """Write ``folder/model.onnx``; equal weights give equal bytes.

    Inputs ``categorical`` int64 [batch, C] and ``numeric`` float32 [batch, N], output ``score`` float32
    [batch, 1]. Names of source files and stack traces are stripped.
    """
    import onnx

    path = folder / MODEL
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    # An example of one row would be specialised to batch 1.
    sample = example(fields, rows=3)
    with _quiet():
        program = torch.onnx.export(
            Scored(model).eval(),
            sample,
            dynamo=True,
            opset_version=OPSET,
            input_names=["categorical", "numeric"],
            output_names=[OUTPUT],
            dynamic_shapes={"categorical": {0: batch}, "numeric": {0: batch}},
            external_data=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def _strip(proto: Any) -> None:
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
