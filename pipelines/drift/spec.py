"""The feature spec: how a case's numbers are laid on the histogram, frozen once, so that profiles of any two days compare.

``cases/<case>/profile.json`` holds ``loc`` and ``scale`` of every numeric field, and of the numbers that a text is
profiled by (:func:`numbers`, :func:`projections`), and of a text the ``vocabulary`` that its words are counted over, under
``<field>.tokens``. It was made from the case's first window by this file's command, with the text field's name as a third
argument where there is one, and changing it starts a new line of profiles:

    python -m pipelines.drift.spec runs/local/artefacts/bank/20080801T000000Z/dataset/train.parquet pipelines/cases/bank/profile.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.config import CASES_ROOT
from pipelines.drift.projections import SUFFIXES, project
from pipelines.drift.vocabulary import TOKENS, UNKNOWN, freeze_words, split
from pipelines.errors import ConfigError
from pipelines.fields import ENTROPY, PREDICTION, SCORE, WORDS, Fields, Scale
from pipelines.storage import digest, write_atomic

OUTPUTS = (SCORE, PREDICTION)
"""What comes out of the model; all other features go in."""
BY_VERSION = (*OUTPUTS, ENTROPY)
"""What a day's profile holds once per champion, as ``<name>@<version>``; the entropy (:func:`entropy`) is shown only."""


LEAST_SPREAD = 1e-12
"""A spread below this share of the median is rounding."""
UNIT = Scale(0.0, 1.0)
"""The scale of shares, probabilities and entropies: as they are."""


@dataclass(frozen=True)
class Spec:
    """The frozen scales of a case, and the ``vocabulary`` of its text; ``version`` names profiles that can be merged and compared.

    Without a vocabulary a text's words are not counted one by one.
    """

    version: str
    scales: dict[str, Scale]
    vocabulary: tuple[str, ...] = ()


def numbers(fields: Fields) -> tuple[str, ...]:
    """The names under which a case's numbers are profiled: its numeric fields, and what is counted of its text."""
    return (*(field.name for field in fields.numeric), *(() if fields.text is None else (fields.text.name + WORDS,)))


def projections(text: str) -> dict[str, str]:
    """The names under which a text's projections are profiled, by their suffix. Shown only.

    >>> projections("text")[".projection1"]
    'text.projection1'
    """
    return {suffix: text + suffix for suffix in SUFFIXES}


def count_words(texts: pl.Series) -> pl.Series:
    """Words of each text, separated by white space; null stays null.

    >>> count_words(pl.Series("text", ["a heap  overflow", "", None])).to_list()
    [3, 0, None]
    """
    return texts.cast(pl.String).str.count_matches(r"\S+").alias(texts.name + WORDS)


def shown_only(name: str) -> bool:
    """Whether a profiled feature is measured for people and takes no part in any test; ``name`` with or without its version.

    >>> shown_only("entropy@3"), shown_only("text.tokens"), shown_only("score@3")
    (True, True, False)
    """
    return name.partition("@")[0] == ENTROPY or name.endswith((TOKENS, UNKNOWN, *SUFFIXES))


def scale_of(spec: Spec, name: str) -> Scale | None:
    """The scale of a number as ``name`` in a reference; None of a category."""
    return spec.scales.get(name, UNIT if shown_only(name) and not name.endswith(TOKENS) else None)


def entropy(given: pl.Series) -> pl.Series:
    """Shannon entropy in nats, ``-sum_k p_k ln p_k``, of each row's predicted distribution; 0 is certain, ``ln K`` knows nothing.

    ``given``: the probability of the positive class (float64), or those of all classes (a list). Null stays null, NaN gives NaN.
    Source: Shannon, Bell System Technical Journal 27(3), 1948, section 6.

    >>> entropy(pl.Series("score", [0.5, 1.0, None])).round(6).to_list()
    [0.693147, 0.0, None]
    >>> entropy(pl.Series("scores", [[0.25] * 4, [1.0, 0.0, 0.0]])).round(6).to_list()
    [1.386294, 0.0]
    """
    p = pl.element() if isinstance(given.dtype, pl.List) else pl.col(given.name)
    one = pl.when(p > 0).then(-p * p.log()).otherwise(p.clip(0.0, 0.0))  # a null stays null
    if isinstance(given.dtype, pl.List):
        return given.list.eval(one).list.sum().alias(ENTROPY)
    other = 1 - p
    rest = pl.when(other > 0).then(-other * other.log()).otherwise(0.0)
    return given.to_frame().select((one + rest).alias(ENTROPY)).to_series()


