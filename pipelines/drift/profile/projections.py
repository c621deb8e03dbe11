"""A text's hashed words on a few fixed random directions: embeddings as numbers that a profile can count and add up.

For a text with word counts hashed into ``v [256]`` (as in embeddings.py, signed), and a matrix ``R [256, 8]`` of +1 and
-1 that stands here for ever: ``v R / |v|``, about normal with variance 1 whatever the text. Sums of whole numbers are
exact, so a text has the same eight numbers alone and among millions. Source: Weinberger et al., Feature Hashing for
Large Scale Multitask Learning, ICML 2009; Achlioptas, Database-friendly random projections, Journal of Computer and
System Sciences 66(4), 2003.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import feature_names

Floats = NDArray[np.float64]

HASHED = 256
"""Slots that words are hashed into, here and in embeddings.py, which spells out what is counted here in bulk."""
SEED = "perennial projection"
"""Another seed is another line of profiles: the frozen scales of profile.json would not fit."""
_AT_ONCE = 1 << 12
"""Texts whose hashed words are held at once: 8 MB."""


@cache
def directions() -> Floats:
    """``R [256, 8]``: a row is the first byte of a hash, a bit per direction."""
    first = [hashlib.sha256(f"{SEED} {slot}".encode()).digest()[0] for slot in range(HASHED)]
    found: Floats = np.unpackbits(np.array(first, np.uint8)[:, None], axis=1).astype(np.float64) * 2 - 1
    return found


def project(words: pl.Series) -> pl.DataFrame:
    """The projections of each list of words, float64 ``[n, 8]``, named as the text's.

    Null of none and of a text without words.

    >>> found = project(pl.Series([["heap", "flaw"], ["flaw", "heap"], ["heap"], [], None]))
    >>> found.row(0) == found.row(1), set(map(abs, found.row(2))), found.null_count().row(0)[:2]
    (True, {1.0}, (2, 2))
    """
    names = feature_names.projections(words.name)
    projected = np.concatenate(
        [np.empty((0, len(names))), *(_project(words.slice(at, _AT_ONCE)) for at in range(0, words.len(), _AT_ONCE))]
    )
    return pl.DataFrame(projected, schema=dict.fromkeys(names, pl.Float64)).fill_nan(None)


def _project(words: pl.Series) -> Floats:
    flat = words.explode().drop_nulls()
    own = flat.unique()
    codes = (
        flat.replace_strict(own, [zlib.crc32(word.encode()) for word in own], return_dtype=pl.UInt32)
        .cast(pl.UInt32)
        .to_numpy()
    )
    rows = np.repeat(np.arange(words.len()), words.list.len().fill_null(0).to_numpy())
    hashed = np.bincount(
        rows * HASHED + codes % HASHED, np.where(codes >> 31, 1.0, -1.0), words.len() * HASHED
    ).reshape(-1, HASHED)
    lengths = np.sqrt((hashed**2).sum(axis=1))
    # Words may cancel out: such a text lies at the origin of every direction, and one without words nowhere.
    lengths[(lengths == 0) & (np.bincount(rows, minlength=words.len()) > 0)] = 1.0
    with np.errstate(invalid="ignore"):
        found: Floats = hashed @ directions() / lengths[:, None]
    return found
