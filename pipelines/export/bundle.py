"""The bundle: what a version is made of, and everything that a server must know to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import derived, runtime
from pipelines.encoding import Columns, encoder, signature
from pipelines.errors import IntegrityError
from pipelines.export.contract import contract
from pipelines.export.onnx import Trained, longest
from pipelines.fields import FIELDS, Fields, to_json
from pipelines.files import file_sha256
from pipelines.storage import canonical_json
from pipelines.text import TOKENIZER, TOKENS, load_tokenizer

Tensors = dict[str, NDArray[Any]]

TOLERANCE = 1e-5
"""Largest :func:`apart` of torch and ONNX Runtime; float32 rounding stays below 2e-6."""
NEIGHBOURS = 1e-6
"""How much of a row's answer may hang on the rows and the padding beside it, in a variant that ships."""
_BESIDE = (2, 3, 8, 16)
"""Rows of the batches in which an answer is compared with the row's own; so many rows as the last are compared."""
_LONG = 48
"""Tokens of the random texts in those batches."""
_BATCHES = (1, 2, 7, 64, 257)
MISSING_SHARE = 0.25
"""Share of the random numbers that are missing, of a field that may be."""
_EXTREMES = 64
"""Rows of the batch at the ends of what fields take."""
FARTHEST = 1e30
"""A number on an open side; float32 ends at 3e38."""
_SHAPES = ((1, 2), (3, 5), (17, 24), (2, 96), (1, 512))
"""Texts and tokens of the random batches; the tokenizer's truncation shortens them."""
MAX_PARITY_ROWS = 128
"""Real texts that are compared, evenly spaced: each costs milliseconds, twice."""


