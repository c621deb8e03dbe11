"""A case that lies outside of the images: `init` writes it, containers that run find, train and serve it."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from benchmarks.compose import checks
from benchmarks.compose.engine import said
from benchmarks.full.faults import until
from pipelines.errors import Unavailable

CASES = "PERENNIAL_CASES"
CASE = "visits"
ROWS = 6_000
DAYS = 60


def rows(until_day: datetime) -> pl.DataFrame:
    """Visits of the days before ``until_day`` as a team would have them, with holes and a label."""
    rng = np.random.default_rng(17)
    pages = rng.integers(1, 40, ROWS)
    device = rng.choice(["desk", "phone", "tablet"], ROWS, p=[0.5, 0.4, 0.1])
    bought = rng.random(ROWS) < 1 / (1 + np.exp(3 - pages / 8 - (device == "desk")))
    seconds = [
        None if hole else float(value)
        for hole, value in zip(rng.random(ROWS) < 0.1, rng.gamma(2, 40, ROWS), strict=True)
    ]
    first = until_day - timedelta(days=DAYS)
    return pl.DataFrame(
        {
            "visit": [f"v{number}" for number in range(ROWS)],
            "began": [(first + timedelta(days=DAYS * number / ROWS)).isoformat() for number in range(ROWS)],
            "pages": pages,
            "device": device,
            "seconds": seconds,
            "bought": bought.astype(np.int8),
        }
    )


def written(home: Path) -> tuple[Path, Path]:
    """Make ``home`` with a file of visits and the case that `init` writes of them: the file, and the folder."""
    home.mkdir()
    path, to = home / f"{CASE}.csv", home / "written"
    rows(datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)).write_csv(path)
    init = (sys.executable, "-m", "pipelines", "init", CASE, "--from", path, "--to", to)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERENNIAL_")}
    env |= {"PERENNIAL_HOME": str(home / "state"), "PERENNIAL_DATA_DIR": str(home)}  # so that the file goes by its name
    said(*init, "--label", "bought", "--time", "began", "--id", "visit", env=env)
    return path, to / CASE


def brought(stack: checks.Stack, home: Path) -> dict[str, Any]:
    """What becomes of a case that is put into the folder of cases of a stack that runs.

    Its file goes into the stack's data, its own folder among the cases; the seed, started again, sets it going.
    """
    path, folder = written(home)
    put = f"cat > /srv/perennial/data/{path.name}"
    stack.compose("exec", "-T", "airflow-scheduler", "sh", "-c", put, given=path.read_text())
    said("chmod", "-R", "go+rX", folder)
    folder.rename(Path(stack.env[CASES]) / CASE)
    began = time.monotonic()
    stack.compose("start", "seed")
    until(lambda: _seed(stack)["State"]["Status"] == "exited", "the end of the seed", checks.RUN_SECONDS)
    seconds = round(time.monotonic() - began, 1)
    lines = said("docker", "logs", "--tail", "10", _seed(stack)["Id"], env=stack.env).splitlines()
    return {
        "said": [line for line in lines if line.startswith(CASE)],
        "seconds": seconds,
        "versions": answered(stack),
    }


def _seed(stack: checks.Stack) -> dict[str, Any]:
    return checks.containers(stack)["seed"]


def answered(stack: checks.Stack) -> list[int]:
    """Which versions answer for rows of the case at the gateway; Unavailable with its words if none does."""
    told = {"answer": "nothing was asked"}
    sent = [{"pages": pages, "device": "phone", "seconds": None} for pages in range(1, 40)]
    url = f"{stack.url('gateway')}/v1/cases/{CASE}/predict"
    with httpx.Client(timeout=30, trust_env=False, headers={"X-API-Key": stack.secret("gateway_api_key")}) as http:

        def asked() -> bool:
            answer = http.post(url, json={"rows": sent})
            told["answer"] = answer.text
            return answer.is_success

        try:
            until(asked, f"an answer of the gateway for {CASE}", 60)
        except Unavailable as error:
            raise Unavailable(f"{error}, the last was {told['answer'][:500]}") from error
    return sorted({int(row["version"]) for row in json.loads(told["answer"])["rows"]})
