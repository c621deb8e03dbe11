"""dvc.yaml and data.dvc: the same line as the DAG's, on rows that the project can make again."""

import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.cases.code import modules
from pipelines.cases.loans import source as loans
from pipelines.line import dvc, order
from pipelines.params_file import load_params

REPOSITORY = Path(__file__).parents[1]
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
RUN = "runs/dvc/artefacts/loans/20200501T000000Z"


def test_the_file_is_what_the_steps_declare():
    """dvc.yaml is what `make dvc-yaml` writes.

    The training line up to the gate, each step with its parameters and sources.
    """
    assert dvc.FILE.read_text() == dvc.text()
    assert list(STAGES) == [step.name for step in order.TRAINING][: len(STAGES)]
    assert list(STAGES)[-1] == "gate"


@pytest.mark.parametrize("name", ["ingest", "train", "export"])
def test_a_stage_depends_on_the_code_that_its_key_holds(name: str):
    """The steps whose keys hold the case's code run again when a file of it changes, shared ones included."""
    package, *shared = modules("loans")
    own = [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / package.replace(".", "/")).glob("*.py")]
    assert {*own, *(f"{module.replace('.', '/')}.py" for module in shared)} <= set(STAGES[name]["deps"])


def test_a_parameter_of_the_export_runs_its_stage():
    """What a case says of its export runs its stage: `loans` says nothing yet, so it hangs on the whole file."""
    assert dvc.SETTINGS in STAGES["export"]["deps"]
    [declared] = STAGES["gate"]["params"]
    assert declared["${settings}"] == ["gate", "dataset.min_holdout"]
    assert dvc.SETTINGS not in STAGES["gate"]["deps"]


def test_the_pinned_rows_are_those_of_the_stream():
    """The file that data.dvc pins lies in the repository's remote.

    It holds what the generator makes today, day by day.
    """
    pinned = yaml.safe_load((REPOSITORY / "data.dvc").read_text())["outs"][0]
    remote = REPOSITORY / "dvc_remote" / "files" / "md5"
    listed = yaml.safe_load((remote / pinned["md5"][:2] / pinned["md5"][2:]).read_text())
    assert [entry["relpath"] for entry in listed] == [loans.PINNED]
    md5 = listed[0]["md5"]
    frame = pl.read_parquet(remote / md5[:2] / md5[2:])
    days = frame["event_time"].dt.date().unique().sort().to_list()
    assert (days[0], len(days)) == (date(2020, 3, 1), 120)
    params = load_params("loans")
    for day in (days[0], date(2020, 5, 31), date(2020, 6, 1), days[-1]):
        assert frame.filter(pl.col("event_time").dt.date() == day).equals(loans.generate(day, **params.source))


def test_the_remote_is_small():
    """What the repository carries for DVC is under 5 MB."""
    assert sum(path.stat().st_size for path in (REPOSITORY / "dvc_remote").rglob("*") if path.is_file()) < 5e6


@pytest.mark.long
def test_a_fresh_clone_pulls_reproduces_and_then_rests(tmp_path: Path):
    """In a fresh clone `dvc pull` and `dvc repro` run the line to the gate on the pinned rows.

    A second `dvc repro` runs nothing.
    """
    clone = tmp_path / "clone"
    # The files as they are here, uncommitted ones too, in a repository of their own.
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for name in listed.splitlines():
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone / name)
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERENNIAL_", "DVC_", "GIT_"))}
    environment = {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def dvc(*arguments: str) -> str:
        done = subprocess.run(
            ["dvc", *arguments], cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc("pull")
    first = dvc("repro")
    assert [line.split("'")[1] for line in first.splitlines() if line.startswith("Running stage")] == list(STAGES)
    assert "pinned rows" in (clone / RUN / "ingest" / "manifest.json").read_text()
    assert (clone / RUN / "gate" / "verdict.json").exists()
    second = dvc("repro")
    assert "Running stage" not in second
    assert "up to date" in second
