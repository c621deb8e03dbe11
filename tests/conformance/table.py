"""A table of the kinds of field: declarations, rows with all that they may hold, and a bundle made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pipelines.cases import mixed, tabular
from pipelines.contracts import Window
from pipelines.derived import with_formulas
from pipelines.encoding import encode, find_scales, read_scales, texts_of
from pipelines.estimators.families import Running
from pipelines.estimators.fitting import Labelled, fit
from pipelines.export.bundle import write_bundle
from pipelines.export.onnx import Trained, of_estimator, of_torch
from pipelines.fields import (
    EARLIEST,
    LATEST,
    Attribute,
    Binary,
    Categorical,
    Field,
    Fields,
    Flag,
    Moment,
    Numeric,
    Target,
    Text,
    Vector,
    row_sent,
)
from pipelines.params import EstimatorParams, MixedModelParams, ModelParams
from pipelines.text import TOKENIZER, load_tokenizer, pad, tokenise
from pipelines.training.estimator import encoded
from tests import shop
from tests.pipelines.export.texts import reports, write_tokenizer

CASE = "shop"
START = datetime(2024, 3, 1, tzinfo=UTC)
WINDOW = Window(start=START, end=START + timedelta(days=1))
KINDS: Mapping[str, Field] = {
    "number": Numeric("number", -1e6, 1e6),
    "open number": Numeric("open"),
    "number with holes": Numeric("holes", missing=True),
    "whole number with holes": Numeric("whole", 0, 9, integer=True, missing=True),
    "instant with holes": Numeric("instant", missing=True),
    "category": Categorical("plain", ("x", "y")),
    "category with holes": Categorical("gaps", ("x", "y"), missing=True),
    "open category": Categorical("new", ("x", "y"), other=True),
    "open category with holes": Categorical("any", ("x", "y"), missing=True, other=True),
    "flag": Flag("flag"),
    "flag with holes": Flag("maybe", missing=True),
    "vector": Vector("embedding", 5),
    "moment": Moment("due"),
    "moment with holes": Moment("seen", ("age", "weekday"), missing=True),
}
ATTRIBUTES = (Attribute("customer"), Attribute("region", missing=True))
EVERYTHING = (ATTRIBUTES[0], *KINDS.values(), ATTRIBUTES[1])
"""A table with every kind."""
TEXT = Text("note", missing=True)
"""What stands beside it, as a case has one text at most."""
DERIVED: tuple[Categorical | Numeric | Flag, ...] = (
    Numeric("ratio", missing=True),
    Categorical("size", ("small", "large", "none")),
    Categorical("pair", ("x|small", "x|large"), missing=True, other=True),
    Flag("more"),
    Flag("weekend"),
    Numeric("weeks", missing=True),
)
FEATURES = """\"\"\"The expressions of the derived features.\"\"\"

import polars as pl

SIZE = pl.col("holes").bin_intervals([2.0], labels=["small", "large"]).cast(pl.String).fill_null("none")
FEATURES = {
    "ratio": pl.col("number") / pl.col("holes"),
    "size": SIZE,
    "pair": pl.col("any") + "|" + SIZE,
    "more": pl.col("holes").fill_null(0.0) > pl.col("number"),
    "weekend": pl.col("due.weekday").is_in(["sat", "sun"]),
    "weeks": pl.col("seen.age") / 7,
}
"""
"""features.py of a case with all kinds, and what it declares of it."""
HOLES = 0.2
"""Share of the rows without a value, of a field that may be missing."""


def declare(*fields: Field, target: Target | None = None, derived: bool = False) -> Fields:
    """The declaration of the case with these fields, and with what is ``derived``; its target is binary without one."""
    declared = Fields(CASE, fields, label="sold", target=target or Binary(), derived=DERIVED if derived else ())
    if not derived:
        return declared
    features: dict[str, Any] = {}
    exec(FEATURES, features)
    return with_formulas(declared, features["FEATURES"])


def delivered(fields: Fields, rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """Rows as a source delivers them, with missing, unseen and extreme values wherever the declaration takes them."""
    rng = np.random.default_rng(seed)
    columns = {field.name: _values(field, rows, rng) for field in fields.fields}
    times = [START + timedelta(seconds=60 * row) for row in range(rows)]
    labels = rng.integers(0, len(fields.classes) or 2, rows)
    if fields.number is not None:
        labels = rng.normal(0.0, 2.0, rows).clip(*fields.number.bounds)
    ids = [f"{CASE}-{seed}-{row}" for row in range(rows)]
    return pl.DataFrame({"id": ids, "event_time": times, **columns, fields.label: labels}, strict=False)


def _values(field: Field, rows: int, rng: np.random.Generator) -> list[Any]:
    if isinstance(field, Categorical):
        known = [*field.values, *(("z", "", "ä\n\"'" * 40) if field.other else ())]
        values = [known[position] for position in rng.integers(0, len(known), rows)]
    elif isinstance(field, Flag):
        values = (rng.random(rows) < 0.4).tolist()
    elif isinstance(field, Vector):
        values = rng.normal(0.0, 1.0, (rows, field.size)).tolist()
        values[:3] = [[at] * field.size for at in (0.0, 1e6, -1e-30)]
    elif isinstance(field, Moment):
        values = [START + timedelta(seconds=float(at)) for at in rng.normal(0.0, 3e6, rows)]
        values[:2] = EARLIEST, LATEST - timedelta(microseconds=1)
    elif isinstance(field, Text):
        values = reports(rows, seed=int(rng.integers(1 << 30)))
        values[:3] = "x", "ä\n\"' " * 2_000, "heap\u200boverflow"
    elif isinstance(field, Attribute):
        values = [f"{field.name} {row % 7}" for row in range(rows)]
    else:
        low, high = (-1e30 if field.low is None else field.low), (1e30 if field.high is None else field.high)
        numbers = rng.normal(1.6e9, 60.0, rows) if field.name == "instant" else rng.normal(2.0, 3.0, rows)
        numbers = numbers.clip(low, high)
        if field.name != "instant":
            numbers[:2] = low, high
        values = (np.rint(numbers) if field.integer else numbers).tolist()
    if not field.missing:
        return values
    # Sources have one or the other for what is missing.
    gone = [None, float("nan")] if isinstance(field, Numeric) else [None]
    return [gone[row % len(gone)] if rng.random() < HOLES else value for row, value in enumerate(values)]


def sent(fields: Fields, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Canonical rows as a client sends them, with their event times."""
    return [
        {**row_sent(fields, row), "event_time": row["event_time"].isoformat()} for row in rows.iter_rows(named=True)
    ]


