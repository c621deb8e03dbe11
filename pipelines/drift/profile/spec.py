"""The feature spec: how a case's numbers are laid on the histogram.

It is frozen once, so that profiles of any two days compare. ``profile.json`` holds ``loc`` and ``scale`` of every
numeric field, and of the numbers that a text is profiled by (pipelines/feature_names.py), and of a text the
``vocabulary`` that its words are counted over, under ``<field>.tokens``. The first ``dataset`` step of a case makes it
from its training rows, in the lake (:func:`freeze_spec`). One that lies in ``cases/<case>/`` comes before that, and
goes with the case wherever it is run; this command makes it, with the text field's name as a third argument where
there is one. Changing either starts a new line of profiles:

    python -m pipelines.drift.profile.spec <dataset>/train.parquet pipelines/cases/bank/profile.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import case_files, feature_names, objects
from pipelines.drift.profile.projections import project
from pipelines.drift.profile.vocabulary import freeze_words, split
from pipelines.encoding import unfolded
from pipelines.errors import ConfigError, DataError, IntegrityError, PerennialError
from pipelines.feature_names import ENTROPY, SCORE, is_vocabulary, shown_only
from pipelines.fields import RESERVED, Fields, Numeric, Scale
from pipelines.files import write_atomic, write_once
from pipelines.settings import Settings
from pipelines.storage import digest

LEAST_SPREAD = 1e-12
"""A spread below this share of the median is rounding."""
SEAL = "#sha256"
"""Under which a frozen file names the sha256 of all else in it; no field is called so.

One that people write has none.
"""
AGAIN = "make it again, see pipelines/drift/profile/spec.py"
UNIT = Scale(0.0, 1.0)
"""The scale of shares, probabilities and entropies: as they are."""


@dataclass(frozen=True)
class Spec:
    """The frozen scales of a case, and the ``vocabulary`` of its text.

    ``version`` names profiles that can be merged and compared. Without a vocabulary a text's words are not counted one
    by one.
    """

    version: str
    scales: dict[str, Scale]
    vocabulary: tuple[str, ...] = ()


def numbers(fields: Fields) -> tuple[str, ...]:
    """The names under which a case's numbers are profiled.

    They are its numeric fields, the ages of its moments, the summaries of its vectors, and what is counted of its text.
    """
    own = tuple(column.name for column in _numeric(fields))
    if fields.text is None:
        return own
    return (*own, feature_names.words(fields.text.name))


def _numeric(fields: Fields) -> list[Numeric]:
    return [column for column in fields.columns if isinstance(column, Numeric)]


def _scaled(fields: Fields) -> tuple[str, ...]:
    """The columns of rows that need a scale of their own: a predicted number has its label's."""
    return numbers(fields) if fields.number is None else (*numbers(fields), fields.label)


def count_words(texts: pl.Series) -> pl.Series:
    """Words of each text, separated by white space; null stays null.

    >>> count_words(pl.Series("text", ["a heap  overflow", "", None])).to_list()
    [3, 0, None]
    """
    return texts.cast(pl.String).str.count_matches(r"\S+").alias(feature_names.words(texts.name))


