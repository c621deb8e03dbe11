"""From a case's raw columns to its model's input tensors, whatever the kind of its fields.

Training and gateway encode by the same functions, and a model, its bundle and Triton have one :func:`signature`. A
number goes to the model as it is, as float32, and the model scales it by mean and deviation. Where that would lose
what it says (:func:`find_scales`), it is scaled in float64 before, by constants that travel in the bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelines import derived
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.fields import EVENT_TIME, WEEKDAYS, Categorical, Fields, Flag, Moment, Scale, Vector, as_kind
from pipelines.text import TOKENIZER, TOKENS, load_tokenizer, pad, tokenise

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

Columns = Mapping[str, Sequence[Any]]
Encode = Callable[[Columns], "dict[str, NDArray[Any]]"]


BUNDLE = "bundle.json"
"""What a bundle says about itself.

``scales`` in it are the constants of :func:`find_scales`, ``formulas`` those of its derived features.
"""
CONSTANT = 1e-12
"""A column whose values span less than this share of the largest of them is constant: float64 itself leaves 1e-16."""
RESOLVED = 1e-5
"""The least deviation, as a share of the mean, that float32 (6e-8) still resolves well."""
PLAIN = (1e-6, 1e30)
"""Deviations with which float32 arithmetic goes well."""
SPOILT = {0.01: 10.0, 0.05: 1000.0}
"""A share of the rows at either end -> how many times that of the rows between the deviation of all may be.

Above it, the rows at the ends spoil the deviation.
"""

SCALED_MOST = 10.0
"""Numbers that are scaled before they become float32 are clipped to +-10 standard deviations.

An outlier stays large, and finite.
"""

_MICROSECOND = timedelta(microseconds=1)
_DAYS = 1 / 86_400e6
"""Of a microsecond. A factor, as polars divides by one number in its own way."""
_BITS = 20
"""Of a vector so many binary digits are summarised, those of its largest number: sums of whole numbers are exact."""
_SEED = "perennial vector"
"""Another seed is another line of profiles."""
_CALENDAR: Mapping[str, Callable[[datetime], str]] = {
    "hour": lambda moment: str(moment.hour),
    "weekday": lambda moment: WEEKDAYS[moment.weekday()],
    "month": lambda moment: str(moment.month),
}
"""The calendar's parts of a moment in UTC, as values of :data:`pipelines.fields.CALENDAR`."""


