"""What tells a window from the champion's training rows, in numbers a person can read.

It explains; it decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import polars as pl

from pipelines.contracts import Interval
from pipelines.drift.why import domain, embeddings
from pipelines.drift_report import Explanation, Share, Sides, Vectors, Word
from pipelines.feature_names import WORDS
from pipelines.fields import Fields

ROWS = 2_000
"""Rows of either sample that are looked at."""
VECTORS = 500
SHOWN = 10
LEAST = 20
"""Rows of either sample below which there is nothing to fit on."""

log = logging.getLogger(__name__)


def tell_apart(
    sides: Callable[[], tuple[pl.DataFrame, pl.DataFrame]], fields: Fields, ignore: Sequence[str] = ()
) -> Explanation:
    """:func:`explain` of the training rows and the window's, which ``sides`` reads.

    An error as a sentence, as no decision hangs on it.
    """
    try:
        before, now = sides()
        return explain(before, now, fields, ignore)
    except Exception as error:
        log.exception("the window could not be explained")
        return Explanation(about=f"could not be explained ({type(error).__name__})")


def explain(reference: pl.DataFrame, current: pl.DataFrame, fields: Fields, ignore: Sequence[str] = ()) -> Explanation:
    """The domain classifier's answer.

    ``features`` are the fields that tell the samples apart, of a text ``words``, and ``vectors`` distances of hashed
    words; of a text beside a table all three, with the AUC of all fields together. Ignored fields take no part, a text
    where its number of words is one. Too few rows and ignoring all fields give ``about`` alone.
    """
    before, now = (_spread(frame, ROWS) for frame in (reference, current))
    if min(before.height, now.height) < LEAST:
        few = f"{now.height} rows of the window and {before.height} of the reference are too few"
        return Explanation(about=f"{few} to explain anything (at least {LEAST})")
    rows = Sides(reference=before.height, current=now.height)
    if not fields.has_table:
        return _by_words(before, now, fields).model_copy(update={"rows": rows})
    ignored = {*ignore, *(words.removesuffix(WORDS) for words in ignore)}
    if not set(fields.feature_names) - ignored:
        return Explanation(about="every field is ignored: nothing is left to explain by")
    auc, shares = domain.culprits(before, now, fields, ignored)
    named = tuple(Share(feature=name, share=round(share, 4)) for name, share in list(shares.items())[:SHOWN])
    by = ", ".join(f"{one.feature} ({one.share:.0%})" for one in named[:3])
    found = Explanation(about=_sentence(auc, by), rows=rows, auc=auc, features=named)
    if fields.text is None or fields.text.name in ignored:
        return found
    of_text = _by_words(before, now, fields)
    return found.model_copy(update={"words": of_text.words, "vectors": of_text.vectors})


def _by_words(before: pl.DataFrame, now: pl.DataFrame, fields: Fields) -> Explanation:
    """:func:`explain` by the text alone."""
    assert fields.text is not None
    name = fields.text.name
    told = [domain.texts_of(frame[name]) for frame in (before, now)]
    auc, weights = domain.telling_words(told[0], told[1], SHOWN)
    words = tuple(Word(word=word, coefficient=round(weight, 3)) for word, weight in weights.items())
    x, y = (embeddings.hashed(domain.texts_of(_spread(frame, VECTORS)[name])) for frame in (before, now))
    value, p_value = embeddings.mmd(x, y)
    vectors = Vectors(
        mmd=round(value, 6),
        p_value=round(p_value, 6),
        projection_kl=round(embeddings.projection_kl(x, y), 6),
        centroid_cosine=round(embeddings.centroid_cosine(x, y), 6),
    )
    return Explanation(about=_sentence(auc, _telling(words)), auc=auc, words=words, vectors=vectors)


def _sentence(auc: Interval, by: str) -> str:
    if auc.low <= 0.5:
        return f"a classifier cannot tell the window from the training rows (AUC {auc.value:.2f})"
    return f"a classifier tells the window from the training rows with AUC {auc.value:.2f}, by {by}"


def _telling(words: Sequence[Word]) -> str:
    more = [one.word for one in words if one.coefficient > 0][:3]
    less = [one.word for one in words if one.coefficient < 0][:3]
    return "; ".join(f"{how} {', '.join(some)}" for how, some in (("more of", more), ("less of", less)) if some)


def _spread(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """At most ``rows`` rows, evenly spread over the frame."""
    return frame if frame.height <= rows else frame[[position * frame.height // rows for position in range(rows)]]