def with_counts(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """The frame with all of its columns and what is counted of its text beside it, and the declared shares.

    A share says of each row if a value is missing or undeclared.
    """
    told = [
        pl.when(pl.col(field.name).is_null())
        .then(pl.lit("missing"))
        .otherwise(pl.lit("given"))
        .alias(feature_names.missing_share(field.name))
        for field in fields.features
        if field.missing
    ]
    told += [
        pl.when(pl.col(field.name).is_in(field.values))
        .then(pl.lit("declared"))
        .when(pl.col(field.name).is_not_null())
        .then(pl.lit("other"))
        .alias(feature_names.other_share(field.name))
        for field in fields.categorical
        if field.other
    ]
    if fields.text is not None:
        frame = frame.with_columns(count_words(frame[fields.text.name]))
    return unfolded(frame, fields).with_columns(told)


def scale_of(spec: Spec, name: str) -> Scale | None:
    """The scale of a number as ``name`` in a reference; None of a category."""
    if shown_only(name) and not is_vocabulary(name):
        return spec.scales.get(name, UNIT)
    return spec.scales.get(name)


def entropy(given: pl.Series) -> pl.Series:
    """Shannon entropy in nats, ``-sum_k p_k ln p_k``, of each row's predicted distribution.

    0 is certain, ``ln K`` knows nothing. ``given``: the probability of the positive class (float64), or those of all
    classes (a list). Null stays null, NaN gives NaN. Source: Shannon, Bell System Technical Journal 27(3), 1948,
    section 6.

    >>> entropy(pl.Series("score", [0.5, 1.0, None])).round(6).to_list()
    [0.693147, 0.0, None]
    >>> entropy(pl.Series("scores", [[0.25] * 4, [1.0, 0.0, 0.0]])).round(6).to_list()
    [1.386294, 0.0]
    """
    if isinstance(given.dtype, pl.List):
        return given.list.eval(_surprise(pl.element())).list.sum().alias(ENTROPY)
    p = pl.col(given.name)
    other = 1 - p
    rest = pl.when(other > 0).then(-other * other.log()).otherwise(0.0)
    return given.to_frame().select((_surprise(p) + rest).alias(ENTROPY)).to_series()


def _surprise(p: pl.Expr) -> pl.Expr:
    """``-p ln p``, 0 where p is 0; a null stays null."""
    return pl.when(p > 0).then(-p * p.log()).otherwise(p.clip(0.0, 0.0))


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
    if abs(loc - middle) > width / 1000:
        loc = middle
    return Scale(loc=loc, scale=float(f"{1 / width:.6g}"))


def load_spec(fields: Fields, path: Path | None = None) -> Spec:
    """The case's spec, of the file in its folder or of ``path`` (``Settings.profile_file``).

    Raises ConfigError if there is none, or if it does not cover the declared numbers.
    """
    path = path or case_files.folder_of(fields.case) / "profile.json"
    objects.latest(path)
    found = _read(path)
    words = {name: tuple(map(str, value["vocabulary"])) for name, value in found.items() if is_vocabulary(name)}
    scales = {
        name: Scale(float(value["loc"]), float(value["scale"])) for name, value in found.items() if name not in words
    }
    scaled = numbers(fields)
    vocabulary: tuple[str, ...] = ()
    if fields.text is not None:
        scaled = (*scaled, *feature_names.projections(fields.text.name))
        vocabulary = words.get(feature_names.tokens(fields.text.name), ())
    missing = [name for name in _scaled(fields) if name not in scales]
    if missing:
        raise ConfigError(f"{path} has no scale for {', '.join(missing)}: {AGAIN}")
    if fields.text is not None and not vocabulary:
        raise ConfigError(f"{path} has no vocabulary for {fields.text.name}: {AGAIN}")
    if not scales.keys() >= set(scaled):
        raise ConfigError(f"{path} has no scales for {', '.join(sorted(set(scaled) - scales.keys()))}: {AGAIN}")
    predicted = UNIT if fields.number is None else scales[fields.label]
    kept = {name: scales[name] for name in scaled} | {SCORE: predicted}
    declared: dict[str, Any] = {
        "fields": fields.features_hash,
        "scales": {name: [scale.loc, scale.scale] for name, scale in kept.items()},
    }
    if vocabulary:
        declared["vocabulary"] = vocabulary
    return Spec(digest(declared)[:12], kept, vocabulary)


def freeze_spec(fields: Fields, settings: Settings, rows: Callable[[], pl.DataFrame | pl.LazyFrame]) -> Spec:
    """The case's spec, made of its canonical training ``rows`` where nothing has been frozen yet.

    Of rows that lie in a file one column is read at a time, where nothing has to be made of several.

    It then lies in the lake and stays as it is, whatever later runs are trained on; numbers that are declared later are
    added to it. A profile.json in the case's folder is read and never written. Raises what :func:`load_spec` raises.
    """
    path = settings.profile_file(fields.case)
    if path.is_relative_to(settings.lake_dir):
        objects.latest(path)
        if not path.exists():
            # Of two first runs that meet here, both go by what the first one wrote.
            write_once(path, objects.put_once(path, _sealed(fields, rows().lazy(), {})))
        elif _wanted(fields) - (known := _read(path)).keys():
            more = _sealed(fields, rows().lazy(), known)
            objects.replace(path, more)
            write_atomic(path, more)
    return load_spec(fields, path)


def _wanted(fields: Fields) -> set[str]:
    """All names that a frozen file of the case has to have."""
    if fields.text is None:
        return set(_scaled(fields))
    text = fields.text.name
    return {*_scaled(fields), *feature_names.projections(text), feature_names.tokens(text)}


def of_rows(fields: Fields, rows: pl.DataFrame) -> str:
    """The profile.json of a case's folder, made of canonical rows; "" if the case has nothing that needs a scale."""
    if not _wanted(fields):
        return ""
    return _bytes(_made_of(fields, rows.lazy(), {})).decode()


def _sealed(fields: Fields, rows: pl.LazyFrame, known: dict[str, Any]) -> bytes:
    """A frozen file: what is ``known`` stays as it is, the rest is made of the rows."""
    frozen = _made_of(fields, rows, known)
    return _bytes(frozen | {SEAL: digest(frozen)})


def _made_of(fields: Fields, rows: pl.LazyFrame, known: dict[str, Any]) -> dict[str, Any]:
    text = None if fields.text is None else fields.text.name
    there = rows.collect_schema().names()
    if text is not None or any(name not in there for name in fields.feature_names):
        rows = unfolded(rows.collect(), fields).lazy()
    unknown = {field.name for field in _numeric(fields) if field.missing and not _column(rows, field.name).count()}
    names = [field.name for field in _numeric(fields) if field.name not in unknown]
    if fields.number is not None:
        names.append(fields.label)
    frozen = _frozen(rows, names, text)
    # Nothing is known of a number that was always missing: it is counted as it is.
    frozen |= {
        field.name: {"loc": UNIT.loc, "scale": UNIT.scale} for field in _numeric(fields) if field.name in unknown
    }
    return frozen | known


def _column(rows: pl.LazyFrame, name: str) -> pl.Series:
    return rows.select(name).collect().to_series()


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        sealed = found.pop(SEAL, None)
        for name, value in found.items():
            _ = value["vocabulary"] if is_vocabulary(name) else (float(value["loc"]), float(value["scale"]))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist: the case's first training makes it, in its step 'dataset'"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a feature spec ({error!r}): {AGAIN}") from error
    if sealed is not None and sealed != digest(found):
        raise IntegrityError(
            f"{path} is not what was frozen: restore it; every bundle's spec.json has the scales that it was made with"
        )
    return found


def _frozen(rows: pl.LazyFrame, names: Sequence[str], text: str | None) -> dict[str, Any]:
    """Scales of the numbers ``names``, and of a ``text`` what is counted of it with its commonest words.

    Raises DataError if there is nothing to freeze of one of them.
    """
    if text is not None:
        texts = _column(rows, text)
        projected = project(split(texts))
        rows = rows.collect().with_columns(count_words(texts).cast(pl.Float64), *projected).lazy()
        names = [*names, feature_names.words(text), *projected.columns]
    found: dict[str, Any] = {}
    for name in names:
        column = _column(rows, name)
        values = column.cast(pl.Float64).drop_nulls().to_numpy()
        if not np.isfinite(values).any():
            raise DataError(f"{name} has no finite value in {column.len()} rows: no scale can be frozen from them")
        scale = freeze(values[np.isfinite(values)])
        found[name] = {"loc": scale.loc, "scale": scale.scale}
    if text is not None:
        found[feature_names.tokens(text)] = {"vocabulary": freeze_words(texts)}
    return found


def _bytes(frozen: dict[str, Any]) -> bytes:
    return f"{json.dumps(frozen, indent=1, ensure_ascii=False)}\n".encode()


def main(source: Path, target: Path, text: str = "") -> None:
    """Freeze the float64 columns of canonical rows, and what is counted of their ``text``.

    They are written as a case's profile.json. Raises DataError, and writes nothing, if there is nothing to freeze.
    """
    try:
        frame = pl.read_parquet(source)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source} cannot be read ({error}): give the train.parquet of a run's dataset step") from error
    if text and frame.schema.get(text) != pl.String:
        raise DataError(f"{source} has no text {text!r}: its texts are {', '.join(_texts(frame)) or 'none'}")
    columns = [name for name, kind in frame.schema.items() if kind == pl.Float64 and name != SCORE]
    if not columns and not text:
        raise DataError(
            f"{source} has no numbers: nothing was written; give the text field's name as third argument, "
            f"of {', '.join(_texts(frame)) or 'none'} "
            "(a case of categories alone needs no such file: its first training makes one)"
        )
    write_atomic(target, _bytes(_frozen(frame.lazy(), columns, text or None)))


def _texts(frame: pl.DataFrame) -> list[str]:
    return [name for name, kind in frame.schema.items() if kind == pl.String and name not in RESERVED]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except PerennialError as error:
        sys.exit(f"{type(error).__name__}: {error}")
