"""Numbers of any scale and offset keep their signal, from rows to the score that is served."""

from __future__ import annotations

import json
import logging

import numpy as np
import polars as pl
import pytest

from pipelines import runtime
from pipelines.cases.tabular import Tabular
from pipelines.contracts import Manifest
from pipelines.encoding import encode, encoder, find_constant, find_scales
from pipelines.errors import Unavailable
from pipelines.fields import Categorical, Fields, Numeric
from pipelines.params import ModelParams
from pipelines.settings import Settings
from pipelines.training import candidate
from serving.gateway.versions import load
from tests.pipelines.manifests import renew
from tests.pipelines.steps import test_model_steps as loans
from tests.pipelines.steps.test_model_steps import AS_OF, FIELDS, PARAMS
from tests.pipelines.verbs import evaluate, export, train


def with_one(values: np.ndarray, outlier: float) -> np.ndarray:
    """The values, one of them replaced by ``outlier``."""
    return np.concatenate([[outlier], values[1:]])


def with_share(values: np.ndarray, sentinel: float) -> np.ndarray:
    """The values, three in a hundred of them replaced by ``sentinel``."""
    return np.where(np.arange(len(values)) % 33 == 0, sentinel, values)


PROBES = {"salary": lambda z: z * 1e-7, "amount": lambda z: 1.7e9 + 30 * z, "house_value": lambda z: with_one(z, 1e9)}
"""Three columns that the label follows in equal parts, and what is done to each of them."""