def model_of(
    fields: Fields, columns: Mapping[str, list[Any]], labels: Any, scales: Mapping[str, Any], folder: Path
) -> torch.nn.Module:
    """The network of tables, fitted to the rows as far as it adapts itself, with random weights beyond that.

    With a text it is the mixed one, which leaves its tokenizer in ``folder``.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": (8,), "embedding": 2, "dropout": 0.0}
    if fields.text is None:
        model = tabular.build(ModelParams(**sizes), fields)
    else:
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        write_tokenizer(base)
        params = MixedModelParams(kind="mixed", encoder=str(base), max_tokens=16, tokens=4, **sizes)
        mixed.tokenizer(params, folder)
        model = mixed.build(params, fields)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    numeric = torch.from_numpy(encode(fields, columns, scales)["numeric"])
    model.adapt(numeric, torch.tensor(labels, dtype=torch.int64 if fields.classes else torch.float32))
    return model.eval()


def bundle_of(fields: Fields, rows: pl.DataFrame, folder: Path, family: EstimatorParams | None = None) -> Trained:
    """A model of canonical rows, the network or one of a ``family``, and its bundle in ``folder``."""
    columns = rows.select(fields.reads).to_dict(as_series=False)
    scales = find_scales(fields, columns)
    folder.mkdir(parents=True, exist_ok=True)
    if family is None:
        trained = of_torch(model_of(fields, columns, rows[fields.label].to_list(), scales, folder), fields)
    else:
        labelled = Labelled(encoded(family, fields, columns, scales, folder), rows[fields.label].to_numpy())
        trained = of_estimator(fit(family, fields, labelled, Running(seed=0, threads=1)), fields)
    write_bundle(trained, fields, folder, {"scales": {name: asdict(scale) for name, scale in scales.items()}})
    return trained


def own_answers(trained: Trained, fields: Fields, rows: pl.DataFrame, bundle: Path) -> np.ndarray:
    """What the model itself answers for raw rows: ``[n, outputs]``."""
    scales = read_scales(json.loads((bundle / "bundle.json").read_text())["scales"])
    columns = rows.select(fields.reads).to_dict(as_series=False)
    tensors = encode(fields, columns, scales)
    if fields.text is not None:
        tensors = pad(tokenise(load_tokenizer(bundle / TOKENIZER), texts_of(fields, columns))) | tensors
    return trained.answers(tensors)


@contextmanager
def installed(root: Path, fields: Fields) -> Iterator[Path]:
    """Let the case with these fields be the only one there is."""
    folder = shop.write(root / "cases", CASE)
    kinds = ", ".join(sorted({type(part).__name__ for part in (*fields.fields, fields.target)}))
    if fields.derived:
        (folder / "features.py").write_text(FEATURES)
    declared = replace(fields, formulas=())
    (folder / "schema.py").write_text(
        f'"""The fields."""\n\nfrom pipelines.fields import {kinds}, Fields\n\nFIELDS = {declared!r}\n'
    )
    if fields.number is not None:
        shop.edit(folder / "params.yaml", ("metric: log_loss", "metric: rmse"))
    shop.edit(folder / "params.yaml", ("slices:\n  - colour", "slices: []"))
    (folder / "profile.json").unlink()
    with shop.installed(root / "cases"):
        yield folder