def signature(fields: Fields) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The model's input tensors and its output, each ``{name, dtype, shape}``: of a text, then of a table.

    -1 is a free axis, the first one of them the batch. A model, its ONNX graph, its bundle and Triton's configuration
    all have this signature.
    """
    inputs: list[dict[str, Any]] = []
    if fields.text is not None:
        inputs += [{"name": name, "dtype": "int64", "shape": [-1, -1]} for name in TOKENS]
    if fields.has_table:
        inputs += [
            {"name": "categorical", "dtype": "int64", "shape": [-1, len(fields.categorical)]},
            {"name": "numeric", "dtype": "float32", "shape": [-1, fields.width]},
        ]
    return inputs, {"name": "score", "dtype": "float32", "shape": [-1, fields.outputs]}


def encode(
    fields: Fields,
    columns: Columns,
    scales: Mapping[str, Scale] = MappingProxyType({}),
    derive: derived.Derive | None = None,
) -> dict[str, NDArray[Any]]:
    """Turn columns of raw tabular values into the model's input tensors of a table (with texts: :func:`encoder`).

    Of a moment the parts are encoded (:func:`unfold`).

    Returns ``{"categorical": int64 [B, C], "numeric": float32 [B, N]}``: codes are positions in the declared
    vocabulary (:attr:`pipelines.fields.Categorical.codes`), numbers are as they are, NaN where one is missing that may
    be. Derived features are computed by ``derive`` (:func:`pipelines.derived.deriving`, made anew if not given). A
    number that has one of the ``scales`` is scaled in float64 first, and clipped to +-``SCALED_MOST``: float32 or one
    outlier would lose it. Raises DataError naming the field (never the value) if a column is missing, a category is
    unknown or a number is not finite as a float32. All other scaling, embedding and filling are the graph's work.
    """
    import numpy as np

    missing = [name for name in fields.reads if name not in columns]
    if missing:
        raise DataError(f"{fields.case}: field(s) {', '.join(missing)} missing: send all of {', '.join(fields.reads)}")
    columns = unfold(fields, columns)
    rows = len(columns[fields.inputs[0]])
    columns = (derive or derived.deriving(fields))(columns)
    categorical: NDArray[np.int64] = np.empty((rows, len(fields.categorical)), np.int64)
    for position, field in enumerate(fields.categorical):
        try:
            categorical[:, position] = _codes(field, columns[field.name])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{fields.case}: unknown category in {field.name}: use one of {', '.join(field.values)}"
            ) from error
    numeric: NDArray[np.float32] = np.empty((rows, fields.width), np.float32)
    with np.errstate(over="ignore"):  # what overflows is refused below
        for position, number in enumerate(fields.numeric):
            numeric[:, position] = columns[number.name]  # null becomes NaN
    start = len(fields.numeric)
    if not np.isfinite(single := numeric[:, :start]).all():
        _check_numbers(fields, single)
    if scales:
        for position, number in enumerate(fields.numeric):
            if number.name in scales:
                numeric[:, position] = _scaled(columns[number.name], scales[number.name])
    for vector in fields.vectors:
        numeric[:, start : start + vector.size] = _numbers_of(fields, vector, columns[vector.name])
        start += vector.size
    return {"categorical": categorical, "numeric": numeric}


def _numbers_of(fields: Fields, vector: Vector, values: Sequence[Any]) -> NDArray[np.float32]:
    """The vectors of rows, ``[B, size]``."""
    import numpy as np

    try:
        with np.errstate(over="ignore"):
            found = np.asarray(values, np.float32).reshape(len(values), vector.size)
    except (TypeError, ValueError) as error:
        mend = f"send a list of {vector.size} numbers in every row"
        raise DataError(f"{fields.case}: {vector.name} is no vector of that size: {mend}") from error
    if not np.isfinite(found).all():
        mend = "take the row out, or mend what sends it"
        raise DataError(f"{fields.case}: {vector.name}: must be finite and fit a 32-bit float: {mend}")
    return found


def unfold(fields: Fields, columns: Columns) -> Columns:
    """The columns of raw values with the parts of every moment beside it, null where it is; all names of ``reads``.

    For single rows; :func:`unfolded` has the same for a frame. Raises DataError for what is no time with a zone.
    """
    if not fields.moments:
        return columns
    found = dict(columns)
    for moment in fields.moments:
        try:
            for part, column in zip(moment.parts, moment.columns, strict=True):
                found[column.name] = _part(part, columns[moment.name], columns)
        except (AttributeError, TypeError) as error:
            mend = "send times with a time zone"
            raise DataError(f"{fields.case}: {moment.name} or {EVENT_TIME} is no time: {mend}") from error
    return found


def _part(part: str, times: Sequence[datetime | None], columns: Columns) -> list[str | float | None]:
    if part in _CALENDAR:
        read = _CALENDAR[part]
        return [None if time is None else read(time.astimezone(UTC)) for time in times]
    pairs = zip(times, columns[EVENT_TIME], strict=True)
    return [None if time is None else (event - time) // _MICROSECOND * _DAYS for time, event in pairs]


def unfolded(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """The frame with all of ``fields.columns``: parts of moments, derived features and summaries of vectors, too.

    Itself where it has them all. Parts and summaries are null where the value, or for an age the event time, is
    lacking.
    """
    if all(name in frame.columns for name in fields.feature_names):
        return frame
    return derived.with_derived(_with_parts(frame, fields), fields).with_columns(
        column for vector in fields.vectors for column in _summaries(frame, vector)
    )


def _with_parts(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """What :func:`unfold` gives of the same rows, in bulk."""
    import polars as pl

    if not fields.moments:
        return frame
    kind = pl.Datetime("us", "UTC")
    names = [EVENT_TIME, *(moment.name for moment in fields.moments)]
    lacking = [pl.lit(None, kind).alias(name) for name in names if name not in frame.columns]
    times = frame.with_columns(lacking).select(as_kind(pl.col(name), kind) for name in names)
    return frame.with_columns(
        times.select(
            _part_of(moment, part).alias(column.name)
            for moment in fields.moments
            for part, column in zip(moment.parts, moment.columns, strict=True)
        )
    )


def _part_of(moment: Moment, part: str) -> pl.Expr:
    import polars as pl

    time = pl.col(moment.name)
    calendar = {
        "hour": time.dt.hour().cast(pl.String),
        "weekday": time.dt.weekday().replace_strict(dict(enumerate(WEEKDAYS, start=1)), return_dtype=pl.String),
        "month": time.dt.month().cast(pl.String),
    }
    if part in calendar:
        return calendar[part]
    return (pl.col(EVENT_TIME) - time).dt.total_microseconds().cast(pl.Float64) * _DAYS


def _summaries(frame: pl.DataFrame, vector: Vector) -> list[pl.Series]:
    import numpy as np
    import polars as pl

    names = [column.name for column in vector.columns]
    found = np.full((frame.height, len(names)), np.nan)
    if vector.name in frame.columns:
        kind = pl.List(pl.Float64)
        finite = pl.col(vector.name).list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
        whole = (pl.col(vector.name).list.len() == vector.size) & finite
        values = frame.select(as_kind(pl.col(vector.name), kind)).with_columns(whole.fill_null(value=False).alias("_"))
        given = values.filter("_")[vector.name].explode().to_numpy().reshape(-1, vector.size)
        found[values["_"].to_numpy()] = summarise(given)
    return [pl.Series(name, found[:, place]).fill_nan(None) for place, name in enumerate(names)]


def summarise(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The length of each vector ``[n, d]``, and the components of its direction along eight fixed ones: ``[n, 9]``.

    For ``v`` and a matrix ``R [d, 8]`` of +1 and -1 that stands here for ever: ``|v|`` and ``v R / |v|``, about normal
    with variance 1 whatever the vectors; 0 of the zero vector. A row has the same numbers alone and among millions.
    Source: Achlioptas, Database-friendly random projections, Journal of Computer and System Sciences 66(4), 2003.

    >>> import numpy as np
    >>> found = summarise(np.array([[3.0, 4.0], [0.0, 0.0]]))
    >>> found[:, 0].tolist(), sorted(set(np.abs(found[0, 1:]).round(6).tolist())), float(found[1].sum())
    ([5.0, 0.0], [0.2, 1.4], 0.0)
    """
    import numpy as np

    _, exponent = np.frexp(np.abs(vectors).max(axis=1, initial=0.0))
    whole = np.rint(np.ldexp(vectors, (_BITS - exponent)[:, None]))
    length = np.sqrt((whole**2).sum(axis=1))
    along = whole @ _directions(vectors.shape[1]) / np.where(length > 0, length, 1.0)[:, None]
    return np.column_stack([np.ldexp(length, exponent - _BITS), along])


