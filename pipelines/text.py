"""Texts to token ids: one function for training, evaluation and serving, so that none can drift from the others."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENS = ("input_ids", "attention_mask")
"""The tensors ``[B, S]`` of texts: those of :func:`pad`, and the only ones with a free second axis."""
TOKENIZER = "tokenizer.json"
"""The file beside a model that says how its texts become ids; it carries the truncation, and no padding."""


def normalise(text: str) -> str:
    r"""Canonical composition (NFC), control and format characters as spaces, runs of white space as one space.

    >>> normalise("  Buffer\toverflow\u200b in\r\nlibpng ")
    'Buffer overflow in libpng'
    """
    composed = unicodedata.normalize("NFC", text)
    spaced = "".join(" " if unicodedata.category(char) in {"Cc", "Cf"} else char for char in composed)
    return " ".join(spaced.split())


_MEND = "run the step that wrote it again"


def load_tokenizer(path: Path) -> Any:
    """The Hugging Face tokenizer of a ``tokenizer.json``, kept per file.

    Raises ConfigError if the file is missing, IntegrityError if it is no tokenizer or has no truncation.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: a text model needs its tokenizer; {_MEND}") from error
    return _load(str(path), found.st_ino, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _load(path: str, _inode: int, _modified: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:
        # The Rust side raises bare Exceptions; each of them means that the file is no tokenizer.
        raise IntegrityError(f"{path} is no tokenizer ({error}): restore it, or remove it and {_MEND}") from error
    if tokenizer.truncation is None:
        raise IntegrityError(
            f"{path} truncates nothing: a long text would reach the model whole; set max_tokens and train again"
        )
    tokenizer.no_padding()
    return tokenizer


def tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text once normalised, special tokens included, truncated as the tokenizer says; none is padded."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast([normalise(text) for text in texts])]


def pad(ids: Sequence[Sequence[int]], to: int | None = None) -> dict[str, NDArray[np.int64]]:
    """``input_ids`` and ``attention_mask``, int64 ``[B, S]``: zeros behind each row's ids.

    S is the longest row's length and at least 1, or ``to``.
    """
    import numpy as np

    width = to or max([1, *map(len, ids)])
    tokens = np.zeros((len(ids), width), np.int64)
    mask = np.zeros((len(ids), width), np.int64)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = own
        mask[row, : len(own)] = 1
    return {"input_ids": tokens, "attention_mask": mask}
