"""A fitted estimator as an ONNX graph with the case's signature, byte for byte a function of what was learned.

skl2onnx and onnxmltools convert the estimator itself, on the matrix of its design; the design before it and the choice
of answers behind it are a few nodes of our own.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.encoding import signature
from pipelines.errors import ConfigError
from pipelines.estimators import thresholds
from pipelines.estimators.design import SCALED_MOST
from pipelines.estimators.fitting import Fitted, seen_share
from pipelines.estimators.words import Words
from pipelines.fields import Fields

CONVERTERS = {"lightgbm": "onnxmltools.convert_lightgbm", "xgboost": "onnxmltools.convert_xgboost"}
"""What converts a family; all others: ``skl2onnx.to_onnx``."""
OPSET = 15
"""Of the default domain: the newest that onnxmltools writes."""
_MATRIX = "design"
_TYPES = {"int64": 7, "float32": 1}
"""ONNX's numbers for types of tensors."""


def converter(family: str) -> str:
    """The name of what converts a family, for messages."""
    return CONVERTERS.get(family, "skl2onnx.to_onnx")


def learned_sha256(fitted: Fitted, fields: Fields) -> str:
    """sha256 of what was learned, as its graph: equal fits have equal hashes, whatever the pickle's bytes."""
    return hashlib.sha256(graph(fitted, fields).SerializeToString(deterministic=True)).hexdigest()


def graph(fitted: Fitted, fields: Fields) -> Any:
    """The model as ONNX: inputs and output of :func:`pipelines.encoding.signature`, the batch free.

    Raises ConfigError if the estimator cannot be converted.
    """
    import onnx
    from onnx import helper

    core = _converted(fitted)
    nodes = _Nodes()
    _lay_out(nodes, fitted)
    answered = _attach(nodes, core)
    _answer(nodes, fitted, answered)
    inputs, output = signature(fields)
    free = [
        ["batch" if axis == 0 else "seq" if size < 0 else size for axis, size in enumerate(one["shape"])]
        for one in (*inputs, output)
    ]
    *given, score = [
        helper.make_tensor_value_info(one["name"], _TYPES[one["dtype"]], shape)
        for one, shape in zip((*inputs, output), free, strict=True)
    ]
    needed = _needed(nodes.nodes, score.name)
    read = {name for node in needed for name in node.input}
    constants = [constant for constant in nodes.constants if constant.name in read]
    whole = helper.make_graph(needed, fields.case, given, [score], constants)
    learned = max([entry.version for entry in core.opset_import if entry.domain == "ai.onnx.ml"], default=1)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", learned)]
    model = helper.make_model(whole, opset_imports=opsets, producer_name="perennial", ir_version=core.ir_version)
    for node in model.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(model)
    return model


