"""A tiny pre-trained encoder with its tokenizer, made in the test: BERT's architecture at 2 layers, hidden size 64."""

from __future__ import annotations

import string
from pathlib import Path

WORDS = """
a an and the in of to via or before allows remote local attackers users attacker execute arbitrary code cause denial
service obtain sensitive information buffer overflow cross site scripting xss sql injection traversal directory
vulnerability memory corruption password certificate cryptographic permission privilege file path upload request
crafted web script html parameter plugin server
"""


def write_encoder(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a random BERT into ``folder``; returns it.

    Give ``str(folder)`` as ``model.encoder``. The vocabulary has about 150 pieces, letters among them, so that every
    text can be spelt; positions end at 128.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *characters,
        *(f"##{character}" for character in characters),
        *(word for word in WORDS.split() if len(word) > 1),
    ]
    vocabulary = {piece: code for code, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As real ones do: padding and truncation that the project must replace.
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(32)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=128,
        )
        BertModel(config).save_pretrained(folder)
    return folder