@cache
def _directions(size: int) -> NDArray[np.float64]:
    """``R [size, 8]``: a row is the first byte of a hash, a bit per direction."""
    import numpy as np

    first = [hashlib.sha256(f"{_SEED} {place}".encode()).digest()[0] for place in range(size)]
    return np.unpackbits(np.array(first, np.uint8)[:, None], axis=1).astype(np.float64) * 2 - 1


def _codes(field: Categorical | Flag, values: Sequence[Any]) -> list[int]:
    """The codes of a category's values. Raises KeyError or TypeError for one that it does not take."""
    codes: Mapping[Any, int] = field.codes
    if not field.other:
        return [codes[value] for value in values]
    other = len(codes)
    # What is no text is not another value.
    return [codes.get(value, other) if isinstance(value, str) else codes[value] for value in values]


def _check_numbers(fields: Fields, numeric: NDArray[np.float32]) -> None:
    """Raise DataError for the first field with a number that is infinite, or missing where it may not be."""
    import numpy as np

    refused = np.isinf(numeric)
    refused |= np.isnan(numeric) & [not number.missing for number in fields.numeric]
    if refused.any():
        name = fields.numeric[int(np.flatnonzero(refused.any(axis=0))[0])].name
        mend = "take the row out, or mend what sends it"
        raise DataError(f"{fields.case}: {name}: must be finite and fit a 32-bit float: {mend}")


def _scaled(values: Sequence[Any], by: Scale) -> NDArray[np.float64]:
    import numpy as np

    with np.errstate(over="ignore"):  # what overflows is clipped
        return ((np.asarray(values, np.float64) - by.loc) * by.scale).clip(-SCALED_MOST, SCALED_MOST)


def find_scales(fields: Fields, columns: Columns) -> dict[str, Scale]:
    """The scales of the numbers that would lose what they say as plain float32, from training rows.

    Numbers are finite or missing.

    These are: numbers far from zero for how little they vary (a time in seconds), of a deviation beyond ``PLAIN``,
    or with a few rows so far out that mean and deviation are theirs alone. The scale is then by mean and deviation
    of the rows between. Most cases have none.
    """
    import numpy as np

    columns = derived.derive(fields, unfold(fields, columns))
    found = {field.name: _scale(_known(np.asarray(columns[field.name], np.float64))) for field in fields.numeric}
    return {name: scale for name, scale in found.items() if scale is not None}