def freeze(values: NDArray[np.float64]) -> Scale:
    """``loc`` = median, ``scale`` = 1 / IQR, else 1 / standard deviation, else 1 (bank's pdays is 999 in 96% of rows).

    Both have six digits; ``loc`` has all of them where six would move it by a part of the spread (a time in seconds).

    >>> freeze(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    Scale(loc=3.0, scale=0.5)
    >>> freeze(np.array([7.0, 7.0, 7.0]))
    Scale(loc=7.0, scale=1.0)
    """
    low, middle, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    # What rounding leaves of a constant, at any scale, is no spread.
    width = next((width for width in (high - low, float(np.std(values))) if width > LEAST_SPREAD * abs(middle)), 1.0)
    loc = float(f"{middle:.6g}")
    return Scale(loc=loc if abs(loc - middle) <= width / 1000 else middle, scale=float(f"{1 / width:.6g}"))


def load_spec(fields: Fields, path: Path | None = None) -> Spec:
    """The case's spec. Raises ConfigError if profile.json is missing or does not cover the declared numbers."""
    path = path or CASES_ROOT / fields.case / "profile.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        words = {name: tuple(map(str, value["vocabulary"])) for name, value in found.items() if name.endswith(TOKENS)}
        scales = {name: Scale(float(value["loc"]), float(value["scale"])) for name, value in found.items() if name not in words}
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: make it from the case's first rows, see pipelines/drift/spec.py") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a feature spec ({error!r}): make it again, see pipelines/drift/spec.py") from error
    scaled = (*numbers(fields), *(() if fields.text is None else projections(fields.text.name).values()))
    missing = [name for name in numbers(fields) if name not in scales]
    if missing:
        raise ConfigError(f"{path} has no scale for {', '.join(missing)}: make it again, see pipelines/drift/spec.py")
    vocabulary = () if fields.text is None else words.get(fields.text.name + TOKENS, ())
    if fields.text is not None and not vocabulary:
        raise ConfigError(f"{path} has no vocabulary for {fields.text.name}: make it again, see pipelines/drift/spec.py")
    if not scales.keys() >= set(scaled):
        raise ConfigError(f"{path} has no scales for {', '.join(sorted(set(scaled) - scales.keys()))}: make it again, see pipelines/drift/spec.py")
    kept = {name: scales[name] for name in scaled} | {SCORE: UNIT}
    declared: dict[str, Any] = {"fields": fields.hash, "scales": {name: [scale.loc, scale.scale] for name, scale in kept.items()}}
    if vocabulary:
        declared["vocabulary"] = vocabulary
    return Spec(digest(declared)[:12], kept, vocabulary)


def main(source: Path, target: Path, text: str = "") -> None:
    """Freeze the float64 columns of canonical rows, and what is counted of their ``text`` with its commonest words, and write them as a case's profile.json."""
    frame = pl.read_parquet(source)
    if text:
        projected = project(split(frame[text])).rename(projections(text))
        frame = frame.with_columns(count_words(frame[text]).cast(pl.Float64), *projected)
    columns = [name for name, kind in frame.schema.items() if kind == pl.Float64 and name != SCORE]
    scales = {name: freeze(frame[name].drop_nulls().drop_nans().to_numpy()) for name in columns}
    frozen: dict[str, Any] = {name: {"loc": scale.loc, "scale": scale.scale} for name, scale in scales.items()}
    if text:
        frozen[text + TOKENS] = {"vocabulary": freeze_words(frame[text])}
    write_atomic(target, f"{json.dumps(frozen, indent=1, ensure_ascii=False)}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
