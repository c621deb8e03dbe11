"""Versions of all cases are trained through the steps of the command line, registered, and reproduced.

Equal weights, 3 of 3. A fresh state folder with an MLflow of its own on a free port. triage fine-tunes the packaged
encoder on at most 400 reports: real ones where their file is found, else generated ones. `make proof-reproduce`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.record import goal, record
from embedded import mlflow
from embedded.ports import Ports
from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields
from pipelines.cases.sources import places
from pipelines.cases.triage.source import DOWNLOADED, PARQUET
from pipelines.errors import PerennialError
from pipelines.line.order import REGISTER, TRAINING
from pipelines.settings import Settings, read_settings

AS_OF = {"bank": "2008-08-01", "loans": "2020-05-01", "triage": "2015-01-01"}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "triage": {
        "dataset": {"max_rows": 400, "min_rows": 100},
        "train": {"epochs": 1, "budget_minutes": None},
        "export": {"int8": True, "ship": "fp32"},
    }
}
"""What the proof changes in a case's params.yaml."""
STEPS = tuple(step.name for step in TRAINING[: TRAINING.index(REGISTER) + 1])


def main() -> None:
    """Run the proof and write benchmarks/results/proof-reproduce.json; exit code 1 if a version is not reproduced."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="perennial-proof-") as folder, stack(Path(folder)) as own:
        generated = put_reports(read_settings(home=Path(folder)))
        rows = [
            prove(case, AS_OF[case], own)
            | {"rows_are": "generated" if case == "loans" or (generated and case == "triage") else "real"}
            for case in AS_OF
        ]
    goals = [
        goal(
            "versions whose weights are reproduced bit by bit",
            sum(row["identical"] for row in rows),
            len(rows),
            "higher",
        )
    ]
    record(
        "proof-reproduce",
        rows=rows,
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("torch", "onnxruntime", "transformers"),
    )
    if not all(row["identical"] for row in rows):
        sys.exit(1)


def prove(case: str, as_of: str, own: Mapping[str, str]) -> dict[str, Any]:
    """One row of the result: a version of ``case`` trained at ``as_of``, and what its reproduction says."""
    started = time.perf_counter()
    answers = {step: command(own, step, "--case", case, "--as-of", as_of) for step in STEPS}
    trained = time.perf_counter() - started
    facts = answers["train"]["facts"]
    version = str(answers["register"]["facts"]["version"])
    started = time.perf_counter()
    found = command(own, "reproduce", "--case", case, "--version", version, accept=(0, 1))
    return {
        "case": case,
        "identical": found["identical"],
        "layer": found["layer"],
        "weights": found["weights"]["recorded"][:16],
        "reproduced": found["weights"]["reproduced"][:16],
        "rows": answers["dataset"]["facts"]["train_rows"],
        "ranks": facts["ranks"],
        "strategy": facts.get("strategy"),
        "steps": facts.get("steps"),
        "training_run_s": round(trained, 1),
        "reproduce_s": round(time.perf_counter() - started, 1),
    }


def command(own: Mapping[str, str], *arguments: str, accept: tuple[int, ...] = (0,)) -> Any:
    """Run ``python -m pipelines`` and return what it answers; PerennialError if it does not exit as accepted."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in accept or not done.stdout:
        raise PerennialError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def put_reports(settings: Settings) -> bool:
    """Write generated reports where triage keeps a download, if no folder has the real ones; whether that was so."""
    if any((folder / PARQUET).exists() for folder, _ in places(settings)):
        return False
    generator = np.random.default_rng(0)
    fields = load_fields("triage")
    count = 3000
    teams = generator.choice(fields.classes, count)
    words = [f"word{number}" for number in range(200)]
    texts = [
        f"{team.replace('_', ' ')} {' '.join(generator.choice(words, generator.integers(10, 60)))} {number}"
        for number, team in enumerate(teams)
    ]
    first = datetime(2014, 1, 1, tzinfo=UTC)
    times = [first + timedelta(hours=2 * number) for number in range(count)]
    path = settings.root / "data" / DOWNLOADED
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {"id": [f"made-{number}" for number in range(count)], "event_time": times, "text": texts, "team": teams}
    ).write_parquet(path)
    return True


@contextmanager
def stack(home: Path) -> Iterator[dict[str, str]]:
    """MLflow alone: the environment that leads the steps to it and to the proof's parameters."""
    with mlflow.server(home, Ports.free()) as url:
        yield environment(home, url)


def environment(home: Path, url: str) -> dict[str, str]:
    """What the steps have to know: their state, MLflow and the parameters. There is no Triton and no gateway."""
    return {
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_MLFLOW_URL": url,
        "PERENNIAL_PARAMS_DIR": str(params_folder(home)),
        "OMP_NUM_THREADS": "1",
    }


def params_folder(home: Path) -> Path:
    """A folder with the changed parameters of the cases in ``CHANGES``."""
    folder = home / "params"
    folder.mkdir()
    for case, changes in CHANGES.items():
        params = yaml.safe_load((CASES_ROOT / case / "params.yaml").read_text())
        for block, values in changes.items():
            params[block] = {**params.get(block, {}), **values}
        (folder / f"{case}.yaml").write_text(yaml.safe_dump(params, default_flow_style=False))
    return folder


if __name__ == "__main__":
    main()
