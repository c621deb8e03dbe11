"""The case that the README shows works as it stands there."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import numpy as np
import polars as pl

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


def test_the_case_of_the_readme_is_trained_and_promoted(tmp_path):
    """Its three files, as they are printed, make a case that goes from its source to a first champion."""
    files = dict(FILE.findall(README.read_text()))
    assert set(files) == {"schema.py", "source.py", "params.yaml"}
    root = tmp_path / "cases"
    (root / CASE).mkdir(parents=True)
    for name, text in files.items():
        (root / CASE / name).write_text(dedent(text))
    with shop.installed(root):
        assert {case.name: case.problem for case in survey()} == {CASE: ""}
        settings = Settings(home=tmp_path, data_dir=tmp_path, mlflow_url=f"http://127.0.0.1:{free_port()}")
        delivered().write_parquet(tmp_path / "parcels.parquet")
        run_dir = settings.run_dir(CASE, AS_OF)
        for step in (ingest, validate, dataset, train, export, evaluate, gate):
            step.run(load_params(CASE), settings, run_dir, AS_OF)
    assert storage.read_manifest(run_dir / "gate").facts["decision"] == "promote"
