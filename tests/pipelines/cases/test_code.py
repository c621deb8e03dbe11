"""pipelines/cases/code.py: a case's code in steps' keys, in the record of a training, and in a replay's name."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cases.code import code_sha256, modules
from pipelines.params_file import load_params
from pipelines.replay.policies import POLICIES
from pipelines.replay.ticks import cut
from pipelines.replay.world import build, played
from pipelines.settings import Settings
from tests import shop
from tests.pipelines.verbs import dataset, ingest, train, validate

ROOT = Path(__file__).parents[3]
AS_OF = datetime(2024, 2, 17, tzinfo=UTC)
LINE = {"ingest": ingest, "validate": validate, "dataset": dataset, "train": train}


@pytest.fixture
def case(tmp_path):
    """A case's folder, and a shared module beside it that its model is built from."""
    with shop.installed(tmp_path / "cases") as root:
        folder = shop.write(root)
        (root / "networks.py").write_text("from pipelines.cases.tabular import build\n")
        shop.edit(
            folder / "model.py",
            ("from pipelines.cases.tabular import build", "from .. import networks\n\nbuild = networks.build"),
        )
        yield folder


@pytest.fixture
def settings(tmp_path):
    """A state folder, and the rows of the case."""
    shop.write_rows(tmp_path / "data" / "shop.csv")
    return Settings(home=tmp_path / "state", data_dir=tmp_path / "data")


TWO_THREADS = """
import gc, sys
from concurrent.futures import ThreadPoolExecutor
from pipelines.cases.code import code_sha256
sys.setswitchinterval(1e-6)
gc.callbacks.append(lambda *_: sum(range(200)))
gc.set_threshold(50)
with ThreadPoolExecutor(2) as pool:
    assert len(set(pool.map(code_sha256, ["triage"] * 40))) == 1
"""


def test_two_threads_may_ask_at_once():
    """Threads of one process that hash a case's code at the same moment get the same answer."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_THREADS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name", ["source.py", "model.py", "schema.py", "colours.csv", "parts/more.py", "../networks.py", "../tabular.py"]
)
def test_every_file_of_the_code_counts(case, name):
    """Files of the folder, and shared modules that the case imports over others, change the digest and nothing else."""
    (case / "parts").mkdir()
    path = case / name if name != "../tabular.py" else case.parent / "tabular.py"
    if name == "../tabular.py":
        path.write_text((shop.REAL / "tabular.py").read_text())  # the one that an import finds first
    before = code_sha256("shop")
    text = path.read_text() if path.exists() else None
    path.write_text(f"{text or ''}# edited\n")
    assert code_sha256("shop") != before
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert code_sha256("shop") == before


@pytest.mark.parametrize(
    "name",
    [
        "params.yaml",
        "demo.yaml",
        "profile.json",
        "variants/other/shop.yaml",
        "README.md",
        "__pycache__/model.pyc",
        ".notes",
        "../other.py",
    ],
)
def test_what_enters_by_its_values_or_is_prose_does_not_count(case, name):
    """Parameters, plans, scales, prose, caches and modules that the case does not import leave the digest as it is."""
    before = code_sha256("shop")
    (case / name).parent.mkdir(parents=True, exist_ok=True)
    (case / name).write_text("# edited\n")
    assert code_sha256("shop") == before


def test_shared_modules_are_named(case):
    """A case's modules are its package and what it imports from beside it, relatively or over another module too."""
    assert case.exists()
    found = modules("shop")
    assert found[0] == "pipelines.cases.shop"
    assert {"pipelines.cases.networks", "pipelines.cases.sources", "pipelines.cases.tabular"} <= {*found}
    assert "pipelines.cases.embedding" not in found


def test_edited_code_is_run_at_the_same_as_of(case, settings):
    """A run repeated after an edit of source or model runs those steps anew, and its record says so; else it rests."""
    params, run_dir = load_params("shop"), settings.run_dir("shop", AS_OF)

    def run() -> dict[str, str]:
        return {name: step.run(params, settings, run_dir, AS_OF).key for name, step in LINE.items()}

    first = run()
    record = json.loads((run_dir / "train" / "record.json").read_text())
    assert run() == first
    assert record["code"]["case"] == code_sha256("shop")
    assert {"pipelines.cases.shop", "pipelines.cases.networks", "pipelines.cases.sources"} <= record["code"][
        "sources"
    ].keys()
    shop.edit(case / "model.py", ("__all__", "HIDDEN = 2\n__all__"))
    second = run()
    assert [name for name in LINE if first[name] == second[name]] == []
    again = json.loads((run_dir / "train" / "record.json").read_text())
    assert again["code"]["case"] != record["code"]["case"]
    changed = {name for name, sha256 in again["code"]["sources"].items() if record["code"]["sources"][name] != sha256}
    assert changed == {"pipelines.cases.shop"}
    assert storage.read_manifest(storage.find(run_dir / "train", first["train"])).key == first["train"]


def test_only_the_policy_that_asks_for_a_price_hangs_on_it(case, settings):
    """At another price headroom plays a history of its own; the others have theirs, which is not played again."""
    params = load_params("shop")
    seen = cut(datetime(2024, 2, 1).date(), datetime(2024, 3, 1).date(), params.drift)
    worlds = [build(played(params, None, price), settings, seen) for price in (0.01, 0.05)]
    homes = {name: {world.home(POLICIES[name]).home for world in worlds} for name in ("drift", "headroom")}
    assert {name: len(found) for name, found in homes.items()} == {"drift": 1, "headroom": 2}


def test_a_replay_begins_anew_with_other_code(case, settings):
    """Histories that were played by other code, or profiled on other scales, lie in a folder of their own."""
    params = load_params("shop")
    world = build(params, settings, cut(datetime(2024, 2, 1).date(), datetime(2024, 3, 1).date(), params.drift))
    homes = [world.home(POLICIES["drift"]).home]
    assert world.home(POLICIES["drift"]).home == homes[0]
    for name, old, new in (
        ("source.py", '"""Where the rows are."""', '"""Where they are."""'),
        ("profile.json", "500.0", "400.0"),
    ):
        shop.edit(case / name, (old, new))
        homes.append(world.home(POLICIES["drift"]).home)
    assert len(set(homes)) == 3
