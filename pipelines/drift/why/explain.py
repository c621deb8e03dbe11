"""What tells a window from the champion's training rows, in numbers a person can read. It explains; it decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from pipelines.drift.why import domain, embeddings
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
) -> dict[str, Any]:
    """:func:`explain` of the training rows and the window's, which ``sides`` reads; an error as a sentence, as no decision hangs on it."""
    try:
        before, now = sides()
        return explain(before, now, fields, ignore)
    except Exception as error:
        log.exception("the window could not be explained")
        return {"about": f"could not be explained ({type(error).__name__})"}


def explain(
    reference: pl.DataFrame, current: pl.DataFrame, fields: Fields, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """The domain classifier's answer as JSON values: ``{about, rows, auc: {value, low, high}, features | words}``.

    ``features`` ``[{feature, share}]`` name the fields that tell the samples apart, with their shares of the whole;
    of a text ``words`` ``[{word, coefficient}]`` (positive: more in the window), and ``vectors`` ``{mmd, p_value,
    projection_kl, centroid_cosine}`` of hashed words. Ignored fields take no part. Too few rows and ignoring all fields give ``about`` alone.
    """
    before, now = (_spread(frame, ROWS) for frame in (reference, current))
    if min(before.height, now.height) < LEAST:
        return {
            "about": f"{now.height} rows of the window and {before.height} of the reference are too few to explain anything (at least {LEAST})"
        }
    if fields.text is None and not set(fields.names) - set(ignore):
        return {"about": "every field is ignored: nothing is left to explain by"}
    rows = {"reference": before.height, "current": now.height}
    if fields.text is not None:
        name = fields.text.name
        told = [frame[name].cast(pl.String).fill_null("").to_list() for frame in (before, now)]
        auc, words = domain.telling_words(told[0], told[1], SHOWN)
        named = {"words": [{"word": word, "coefficient": round(weight, 3)} for word, weight in words.items()]}
        x, y = (
            embeddings.hashed(_spread(frame, VECTORS)[name].cast(pl.String).fill_null("").to_list())
            for frame in (before, now)
        )
        value, p_value = embeddings.mmd(x, y)
        vectors = {
            "mmd": round(value, 6),
            "p_value": round(p_value, 6),
            "projection_kl": round(embeddings.projection_kl(x, y), 6),
            "centroid_cosine": round(embeddings.centroid_cosine(x, y), 6),
        }
        found: dict[str, Any] = {**named, "vectors": vectors}
    else:
        auc, shares = domain.culprits(before, now, fields, ignore)
        found = {
            "features": [{"feature": name, "share": round(share, 4)} for name, share in list(shares.items())[:SHOWN]]
        }
    return {"about": _sentence(auc.value, auc.low, found), "rows": rows, "auc": auc.model_dump(), **found}


def _sentence(auc: float, low: float, found: dict[str, Any]) -> str:
    if low <= 0.5:
        return f"a classifier cannot tell the window from the training rows (AUC {auc:.2f})"
    if "words" in found:
        more = [one["word"] for one in found["words"] if one["coefficient"] > 0][:3]
        less = [one["word"] for one in found["words"] if one["coefficient"] < 0][:3]
        named = "; ".join(f"{how} {', '.join(words)}" for how, words in (("more of", more), ("less of", less)) if words)
    else:
        named = ", ".join(f"{one['feature']} ({one['share']:.0%})" for one in found["features"][:3])
    return f"a classifier tells the window from the training rows with AUC {auc:.2f}, by {named}"


def _spread(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """At most ``rows`` rows, evenly spread over the frame."""
    return frame if frame.height <= rows else frame[[position * frame.height // rows for position in range(rows)]]
