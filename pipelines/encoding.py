"""From a case's raw columns to its model's input tensors, whatever the kind of its fields.

Training and gateway encode by the same functions, and a model, its bundle and Triton have one :func:`signature`. A
number goes to the model as it is, as float32, and the model scales it by mean and deviation. Where that would lose
what it says (:func:`find_scales`), it is scaled in float64 before, by constants that travel in the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelines import derived
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.fields import Categorical, Fields, Flag, Scale
from pipelines.text import TOKENIZER, load_tokenizer, pad, tokenise

if TYPE_CHECKING:
    import numpy as np
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
    fields: Fields,
    columns: Columns,
    scales: Mapping[str, Scale] = MappingProxyType({}),
    derive: derived.Derive | None = None,
) -> dict[str, NDArray[Any]]:
    """Turn columns of raw tabular values into the model's input tensors (texts: :func:`encoder`).

    Returns ``{"categorical": int64 [B, C], "numeric": float32 [B, N]}``: codes are positions in the declared
    vocabulary (:attr:`pipelines.fields.Categorical.codes`), numbers are as they are, NaN where one is missing that may
    be. Derived features are computed by ``derive`` (:func:`pipelines.derived.deriving`, made anew if not given). A
    number that has one of the ``scales`` is scaled in float64 first, and clipped to +-``SCALED_MOST``: float32 or one
    outlier would lose it. Raises DataError naming the field (never the value) if a column is missing, a category is
    unknown or a number is not finite as a float32. All other scaling, embedding and filling are the graph's work.
    """
    import numpy as np

    missing = [name for name in fields.inputs if name not in columns]
    if missing:
        raise DataError(f"{fields.case}: field(s) {', '.join(missing)} missing: send all of {', '.join(fields.inputs)}")
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
    numeric: NDArray[np.float32] = np.empty((rows, len(fields.numeric)), np.float32)
    with np.errstate(over="ignore"):  # what overflows is refused below
        for position, number in enumerate(fields.numeric):
            numeric[:, position] = columns[number.name]  # null becomes NaN
    if not np.isfinite(numeric).all():
        _check_numbers(fields, numeric)
    if scales:
        for position, number in enumerate(fields.numeric):
            if number.name in scales:
                numeric[:, position] = _scaled(columns[number.name], scales[number.name])
    return {"categorical": categorical, "numeric": numeric}


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

    columns = derived.derive(fields, columns)
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

    columns = derived.derive(fields, columns)
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
    if fields.text is not None:
        return partial(_encode_text, fields, load_tokenizer(folder / TOKENIZER))
    try:
        about = json.loads((folder / BUNDLE).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{folder / BUNDLE} does not exist: run the step 'export' first") from error
    if fields.derived:
        fields = derived.from_json(fields, about.get("formulas"))
    return partial(encode, fields, scales=read_scales(about.get("scales", {})), derive=derived.deriving(fields))


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
