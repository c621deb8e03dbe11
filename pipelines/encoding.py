"""From a case's raw columns to its model's input tensors, whatever the kind of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import DataError
from pipelines.fields import Fields, encode
from pipelines.text import TOKENIZER, load_tokenizer, pad, tokenise

if TYPE_CHECKING:
    from numpy.typing import NDArray

Columns = Mapping[str, Sequence[Any]]
Encode = Callable[[Columns], "dict[str, NDArray[Any]]"]


def encoder(fields: Fields, folder: Path) -> Encode:
    """The function from columns of raw values to the tensors of :func:`pipelines.fields.signature`.

    ``folder`` is a model's bundle, or any folder with its ``tokenizer.json``; a tabular case does not look
    at it. Texts of one call are padded to the longest of them.
    """
    return partial(encode, fields) if fields.text is None else partial(_encode_text, fields, load_tokenizer(folder / TOKENIZER))


def _encode_text(fields: Fields, tokenizer: Any, columns: Columns) -> dict[str, NDArray[Any]]:
    assert fields.text is not None
    texts = columns.get(fields.text.name)
    if texts is None or any(not isinstance(text, str) for text in texts):
        raise DataError(f"{fields.case}: field {fields.text.name} is missing or not text: send a string in every row")
    return {**pad(tokenise(tokenizer, texts))}