def trained(settings: Settings, *, spoilt: bool) -> dict[str, Manifest]:
    """train, export and evaluate on loans rows whose label follows three normal columns.

    The columns are as they are or ``spoilt`` by the probes.
    """
    run_dir = loans.put_dataset(settings, AS_OF)
    for seed, part in enumerate(("train", "holdout")):
        path = run_dir / "dataset" / f"{part}.parquet"
        rows, generator = pl.read_parquet(path), np.random.default_rng(seed)
        z = generator.normal(size=(len(PROBES), rows.height))
        label = (z.sum(0) + generator.normal(0, 0.8, rows.height) > 0).astype(np.int8)
        columns = [
            pl.Series(name, change(values) if spoilt else values)
            for (name, change), values in zip(PROBES.items(), z, strict=True)
        ]
        rows.with_columns(*columns, pl.lit(7.0).alias("age"), pl.Series(FIELDS.label, label)).write_parquet(path)
    renew(run_dir / "dataset")
    return {step.name: step.run(PARAMS, settings, run_dir, AS_OF) for step in (train, export, evaluate)}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The state folder and manifests of a run on spoilt columns, and the warnings of its training."""
    settings, heard = Settings(home=tmp_path_factory.mktemp("spoilt")), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    candidate.log.addHandler(handler)
    try:
        manifests = trained(settings, spoilt=True)
    finally:
        candidate.log.removeHandler(handler)
    loans.release(settings, settings.run_dir("loans", AS_OF), AS_OF, 1)
    return settings, manifests, heard


def test_columns_of_any_scale_keep_their_signal(spoilt, tmp_path):
    """A small scale, a large offset and an outlier cost the exported model next to no AUC.

    It is compared with the same rows without them.
    """
    _, manifests, _ = spoilt
    found, clean = (
        made["evaluate"].facts["challenger"]["roc_auc"]
        for made in (manifests, trained(Settings(home=tmp_path), spoilt=False))
    )
    assert found > clean - 0.02


def test_the_constants_travel_with_the_bundle(spoilt):
    """Training, evaluation and gateway encode a row alike, by the constants in the bundle.

    The gateway refuses a bundle whose constants are no numbers.
    """
    settings, manifests, _ = spoilt
    run_dir = settings.run_dir("loans", AS_OF)
    about = json.loads((run_dir / "export" / "bundle.json").read_text())
    assert about["scales"] == manifests["train"].facts["scales"]
    assert set(about["scales"]) == set(PROBES)
    rows = pl.read_parquet(run_dir / "dataset" / "holdout.parquet").head(40)
    columns = {name: rows[name].to_list() for name in FIELDS.names}
    release = loans.ledger.head(settings.ledger, "loans")
    (served,) = load(settings.root, FIELDS, release)._parts(columns)
    expected = encoder(FIELDS, run_dir / "export")(columns)
    assert all(np.array_equal(served.tensors[name], expected[name]) for name in expected)
    scores = pl.read_parquet(run_dir / "evaluate" / "scores.parquet")["challenger"].head(40)
    assert np.allclose(runtime.score(run_dir / "export", served.tensors), scores, atol=1e-6)
    path = run_dir / "export" / "bundle.json"
    honest = path.read_text()
    try:
        path.write_text(json.dumps(about | {"scales": {"salary": 3}}))
        with pytest.raises(Unavailable, match="restore"):
            load(settings.root, FIELDS, release)
    finally:
        path.write_text(honest)


def test_a_column_that_carries_nothing_is_named(spoilt):
    """A column with one value in all training rows stands in the facts, in the record and in a warning."""
    settings, manifests, heard = spoilt
    record = json.loads((settings.run_dir("loans", AS_OF) / "train" / "record.json").read_text())
    assert manifests["train"].facts["constant"] == record["features"]["constant"] == ["age"]
    assert any("nothing can be learned" in text and "age" in text for text in heard)


def test_a_bundle_without_constants_reads_numbers_as_they_are(tmp_path):
    """A bundle of before, whose bundle.json names no scales, gets every number as the float32 that it is."""
    (tmp_path / "bundle.json").write_text(json.dumps({"fields_hash": FIELDS.hash}))
    rows = loans.made_rows(5, 0)
    columns = {name: rows[name].to_list() for name in FIELDS.names}
    found = encoder(FIELDS, tmp_path)(columns)["numeric"]
    assert np.array_equal(found, np.array([columns[field.name] for field in FIELDS.numeric], np.float32).T)


ONE = Fields("one", (Numeric("x"), Categorical("c", ("a", "b"))), "label")
SIGNAL = np.random.default_rng(3).normal(size=3000)
COLUMNS = {
    "plain": SIGNAL,
    "small": SIGNAL * 1e-7,
    "tiny": SIGNAL * 1e-40,
    "huge": SIGNAL * 1e36,
    "seconds": 1.7e9 + 30 * SIGNAL,
    "nanoseconds": 1.7e18 + 3e10 * SIGNAL,
    "one outlier": with_one(SIGNAL, 1e9),
    "one outlier of float32's size": with_one(SIGNAL, -3e38),
    "a sentinel": with_share(SIGNAL, -999_999.0),
    "all at once": with_one(1.7e9 + 30 * SIGNAL, 0.0),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_reaches_the_network_follows_the_signal(name):
    """Whatever is done to a normal column, the network's first layer sees it in its ordinary rows.

    What it sees correlates with the column and has a spread like it.
    """
    import torch

    columns = {"x": COLUMNS[name].tolist(), "c": ["a"] * len(SIGNAL)}
    numeric = torch.from_numpy(encode(ONE, columns, find_scales(ONE, columns))["numeric"])
    model = Tabular((2,), 1, ModelParams(hidden=(2,), embedding=1, dropout=0.0))
    model.adapt(numeric, torch.zeros(len(SIGNAL)))
    seen = ((numeric - model.mean) * model.scale).clamp(-5, 5).numpy()[:, 0]
    ordinary = np.arange(len(SIGNAL)) % 33 != 0
    assert np.isfinite(seen).all()
    assert np.corrcoef(seen[ordinary], SIGNAL[ordinary])[0, 1] > 0.99
    assert seen[ordinary].std() > 0.3


@pytest.mark.parametrize(
    "values",
    [np.full(50, 7.0), np.full(50, 1.7e9), np.array([0.3, 0.1 + 0.2] * 25), np.zeros(50)],
    ids=["seven", "a time", "rounding", "zero"],
)
def test_a_constant_column_has_no_scale_at_any_size(values):
    """What rounding leaves of a constant is no signal.

    The column is named as one that carries nothing, and stays as it is.
    """
    columns = {"x": values.tolist(), "c": ["a", "b"] * 25}
    assert (find_constant(ONE, columns), find_scales(ONE, columns)) == (["x"], {})


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).integers(18, 95, 3000).astype(float),
        np.where(np.arange(3000) % 27 == 0, 6.0, 999.0),
        93.2 + np.random.default_rng(1).normal(0, 0.5, 3000),
        np.random.default_rng(2).lognormal(0, 1, 3000),
        np.where(
            np.random.default_rng(4).random(3000) < 0.4, 1.3, 4.96 + np.random.default_rng(5).normal(0, 0.001, 3000)
        ),
        np.where(np.arange(3000) < 3, 1.0, 0.0),
    ],
    ids=["ages", "a sentinel in most rows", "an index", "skewed", "two heaps", "a rare flag"],
)
def test_ordinary_columns_stay_as_they_are(values):
    """A column that float32, mean and deviation suit is not touched: existing cases train as before, bit by bit."""
    assert find_scales(ONE, {"x": values.tolist(), "c": ["a", "b"] * 1500}) == {}
