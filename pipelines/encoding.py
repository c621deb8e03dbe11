"""From a case's raw columns to its model's input tensors, whatever the kind of its fields.

Training and gateway encode by the same functions, and a model, its bundle and Triton have one :func:`signature`. A
number goes to the model as it is, as float32, and the model scales it by mean and deviation. Where that would lose
what it says (:func:`find_scales`), it is scaled in float64 before, by constants that travel in the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.fields import EVENT_TIME, WEEKDAYS, Categorical, Fields, Flag, Moment, Scale, as_kind
from pipelines.text import TOKENIZER, load_tokenizer, pad, tokenise

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

Columns = Mapping[str, Sequence[Any]]
Encode = Callable[[Columns], "dict[str, NDArray[Any]]"]


BUNDLE = "bundle.json"
"""What a bundle says about itself; ``scales`` in it are the constants of :func:`find_scales`."""
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
_CALENDAR: Mapping[str, Callable[[datetime], str]] = {
    "hour": lambda moment: str(moment.hour),
    "weekday": lambda moment: WEEKDAYS[moment.weekday()],
    "month": lambda moment: str(moment.month),
}
"""The calendar's parts of a moment in UTC, as values of :data:`pipelines.fields.CALENDAR`."""


def signature(fields: Fields) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The model's input tensors and its output, each ``{name, dtype, shape}``.

    -1 is a free axis, the first one of them the batch. A model, its ONNX graph, its bundle and Triton's configuration
    all have this signature.
    """
    if fields.text is not None:
        inputs = [{"name": name, "dtype": "int64", "shape": [-1, -1]} for name in ("input_ids", "attention_mask")]
    else:
        inputs = [
            {"name": "categorical", "dtype": "int64", "shape": [-1, len(fields.categorical)]},
            {"name": "numeric", "dtype": "float32", "shape": [-1, len(fields.numeric)]},
        ]
    return inputs, {"name": "score", "dtype": "float32", "shape": [-1, fields.outputs]}


def encode(
    fields: Fields, columns: Mapping[str, Sequence[Any]], scales: Mapping[str, Scale] = MappingProxyType({})
) -> dict[str, NDArray[Any]]:
    """Turn columns of raw tabular values into the model's input tensors (texts: :func:`encoder`).

    Of a moment the parts are encoded (:func:`unfold`).

    Returns ``{"categorical": int64 [B, C], "numeric": float32 [B, N]}``: codes are positions in the declared
    vocabulary (:attr:`pipelines.fields.Categorical.codes`), numbers are as they are, NaN where one is missing that
    may be. A number that has one of the ``scales`` is scaled in float64 first, and
    clipped to +-``SCALED_MOST``: float32 or one outlier would lose it. Raises DataError naming the field (never
    the value) if a column is missing, a category is unknown or a number is not finite as a
    float32. All other scaling, embedding and filling are the graph's work.
    """
    import numpy as np

    missing = [name for name in fields.reads if name not in columns]
    if missing:
        raise DataError(f"{fields.case}: field(s) {', '.join(missing)} missing: send all of {', '.join(fields.reads)}")
    columns = unfold(fields, columns)
    rows = len(columns[fields.inputs[0]])
    categorical: NDArray[np.int64] = np.empty((rows, len(fields.categorical)), np.int64)
    for position, field in enumerate(fields.categorical):
        try:
            categorical[:, position] = _codes(field, columns[field.name])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{fields.case}: unknown category in {field.name}: use one of {', '.join(field.values)}"
            ) from error
    numeric: NDArray[np.float32] = np.empty((rows, len(fields.numeric)), np.float32)
    for position, number in enumerate(fields.numeric):
        with np.errstate(over="ignore"):  # what overflows is refused below
            numeric[:, position] = columns[number.name]  # null becomes NaN
        refused = np.isinf if number.missing else _not_finite
        if refused(numeric[:, position]).any():
            mend = "take the row out, or mend what sends it"
            raise DataError(f"{fields.case}: {number.name}: must be finite and fit a 32-bit float: {mend}")
        if number.name in scales:
            numeric[:, position] = _scaled(columns[number.name], scales[number.name])
    return {"categorical": categorical, "numeric": numeric}


def unfold(fields: Fields, columns: Columns) -> Columns:
    """The columns of raw values with the parts of every moment beside it, null where it is; all names of ``reads``.

    For single rows; :func:`unfolded` does the same to a frame. Raises DataError for what is no time with a zone.
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
    """The frame with the parts of every moment beside it, null where it, or for its age the event time, is lacking.

    What :func:`unfold` gives of the same rows, in bulk.
    """
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


def _codes(field: Categorical | Flag, values: Sequence[Any]) -> list[int]:
    """The codes of a category's values. Raises KeyError or TypeError for one that it does not take."""
    codes: Mapping[Any, int] = field.codes
    if not field.other:
        return [codes[value] for value in values]
    other = len(codes)
    # What is no text is not another value.
    return [codes.get(value, other) if isinstance(value, str) else codes[value] for value in values]


def _not_finite(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    import numpy as np

    return ~np.isfinite(values)


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

    columns = unfold(fields, columns)
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

    columns = unfold(fields, columns)
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

    ``folder`` is a model's bundle: the scales of its bundle.json (none: numbers as they are) and its ``tokenizer.json``
    are those that it was trained with. Texts of one call are padded to the longest of them.
    """
    if fields.text is not None:
        return partial(_encode_text, fields, load_tokenizer(folder / TOKENIZER))
    try:
        about = json.loads((folder / BUNDLE).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{folder / BUNDLE} does not exist: run the step 'export' first") from error
    return partial(encode, fields, scales=read_scales(about.get("scales", {})))


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