@dataclass
class _Nodes:
    """A graph in the making."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """One node; returns the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """One constant, an array or a number of numpy's; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _lay_out(nodes: _Nodes, fitted: Fitted) -> None:
    """:func:`pipelines.estimators.design.matrix` as nodes."""
    design = fitted.design
    parts: list[str] = []
    if design.words is not None:
        parts.append(_words(nodes, design.words))
    if design.by_value:
        for column, size in enumerate(design.sizes):
            position = nodes.constant(f"column{column}", np.array([column], np.int64))
            codes = nodes.add("Gather", ["categorical", position], f"codes{column}", axis=1)
            known = nodes.constant(f"codes{column}.all", np.arange(size, dtype=np.int64)[None, :])
            same = nodes.add("Equal", [codes, known], f"same{column}")
            parts.append(nodes.add("Cast", [same], f"onehot{column}", to=_TYPES["float32"]))
    elif design.sizes:
        parts.append(nodes.add("Cast", ["categorical"], "codes", to=_TYPES["float32"]))
    if design.width:
        parts.append(_numbers(nodes, fitted))
    whole = parts[0]
    if len(parts) > 1:
        whole = nodes.add("Concat", parts, "whole", axis=1)
    if design.words is None or fitted.family != "xgboost":
        nodes.add("Identity", [whole], _MATRIX)
        return
    # XGBoost takes what no sparse row holds as missing, not as 0.
    absent = nodes.add("Equal", [whole, nodes.constant("zero", np.array(0, np.float32))], "absent")
    nodes.add("Where", [absent, nodes.constant("nan", np.array(np.nan, np.float32)), whole], _MATRIX)


def _words(nodes: _Nodes, words: Words) -> str:
    """:meth:`pipelines.estimators.words.Words.matrix` as nodes, dense."""
    singles, pairs = words.words, words.pairs
    counts = nodes.add(
        "TfIdfVectorizer",
        ["input_ids"],
        "counts",
        mode="TF",
        min_gram_length=1,
        max_gram_length=2 if len(pairs) else 1,
        max_skip_count=0,
        ngram_counts=[0, len(singles)] if len(pairs) else [0],
        ngram_indexes=range(words.columns),
        pool_int64s=np.concatenate([singles, pairs.reshape(-1)]).tolist(),
    )
    if words.weigh is None:
        return counts
    # Of no count the logarithm is below every number, and stays 0.
    logarithms = nodes.add("Log", [counts], "logarithms")
    one = nodes.constant("one", np.array(1, np.float32))
    frequencies = nodes.add("Relu", [nodes.add("Add", [logarithms, one], "risen")], "frequencies")
    idf = nodes.constant("idf", words.weigh.idf_.astype(np.float32))
    weights = nodes.add("Mul", [frequencies, idf], "weights")
    length = nodes.add("ReduceL2", [weights], "length", axes=[1], keepdims=1)
    least = nodes.constant("tiny", np.array(np.finfo(np.float32).tiny))
    return nodes.add("Div", [weights, nodes.add("Max", [length, least], "divisor")], "words")


def _numbers(nodes: _Nodes, fitted: Fitted) -> str:
    design = fitted.design
    if design.layout == "codes":
        return "numeric"
    missing = nodes.add("IsNaN", ["numeric"], "missing")
    filled = nodes.add("Where", [missing, nodes.constant("fill", design.fill), "numeric"], "filled")
    if design.holes:
        indicators = nodes.add("Cast", [missing], "indicators", to=_TYPES["float32"])
        holes = nodes.constant("holes", np.array(design.holes, np.int64))
        chosen = nodes.add("Gather", [indicators, holes], "indicated", axis=1)
        filled = nodes.add("Concat", [filled, chosen], "behind", axis=1)
    if design.layout == "filled":
        return filled
    centred = nodes.add("Sub", [filled, nodes.constant("mean", design.mean)], "centred")
    scaled = nodes.add("Mul", [centred, nodes.constant("scale", design.scale)], "scaled")
    low, high = nodes.constant("least", -SCALED_MOST), nodes.constant("most", SCALED_MOST)
    return nodes.add("Clip", [scaled, low, high], "clipped")


def _converted(fitted: Fitted) -> Any:
    """The estimator itself as ONNX, of its matrix."""
    levels = {name: logging.getLogger(name).level for name in ("skl2onnx", "onnxmltools")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _convert(fitted)
    except Exception as error:
        # Converters raise whatever their parsers meet; each of it means that there is no such graph.
        raise ConfigError(
            f"{converter(fitted.family)} cannot convert {type(fitted.estimator).__name__} ({error}): "
            "choose another family, or parameters that it converts"
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _convert(fitted: Fitted) -> Any:
    shape = [None, fitted.design.columns]
    if fitted.family in CONVERTERS:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        convert = getattr(onnxmltools, CONVERTERS[fitted.family].partition(".")[2])
        given: dict[str, Any] = {"initial_types": [(_MATRIX, FloatTensorType(shape))], "target_opset": OPSET}
        if fitted.family == "lightgbm":
            return convert(thresholds.of_lightgbm(fitted.estimator), zipmap=False, **given)
        return convert(fitted.estimator, **given)
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    learned = thresholds.of_sklearn(fitted.estimator)
    options = {} if fitted.bounds is not None else {id(learned): {"zipmap": False}}
    types = [(_MATRIX, FloatTensorType(shape))]
    return to_onnx(learned, initial_types=types, options=options, target_opset={"": OPSET, "ai.onnx.ml": 3})


def _attach(nodes: _Nodes, core: Any) -> str:
    """Put the converted graph behind the matrix; returns the name of its last output, the probabilities or numbers."""
    from onnx import compose

    inner = compose.add_prefix(core, "core/").graph
    nodes.add("Identity", [_MATRIX], inner.input[0].name)
    nodes.nodes += inner.node
    nodes.constants += inner.initializer
    return str(inner.output[-1].name)


def _answer(nodes: _Nodes, fitted: Fitted, answered: str) -> None:
    """What :func:`pipelines.estimators.fitting.answers` makes of the estimator's output, as nodes."""
    if fitted.bounds is not None:
        shape = nodes.constant("column", np.array([-1, 1], np.int64))
        numbers = nodes.add("Reshape", [answered, shape], "numbers")
        low, high = (
            nodes.constant(name, np.float32(at)) for name, at in zip(("low", "high"), fitted.bounds, strict=True)
        )
        nodes.add("Clip", [numbers, low, high], "score")
    elif fitted.outputs == 1:
        nodes.add("Gather", [answered, nodes.constant("positive", np.array([1], np.int64))], "score", axis=1)
    elif len(fitted.classes) == fitted.outputs:
        nodes.add("Identity", [answered], "score")
    else:
        spread = np.zeros((len(fitted.classes), fitted.outputs), np.float32)
        spread[range(len(fitted.classes)), list(fitted.classes)] = seen_share(fitted)
        rest = np.full(fitted.outputs, fitted.unseen, np.float32)
        rest[list(fitted.classes)] = 0.0
        placed = nodes.add("MatMul", [answered, nodes.constant("spread", spread)], "placed")
        nodes.add("Add", [placed, nodes.constant("unseen", rest)], "score")


def _needed(nodes: list[Any], output: str) -> list[Any]:
    """The nodes that the output hangs on, in their order: converters compute labels, too."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
