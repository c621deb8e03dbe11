"""A text's words against a vocabulary that was frozen with the case's feature spec.

How many are unknown, and which they are. The vocabulary is never learned from a window, so counts of any two windows
add up and compare.
"""

from __future__ import annotations

import polars as pl

SIZE = 256
"""Words of a frozen vocabulary, and one bin for all others."""
_WORD = r"[\p{L}\p{N}]{2,}"


def split(texts: pl.Series) -> pl.Series:
    """Lists of each text's words: lower case, letters and digits, at least two of them; null stays null.

    >>> split(pl.Series("text", ["A heap overflow in libpng-1.2 (CVE)", "", None])).to_list()
    [['heap', 'overflow', 'in', 'libpng', 'cve'], [], None]
    """
    return texts.cast(pl.String).str.normalize("NFC").str.to_lowercase().str.extract_all(_WORD)


def freeze_words(texts: pl.Series, size: int = SIZE) -> tuple[str, ...]:
    """The commonest ``size`` words, the commonest first, of equally common ones the first of the alphabet.

    >>> freeze_words(pl.Series(["a heap overflow", "an overflow"]), 2)
    ('overflow', 'an')
    """
    counts = split(texts).explode().drop_nulls().rename("word").value_counts(name="count")
    return tuple(counts.sort(["count", "word"], descending=[True, False])["word"].head(size))


def unknown_shares(words: pl.Series, vocabulary: tuple[str, ...]) -> pl.Series:
    """Share of each list of words that is not in the vocabulary, float64; null of none and of a text without words.

    >>> unknown_shares(pl.Series("text", [["heap", "flaw", "heap", "leak"], [], None]), ("heap",)).to_list()
    [0.5, None, None]
    """
    known = words.list.eval(pl.element().is_in(list(vocabulary))).list.sum()
    total = words.list.len()
    shares = pl.DataFrame({"known": known.cast(pl.Float64), "total": total.cast(pl.Float64)})
    return shares.select(pl.when(pl.col("total") > 0).then(1 - pl.col("known") / pl.col("total"))).to_series()


def tokens(words: pl.Series) -> pl.Series:
    """All words of all texts, one value each.

    >>> tokens(pl.Series("text", [["heap", "flaw"], [], None])).to_list()
    ['heap', 'flaw']
    """
    return words.explode().drop_nulls()
