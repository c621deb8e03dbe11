"""The project's own cases, each moved out of the tree: whatever a case needs of where it lies would be missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import case_files, storage
from pipelines.cases import load_fields, sources
from pipelines.cases.bank.source import PARQUET
from pipelines.cases.code import code_sha256
from pipelines.deploy.scheduler import KINDS
from pipelines.params_file import load_params

ROOT = Path(__file__).parents[3]
CASES = case_files.case_names()


@pytest.fixture
def places(tmp_path):
    """Runs code on a copy of the tree, with a folder outside that its cases may be moved to."""
    tree, mine = tmp_path / "tree", tmp_path / "mine"
    mine.mkdir()
    for folder in ("perennial", "pipelines", "plugins", "dags"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def run(code: str, *arguments: object, **more: str):
        paths = f"{tree}{os.pathsep}{tree / 'plugins'}"
        given = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PERENNIAL_CASES": str(mine), **more}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **given},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    run.inside, run.outside = tree / "pipelines" / "cases", mine
    return run


LOOK = """
import inspect, json, multiprocessing
from pipelines import case_files, cases, storage
from pipelines.cases.code import code_sha256
from pipelines.cases.surveying import survey

found = {}
with multiprocessing.get_context("spawn").Pool(1) as pool:
    for case in survey():
        folder = case_files.folder_of(case.name)
        # Functions are pickled by their names: a process that is spawned has to find their modules.
        functions = [
            getattr(cases.part(case.name, part), function)
            for part, function in (("source", "rows"), ("model", "build"))
            if (folder / f"{part}.py").exists()
        ]
        found[case.name] = {
            "problem": case.problem,
            "folder": str(folder),
            "params": storage.digest(case.params),
            "spawned": pool.apply(cases.load_fields, (case.name,)) == cases.load_fields(case.name),
            "fields": case.fields.hash,
            "code": code_sha256(case.name),
            "files": [pool.apply(inspect.getsourcefile, (function,)) for function in functions],
        }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_case_of_the_project_is_found_outside(places):
    """With all of them moved, each is whole and has the hashes of inside, and other processes find its code."""
    for case in CASES:
        shutil.move(places.inside / case, places.outside)
    found = places(LOOK)
    assert sorted(found) == sorted(CASES)
    for case, about in found.items():
        assert (about["problem"], about["folder"]) == ("", str(places.outside / case))
        assert (about["params"], about["code"]) == (storage.digest(load_params(case)), code_sha256(case))
        assert (about["spawned"], about["fields"]) == (True, load_fields(case).hash)
        # What builds a model may be shared: pipelines/cases/tabular.py.
        assert all(Path(file).is_relative_to(places.outside.parent) for file in about["files"])


BAG = """
import json, sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(dag_folder=sys.argv[1], bundle_name="dags-folder")
print(json.dumps({"errors": bag.import_errors, "dags": sorted(bag.dags)}))
"""


@pytest.mark.long
def test_every_case_outside_has_its_dags(places, tmp_path):
    """Airflow makes the DAGs of all cases that were moved, and no import error."""
    for case in CASES:
        shutil.move(places.inside / case, places.outside)
    airflow = {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    found = places(BAG, places.inside.parents[1] / "dags", **airflow)
    assert found["errors"] == {}
    assert found["dags"] == sorted(f"{case}_{kind}" for case in CASES for kind in KINDS)


LINE = """
import json, sys
from datetime import datetime
from pathlib import Path
from pipelines import case_files
from pipelines.line import order, runner
from pipelines.line.step import Run
from pipelines.params_file import load_params
from pipelines.settings import read_settings

case, file, as_of = sys.argv[1], Path(sys.argv[2]), datetime.fromisoformat(sys.argv[3])
last = order.STEP_BY_NAME[sys.argv[4]]
run = Run(load_params(case, file), read_settings(), as_of, trigger="initial")
made = {step.name: runner.run(step, run) for step in order.TRAINING[: order.TRAINING.index(last) + 1]}
told = {name: (one.key, one.facts.get("decision"), one.facts.get("ranks")) for name, one in made.items()}
print(json.dumps({"folder": str(case_files.folder_of(case)), "told": told}))
"""
SMALL = {
    "loans": (
        "params.yaml",
        "2020-06-01T00:00:00+00:00",
        {
            "dataset": {"window_days": 4, "min_rows": 100, "fallback_rows": 200, "min_holdout": 40},
            "train": {"epochs": 1, "ranks": 2},
            "source": {"rows_per_day": 100},
        },
    ),
    "bank": ("variants/network/bank.yaml", "2008-08-01T00:00:00+00:00", {"train": {"epochs": 1, "ranks": 2}}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "last"),
    [
        ("loans", "dataset"),
        pytest.param("loans", "gate", marks=pytest.mark.long),
        pytest.param("bank", "gate", marks=pytest.mark.long),
    ],
)
def test_a_case_goes_the_line_outside_with_the_keys_of_inside(places, tmp_path, case, last):
    """Moved out of the tree, it goes from ingest to the data set with the keys that it has in the tree.

    In full to the gate, trained on two ranks.
    """
    data = os.environ.get("PERENNIAL_DATA_DIR", str(sources.BESIDE))
    if case == "bank" and not Path(data, PARQUET).exists():
        pytest.skip("the bank data is neither in PERENNIAL_DATA_DIR nor in ../shared/data")
    own, as_of, changes = SMALL[case]
    values = yaml.safe_load((ROOT / "pipelines" / "cases" / case / own).read_text())
    for block, change in changes.items():
        values[block] |= change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    found = {}
    for place in ("inside", "outside"):
        if place == "outside":
            shutil.move(places.inside / case, places.outside)
        more = {"PERENNIAL_HOME": str(tmp_path / place), "PERENNIAL_DATA_DIR": data}
        found[place] = places(LINE, case, tmp_path / "params.yaml", as_of, last, **more)
        assert found[place].pop("folder") == str(getattr(places, place) / case)
    assert found["outside"] == found["inside"]
    assert last in found["outside"]["told"]
    if last == "gate":
        assert found["outside"]["told"]["train"][-1] == 2