def write_bundle(trained: Trained, fields: Fields, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write model.onnx, bundle.json, fields.json and contract.json to ``folder``; returns what bundle.json says.

    ``about`` becomes part of bundle.json. A text model finds its ``tokenizer.json`` in ``folder``. bundle.json:
    ``{case, fields_hash, inputs: [{name, dtype, shape}], output: {name, dtype, shape}, opset, ...about}`` with -1 for
    free axes, and with classes, a number, a tokenizer or derived features ``classes``, ``unit``, ``tokenizer_sha256``,
    ``formulas`` and their ``features_hash``.
    """
    opset = trained.write(folder)
    inputs, output = signature(fields)
    bundle = {
        "case": fields.case,
        "fields_hash": fields.hash,
        "inputs": inputs,
        "output": output,
        "opset": opset,
        **about,
    }
    if fields.classes:
        bundle["classes"] = list(fields.classes)
    if fields.number is not None:
        bundle["unit"] = fields.number.unit
    if fields.derived:
        bundle |= {"formulas": derived.to_json(fields), "features_hash": fields.features_hash}
    if fields.text is not None:
        bundle["tokenizer_sha256"] = file_sha256(folder / TOKENIZER)
    (folder / "bundle.json").write_text(canonical_json(bundle))
    (folder / FIELDS).write_text(canonical_json(to_json(fields)))
    (folder / "contract.json").write_text(canonical_json(contract(fields)))
    return bundle


def check_parity(trained: Trained, fields: Fields, bundle: Path, rows: Columns, seed: int) -> float:
    """The largest difference of an answer between what was trained and ONNX Runtime, see :func:`apart`.

    They are compared over random rows of several shapes, rows at the ends of what the fields take, and real ``rows``
    (columns), of texts over at most ``MAX_PARITY_ROWS``. Raises IntegrityError above ``TOLERANCE``: what would be
    judged and served is not what was trained.
    """
    random_batches = _random_batches(fields, bundle, np.random.default_rng(seed))
    answered, expected = [], []
    for tensors in (*random_batches, *_real_batches(fields, bundle, rows)):
        answered.append(runtime.score(bundle, tensors))
        expected.append(trained.answers(tensors).reshape(answered[-1].shape))
    # Of all batches at once: the only row of one may be predicted to be about 0, and every error a multiple of that.
    worst = apart(np.concatenate(answered), np.concatenate(expected), fields)
    if not worst <= TOLERANCE:
        raise IntegrityError(
            f"{bundle}: {trained.name} and ONNX Runtime differ by {worst:.2e}, at most {TOLERANCE:g} is allowed: "
            f"{trained.mend}"
        )
    return worst


def apart(answered: NDArray[np.float64], expected: NDArray[np.float64], fields: Fields) -> float:
    """The largest difference of two models' answers for the same rows: of probabilities, as it is.

    Of a number it is a share of the largest one that is ``expected``: float32 rounds by that, whatever the unit.
    """
    worst = float(np.abs(expected - answered).max())
    if fields.number is None:
        return worst
    return worst / max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))


def neighbours(fields: Fields, bundle: Path, rows: Columns, seed: int, model: str = runtime.MODEL) -> float:
    """How much a row's answer hangs on what is beside it.

    That is the largest difference (:func:`apart`) between a row alone and in a batch, over batches of several sizes
    of real ``rows`` (columns) and random ones, in which texts are padded to the longest. ``model`` names another file
    of the bundle than the one that ships.
    """
    generator = np.random.default_rng(seed)
    most_rows = _BESIDE[-1]
    if fields.text is None:
        batches = [random_rows(fields, most_rows, generator)]
    else:
        batches = [_random_texts(fields, bundle, most_rows, _LONG, generator)]
    if len(rows[fields.inputs[0]]):
        batches.append(encoder(fields, bundle)(evenly(rows, most_rows)))
    return max(0.0, *(_neighbours_of(tensors, fields, bundle, model) for tensors in batches))


def _neighbours_of(tensors: Tensors, fields: Fields, bundle: Path, model: str) -> float:
    """:func:`neighbours` over the rows of these tensors."""
    count = len(next(iter(tensors.values())))
    alone = np.concatenate([runtime.score(bundle, _row(tensors, row), model=model) for row in range(count)])
    worst = 0.0
    for size in _BESIDE:
        parts = [
            runtime.score(bundle, {name: tensor[start : start + size] for name, tensor in tensors.items()}, model=model)
            for start in range(0, count, size)
        ]
        worst = max(worst, apart(np.concatenate(parts), alone, fields))
    return worst


def _row(tensors: Tensors, row: int) -> Tensors:
    """One row by itself, without padding."""
    width = None
    if "attention_mask" in tensors:
        # A graph of texts is traced for two tokens at least.
        width = max(2, int(tensors["attention_mask"][row].sum()))
    return {name: tensor[row : row + 1, : width if name in TOKENS else None] for name, tensor in tensors.items()}


def _random_batches(fields: Fields, bundle: Path, generator: np.random.Generator) -> Iterator[Tensors]:
    if fields.text is None:
        yield from (random_rows(fields, batch, generator) for batch in _BATCHES)
        yield extreme_rows(fields, _EXTREMES, generator)
        return
    yield from (_random_texts(fields, bundle, rows, tokens, generator) for rows, tokens in _SHAPES)


def _random_texts(fields: Fields, bundle: Path, rows: int, tokens: int, generator: np.random.Generator) -> Tensors:
    """Random texts of at most ``tokens`` tokens, and a random table beside them if there is one."""
    words = load_tokenizer(bundle / TOKENIZER).get_vocab_size()
    found = random_texts(rows, min(longest(fields, bundle), tokens), words, generator)
    return found | random_rows(fields, rows, generator) if fields.has_table else found


def _real_batches(fields: Fields, bundle: Path, rows: Columns) -> Iterator[Tensors]:
    count = len(rows[fields.inputs[0]])
    encode = encoder(fields, bundle)
    if count and fields.text is None:
        yield encode(rows)
    elif count:
        chosen = evenly(rows, MAX_PARITY_ROWS)
        yield from (batch for _, batch in runtime.by_length(encode(chosen)))


def evenly(rows: Columns, most: int) -> dict[str, list[Any]]:
    """At most ``most`` rows, evenly spaced."""
    count = len(next(iter(rows.values())))
    positions = sorted({int(position) for position in np.linspace(0, count - 1, min(count, most))})
    return {name: [column[position] for position in positions] for name, column in rows.items()}


def random_rows(fields: Fields, rows: int, generator: np.random.Generator) -> Tensors:
    """Tensors of ``rows`` rows: all codes, numbers within their bounds (open sides: +-1,000), some missing that may."""
    codes = [generator.integers(0, field.size, rows) for field in fields.categorical]
    numbers = []
    for field in fields.numeric:
        low = -1e3
        if field.low is not None:
            low = field.low
        high = 1e3
        if field.high is not None:
            high = field.high
        values = generator.uniform(low, high, rows)
        if field.missing:
            values[generator.random(rows) < MISSING_SHARE] = np.nan
        numbers.append(values)
    for vector in fields.vectors:
        numbers.extend(generator.uniform(-1.0, 1.0, (vector.size, rows)))
    return {
        "categorical": np.array(codes, np.int64).reshape(len(codes), rows).T.copy(),
        "numeric": np.array(numbers, np.float32).reshape(len(numbers), rows).T.copy(),
    }


def extreme_rows(fields: Fields, rows: int, generator: np.random.Generator) -> Tensors:
    """Random rows whose numbers are the least or the largest that their fields take (open sides: +-1e30)."""
    found = random_rows(fields, rows, generator)
    numeric = found["numeric"]
    for position, field in enumerate(fields.numeric):
        low = -FARTHEST if field.low is None else field.low
        high = FARTHEST if field.high is None else field.high
        ends = np.where(generator.random(rows) < 0.5, low, high).astype(np.float32)
        numeric[:, position] = np.where(np.isnan(numeric[:, position]), np.nan, ends)
    return found


def random_texts(rows: int, tokens: int, words: int, generator: np.random.Generator) -> Tensors:
    """Tensors ``[rows, tokens]`` of random ids below ``words``.

    One row is full, the others are of random lengths and padded.
    """
    lengths = generator.integers(1, tokens + 1, rows)
    lengths[0] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {"input_ids": generator.integers(0, words, (rows, tokens)) * mask, "attention_mask": mask}