def _scale(values: NDArray[np.float64]) -> Scale | None:
    import numpy as np

    if _constant(values):
        return None
    central = values
    for share, most in SPOILT.items():
        low, high = np.quantile(values, [share, 1 - share])
        between = values[(low <= values) & (values <= high)]
        if not _constant(between) and _deviation(values) > most * _deviation(between):
            central = between
    loc = float(central.mean())
    deviation = _deviation(central)
    if central is values and deviation > RESOLVED * abs(loc) and PLAIN[0] < deviation < PLAIN[1]:
        return None
    return Scale(loc, 1 / deviation)


def _deviation(values: NDArray[np.float64]) -> float:
    import numpy as np

    unit = float(np.abs(values).max())  # the squares of what is very small or large are not numbers
    return unit * float((values / unit).std())


def find_constant(fields: Fields, columns: Columns) -> list[str]:
    """The fields that have one value in all rows: they carry nothing that a model could learn."""
    import numpy as np

    columns = derived.derive(fields, unfold(fields, columns))
    categories = [field.name for field in fields.categorical if len(set(_codes(field, columns[field.name]))) < 2]
    numbers = {field.name: np.asarray(columns[field.name], np.float64) for field in fields.numeric}
    return [*categories, *(name for name, values in numbers.items() if _tells_nothing(values))]


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return values[~np.isnan(values)]


def _tells_nothing(values: NDArray[np.float64]) -> bool:
    """Whether one value, or none, is in all rows: which of them are missing would tell something."""
    known = _known(values)
    return _constant(known) and len(known) in {0, len(values)}


def _constant(values: NDArray[np.float64]) -> bool:
    import numpy as np

    return not len(values) or bool(values.max() - values.min() <= CONSTANT * np.abs(values).max())


def read_scales(value: Mapping[str, Any]) -> dict[str, Scale]:
    """Scales from their JSON values ``{field: {loc, scale}}``. Raises IntegrityError if that is not what they are."""
    try:
        return {name: Scale(float(own["loc"]), float(own["scale"])) for name, own in value.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"the scales of the numbers are not {{field: {{loc, scale}}}} ({error!r}): "
            "restore the bundle, or export it again"
        ) from error


def encoder(fields: Fields, folder: Path) -> Encode:
    """The function from columns of raw values to the tensors of :func:`signature`.

    ``folder`` is a model's bundle: the scales of its bundle.json (none: numbers as they are), its ``tokenizer.json``
    and its formulas are those that it was trained with, whatever the case's features.py says today. Texts of one call
    are padded to the longest of them.
    """
    tokenizer = None if fields.text is None else load_tokenizer(folder / TOKENIZER)
    if not fields.has_table:
        return partial(_encode_text, fields, tokenizer)
    try:
        about = json.loads((folder / BUNDLE).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{folder / BUNDLE} does not exist: run the step 'export' first") from error
    if fields.derived:
        fields = derived.from_json(fields, about.get("formulas"))
    table = partial(encode, fields, scales=read_scales(about.get("scales", {})), derive=derived.deriving(fields))
    return table if tokenizer is None else partial(_encode_both, fields, tokenizer, table)


def _encode_both(fields: Fields, tokenizer: Any, table: Encode, columns: Columns) -> dict[str, NDArray[Any]]:
    return {**_encode_text(fields, tokenizer, columns), **table(columns)}


def _encode_text(fields: Fields, tokenizer: Any, columns: Columns) -> dict[str, NDArray[Any]]:
    return {**pad(tokenise(tokenizer, texts_of(fields, columns)))}


def texts_of(fields: Fields, columns: Columns) -> list[str]:
    """The texts of a case as they are tokenised: without words where one is missing that may be.

    Raises DataError for one that is not text.
    """
    assert fields.text is not None
    texts = columns.get(fields.text.name)
    if texts is not None and fields.text.missing:
        texts = ["" if text is None else text for text in texts]
    if texts is None or any(not isinstance(text, str) for text in texts):
        raise DataError(f"{fields.case}: field {fields.text.name} is missing or not text: send a string in every row")
    return list(texts)
