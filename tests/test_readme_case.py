"""The case that the README shows works as it stands there."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import numpy as np
import polars as pl
import pytest

from pipelines import storage
from pipelines.cases.surveying import survey
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop
from tests.pipelines.conftest import free_port
from tests.pipelines.verbs import dataset, evaluate, export, gate, ingest, train, validate

README = Path(__file__).parents[1] / "README.md"
CASE = "parcels"
AS_OF = datetime(2024, 6, 1, tzinfo=UTC)
FILE = re.compile(r"^`([a-z]+\.[a-z]+)` says .*:\n\n((?:    .*\n|\n)+)", re.MULTILINE)


def delivered(rows: int = 6000) -> pl.DataFrame:
    """Parcels of two months with holes and a carrier that nobody declared; the far and heavy ones are late."""
    rng = np.random.default_rng(0)
    km, kg = rng.uniform(1, 900, rows), rng.uniform(0.1, 30, rows)
    late = rng.random(rows) < 1 / (1 + np.exp(4 - km / 150 - kg / 20))
    times = [AS_OF - timedelta(days=60) + timedelta(minutes=14 * row) for row in range(rows)]
    return pl.DataFrame(
        {
            "id": [f"p{row}" for row in range(rows)],
            "event_time": times,
            "carrier": rng.choice(["north", "south", "west"], rows, p=[0.6, 0.35, 0.05]),
            "km": km,
            "kg": [None if hole else value for hole, value in zip(rng.random(rows) < 0.2, kg, strict=True)],
            "late": late.astype(np.int8),
        }
    )


def written(folder: Path) -> Path:
    """The folder with the README's files in it, as they are printed."""
    files = dict(FILE.findall(README.read_text()))
    assert set(files) == {"schema.py", "source.py", "params.yaml"}
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(dedent(text))
    return folder


@pytest.fixture
def case(tmp_path, monkeypatch):
    """The folder of the README's case, its files as they are printed, in a folder outside of the tree."""
    folder = written(tmp_path / "mine" / CASE)
    delivered().write_parquet(tmp_path / "parcels.parquet")
    monkeypatch.setenv("PERENNIAL_CASES", str(folder.parent))
    with shop.installed(tmp_path / "inside"):
        yield folder


def run(tmp_path, *steps):
    """Run steps of the case; the manifest of the last one."""
    settings = Settings(home=tmp_path, data_dir=tmp_path, mlflow_url=f"http://127.0.0.1:{free_port()}")
    run_dir = settings.run_dir(CASE, AS_OF)
    for step in steps:
        step.run(load_params(CASE), settings, run_dir, AS_OF)
    return storage.read_manifest(run_dir / steps[-1].name)


def test_the_case_of_the_readme_is_trained_and_promoted(case, tmp_path):
    """Its three files, as they are printed, make a case that goes from its source to a first champion."""
    assert {case.name: case.problem for case in survey()} == {CASE: ""}
    made = run(tmp_path, ingest, validate, dataset, train, export, evaluate, gate)
    assert made.facts["decision"] == "promote"


def test_the_case_of_the_readme_has_a_network_on_two_ranks(case, tmp_path):
    """With the kind tabular and a model.py it is trained by two ranks, which find it by its name."""
    block = re.compile(r"model:\n(?: .*\n)+")
    text = (case / "params.yaml").read_text()
    (case / "params.yaml").write_text(block.sub("model: {kind: tabular}\ntrain: {ranks: 2, epochs: 1}\n", text))
    (case / "model.py").write_text("from pipelines.cases.tabular import build\n")
    assert {case.name: case.problem for case in survey()} == {CASE: ""}
    assert run(tmp_path, ingest, validate, dataset, train).facts["epochs"] == 1
