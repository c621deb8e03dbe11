"""A text model of two small layers with its tokenizer: what a bundle of texts is made of, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipelines.fields import Fields, Text
from pipelines.text import TOKENIZER

CLASSES = ("crypto", "memory", "network", "web")
FIELDS = Fields(case="reports", label="team", classes=CLASSES, fields=(Text("report", 4000, "what was reported"),))
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{number}" for number in range(96)))
MOST = 40
"""Tokens at which the tokenizer truncates."""


class TinyEncoder(torch.nn.Module):
    """Two transformer blocks, the mean over the tokens that are there, and a linear head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        self.encoder = BertModel(sizes, add_pooling_layer=False)
        self.head = torch.nn.Linear(32, outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, outputs]`` of token ids and mask ``[B, S]``."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.head((states * there).sum(1) / there.sum(1).clamp(min=1))


def made_model(outputs: int = len(CLASSES), seed: int = 0) -> torch.nn.Module:
    """The tiny encoder with random weights, large enough that its classes differ."""
    torch.manual_seed(seed)
    model = TinyEncoder(outputs)
    torch.nn.init.normal_(model.head.weight, std=1.0)
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """One word, one token, between [CLS] and [SEP]; truncated at ``MOST``."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(MOST)
    tokenizer.save(str(folder / TOKENIZER))


def reports(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 words, so that some are truncated."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS[4:], generator.integers(1, 61))) for _ in range(count)]


def write_dynamic(folder: Path, target: Path) -> None:
    """Quantise ``folder/model.onnx`` as no bundle may be: int8 activations with one scale over all rows of a call."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load(folder / "model.onnx")
    del proto.graph.value_info[:]
    source = target.with_suffix(".source")
    onnx.save(proto, source)
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    source.unlink()
