"""The whole loop with lake, log archive and artefacts on an object store: what it decides on disk, it decides there."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipelines.storage import MANIFEST
from tests import stores
from tests.system.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.long]


def demo(state: Path, **more: str) -> dict:
    """The summary of a fast demo of loans."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERENNIAL_", "AIRFLOW"))}
    command = ["make", "demo", "CASE=loans", "FAST=1", "TICKS=8", f"STATE={state}"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=kept | more, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((state / "summary.json").read_text())


def verdicts(state: Path) -> dict[str, dict]:
    """What the gate wrote, by run."""
    return {
        path.parents[1].name: json.loads(path.read_text())
        for path in sorted((state / "artefacts" / "loans").glob("*/gate/verdict.json"))
    }


def test_the_demo_decides_the_same_on_a_store_as_on_disk(tmp_path):
    """Metrics, drift of every day and every verdict are those of a state on disk, and the store holds all of it."""
    with stores.s3() as server:
        there = demo(tmp_path / "store", PERENNIAL_LAKE=f"s3://{stores.BUCKET}/demo")
        pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=stores.BUCKET)
        names = {one["Key"].removeprefix("demo/") for page in pages for one in page.get("Contents", [])}
    here = demo(tmp_path / "disk")

    assert there["metrics"] == here["metrics"]
    assert [tick["drift"] for tick in there["timeline"]] == [tick["drift"] for tick in here["timeline"]]
    assert verdicts(tmp_path / "store") == verdicts(tmp_path / "disk") != {}
    folders = {
        path.parent.relative_to(tmp_path / "store") for path in (tmp_path / "store").glob(f"artefacts/**/{MANIFEST}")
    }
    assert folders
    assert {f"{folder}/000001.json" for folder in folders} <= names
    assert any(name.startswith("mlflow/") for name in names)
    lake = {str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store" / "lake").rglob("*.parquet")}
    assert lake <= names
