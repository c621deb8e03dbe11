"""A version as the gateway uses it: its number, and how rows become its input tensors."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.contracts import Release
from pipelines.encoding import BUNDLE, Columns, Encode, encoder
from pipelines.errors import PerennialError, Unavailable
from pipelines.fields import EARLIEST, EVENT_TIME, Categorical, Field, Fields, Flag, Moment, Numeric, Vector
from pipelines.files import file_sha256
from pipelines.parts import Part, cut
from pipelines.text import TOKENIZER, load_tokenizer

READ = (BUNDLE, TOKENIZER)
"""What the gateway reads of a bundle; it is what was released, or the version is not served."""
INLINE_CHARACTERS = 2_000
"""Shorter texts (all of a request together) are tokenised on the spot: in less than a millisecond."""


@dataclass(frozen=True)
class Version:
    """One version of a case, and its own encoding.

    ``text`` names the text field ("": none), ``longest`` is the tokenizer's truncation.
    """

    number: int
    encode: Encode
    text: str = ""
    longest: int = 0

    async def parts(self, columns: Columns) -> list[Part]:
        """The inferences for columns of raw values.

        Much text is tokenised in a thread, so that other requests go on.
        """
        if self.text and sum(len(text or "") for text in columns[self.text]) > INLINE_CHARACTERS:
            return await asyncio.to_thread(self._parts, columns)
        return self._parts(columns)

    def _parts(self, columns: Columns) -> list[Part]:
        return cut(self.encode(columns), self.longest)


def load(root: Path, fields: Fields, release: Release) -> Version:
    """The version of a release, its tokenizer read from its own bundle below ``root``; for a thread.

    Raises Unavailable with the reason if it may not be served with ``fields``, or its bundle is not whole.
    """
    name = f"{release.case} version {release.champion}"
    try:
        folder = storage.find(root / release.bundle, release.candidate_key, verify=READ)
        about = json.loads((folder / BUNDLE).read_text())
        trained_with = about["fields_hash"]
    except (PerennialError, OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"{name}: its bundle.json cannot be read, so its fields are not known ({error}): restore {release.bundle}"
        ) from error
    if trained_with != fields.hash:
        raise Unavailable(
            f"{name} was trained with other fields ({str(trained_with)[:12]}) than this gateway has "
            f"({fields.hash[:12]}): "
            "deploy the gateway that belongs to it, or train a version with these fields"
        )
    try:
        if fields.text is None:
            return Version(release.champion, encoder(fields, folder))
        if about.get("tokenizer_sha256") != file_sha256(folder / TOKENIZER):
            raise Unavailable(f"{TOKENIZER} is not the one that its bundle.json names")
        version = Version(
            release.champion,
            encoder(fields, folder),
            fields.text.name,
            load_tokenizer(folder / TOKENIZER).truncation["max_length"],
        )
        version.encode(probe(fields))  # the first call is the slow one
    except (PerennialError, OSError) as error:
        raise Unavailable(f"{name}: {error}: restore {release.bundle}") from error
    return version


def probe(fields: Fields) -> dict[str, list[Any]]:
    """What encoding reads of one valid row."""
    columns = {field.name: [_valid(field)] for field in fields.raw} | {EVENT_TIME: [EARLIEST]}
    return {name: columns[name] for name in fields.reads}


def _valid(field: Field) -> Any:
    if isinstance(field, Numeric):
        return field.low if field.low is not None else 0.0
    if isinstance(field, Categorical | Flag):
        return next(iter(field.codes))
    if isinstance(field, Vector):
        return [0.0] * field.size
    return EARLIEST if isinstance(field, Moment) else field.name
