"""A source that is read by mapped tasks, on a real Airflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.moments import parse_as_of
from pipelines.settings import Settings
from tests import shop

ROOT = Path(__file__).parents[2]
AS_OF = "2024-02-16T00:00:00Z"


@pytest.mark.slow
@pytest.mark.long
def test_a_source_is_read_by_mapped_tasks(tmp_path):
    """Airflow maps a task over each stretch of days, and `ingest` makes of them what it makes alone by hand."""
    path = shop.write(tmp_path / "cases", "desk") / "params.yaml"
    (path.parent / "source.py").unlink()
    params = yaml.safe_load(path.read_text())
    params["source"] = {"kind": "files", "url": str(shop.write_rows(tmp_path / "shop.csv"))}
    params["dataset"] |= {"window_days": 14, "mapped_days": 4}
    path.write_text(yaml.safe_dump(params))
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PERENNIAL_CASES": str(tmp_path / "cases"),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    }

    def run(state: str, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=env | {"PERENNIAL_HOME": str(tmp_path / state)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run("mapped", "-m", "airflow", "db", "migrate")
    states = json.loads(run("mapped", "tests/dags/dag_run.py", "desk", AS_OF).splitlines()[-1])
    expected = [["ingest", -1], ["ingest_days", -1], *(["ingest_part", number] for number in range(4))]
    assert [state for state in states if state[0].startswith("ingest")] == [[*task, "success"] for task in expected]
    run("by-hand", "-m", "pipelines", "ingest", "--case", "desk", "--as-of", AS_OF)
    made = []
    for state in ("mapped", "by-hand"):
        folder = Settings(home=tmp_path / state).run_dir("desk", parse_as_of(AS_OF))
        assert [path.name for path in folder.iterdir()] == ["ingest"]
        made.append(json.loads((folder / "ingest" / "manifest.json").read_text()))
    assert (made[0]["key"], made[0]["facts"]) == (made[1]["key"], made[1]["facts"])
