"""A tiny ONNX model in the shape of a bundle, made without torch: for tests of what serves models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 1024
input [
  {{ name: "categorical" data_type: TYPE_INT64 dims: [ 2 ] }},
  {{ name: "numeric" data_type: TYPE_FP32 dims: [ 3 ] }}
]
output [ {{ name: "score" data_type: TYPE_FP32 dims: [ 1 ] }} ]
version_policy {{ all {{}} }}
dynamic_batching {{ max_queue_delay_microseconds: 5000 }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters [
  {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }},
  {{ key: "session.intra_op.allow_spinning" value {{ string_value: "0" }} }}
]
"""


def write_onnx(path: Path, bias: float = 0.0) -> None:
    """``score = sigmoid(sum(embedding[categorical]) + numeric @ w + bias)``.

    Codes 0..4, so that a code of 5 fails inside the graph.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    constants = {
        "table": rng.normal(size=5).astype(np.float32),
        "w": rng.normal(size=(3, 1)).astype(np.float32),
        "bias": np.array([bias], np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "categorical"], ["looked"]),
        helper.make_node("ReduceSum", ["looked", "axes"], ["summed"], keepdims=1),
        helper.make_node("MatMul", ["numeric", "w"], ["dense"]),
        helper.make_node("Add", ["summed", "dense"], ["both"]),
        helper.make_node("Add", ["both", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("categorical", TensorProto.INT64, ["batch", 2]),
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def write_model(repository: Path, name: str, *biases: float) -> None:
    """A model ``name`` in a Triton repository with one version (1, 2, ...) per bias."""
    for version, bias in enumerate(biases, start=1):
        write_onnx(repository / name / str(version) / "model.onnx", bias)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))


def tiny_rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Input tensors for ``count`` rows."""
    rng = np.random.default_rng(seed)
    return {"categorical": rng.integers(0, 5, (count, 2)), "numeric": rng.normal(size=(count, 3)).astype(np.float32)}
