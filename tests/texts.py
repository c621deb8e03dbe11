"""A tiny text model with its tokenizer in the shape of a bundle, made without torch: for tests of what serves texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.text import TOKENIZER

WORDS = (
    "heap",
    "overflow",
    "in",
    "libpng",
    "script",
    "injection",
    "via",
    "crafted",
    "path",
    "traversal",
    "key",
    "leak",
)
MOST = 60
"""Tokens at which the tokenizer truncates: no multiple of any bucket's step."""


def write_text_bundle(folder: Path, outputs: int, seed: int) -> None:
    """model.onnx and tokenizer.json of one ``seed``.

    The words' ids differ from seed to seed, so that a model needs its own tokenizer. ``score = softmax(mean over the
    row's tokens of table[id] @ w)`` [B, outputs].
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    rng = np.random.default_rng(seed)
    ids = {word: int(place) + 3 for word, place in zip(WORDS, rng.permutation(len(WORDS)), strict=True)}
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, **ids}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_truncation(MOST)
    tokenizer.save(str(folder / TOKENIZER))
    constants = {
        "table": rng.normal(size=(len(WORDS) + 3, 8)).astype(np.float32),
        "w": rng.normal(size=(8, outputs)).astype(np.float32),
        "last": np.array([2], np.int64),
        "tokens": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked"]),
        helper.make_node("Cast", ["attention_mask"], ["own"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["own", "last"], ["mask"]),
        helper.make_node("Mul", ["looked", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["summed", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["score"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", outputs])
    graph = helper.make_graph(
        nodes, "texts", inputs, [output], [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx"
    )


def some_texts(count: int, seed: int = 0, longest: int = 90) -> list[str]:
    """Texts of 1 to ``longest`` words, so that some are truncated."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]
