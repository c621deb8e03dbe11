"""ingest to evaluate: SIGKILL anywhere on the way to the commit, then again: the tree of a run that nobody killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.files import file_sha256
from tests import stores

STEPS = ("ingest", "validate", "dataset", "train", "export", "evaluate")
TIMED = ("metrics.jsonl", "record.json", "seconds", "samples_per_second", "variants", "cost")
RUN = Path("artefacts/loans/20200501T000000Z")


def _cli(home: Path, step: str, failpoint: str = "", **more: str) -> int:
    environment = {
        **os.environ,
        **more,
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_FAILPOINT": failpoint,
        "POLARS_MAX_THREADS": "1",
    }
    command = [sys.executable, "-m", "pipelines", step, "--case", "loans", "--as-of", "2020-05-01"]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def _tree(home: Path) -> dict[str, str]:
    """Every file's hash; of a manifest, its key, files and facts.

    What holds times is left out: provenance, how fast training and the exported variants are, and what they cost.
    """
    tree = {}
    for path in sorted(path for path in home.rglob("*") if path.is_file() and not path.name.startswith("ledger.db")):
        if path.name == storage.MANIFEST:
            manifest = storage.read_manifest(path.parent, verify=True)
            files = {name: sha256 for name, sha256 in manifest.files.items() if name not in TIMED}
            facts = {name: fact for name, fact in manifest.facts.items() if name not in TIMED}
            tree[str(path.relative_to(home))] = storage.digest([manifest.key, files, facts])
        elif path.name not in TIMED:
            tree[str(path.relative_to(home))] = file_sha256(path)
    return tree


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], dict[str, str]]:
    """A function from a step to the tree of a run up to it that nobody killed; a step is run when it is asked for."""
    home = tmp_path_factory.mktemp("whole")

    def after(last: str) -> dict[str, str]:
        for step in STEPS[: STEPS.index(last) + 1]:
            if not (home / RUN / step).exists():
                assert _cli(home, step) == 0
        return _tree(home)

    return after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "steps"), [("files", STEPS[:3]), pytest.param("publish", STEPS, marks=pytest.mark.long)]
)
def test_killed_and_run_again(point: str, steps: tuple[str, ...], undisturbed, tmp_path: Path):
    """Each step dies at the point, and the next try leaves what an undisturbed run leaves, byte for byte."""
    for step in steps:
        assert _cli(tmp_path, step, f"{step}:{point}") == -signal.SIGKILL
        assert _cli(tmp_path, step) == 0
    later = tuple(f"{RUN / step}/" for step in STEPS[len(steps) :])
    whole = undisturbed(steps[-1])
    assert _tree(tmp_path) == {name: sha256 for name, sha256 in whole.items() if not name.startswith(later)}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("point", ["files", *storage.STORE_FAILPOINTS, "publish"])
def test_killed_on_one_machine_and_run_on_another(point: str, undisturbed, tmp_path: Path):
    """With a store each step dies on one machine, and the next try on another one, whose disk is empty at first.

    Together they leave there what an undisturbed run leaves on a disk of its own, byte for byte.
    """
    with stores.s3():
        here = {
            "PERENNIAL_LAKE": f"s3://{stores.BUCKET}/killed-{point}",
            "PERENNIAL_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
        }
        for step in STEPS:
            assert _cli(tmp_path / "dies", step, f"{step}:{point}", **here) == -signal.SIGKILL
            assert _cli(tmp_path / "lives", step, **here) == 0
    assert _tree(tmp_path / "lives") == undisturbed(STEPS[-1])
