"""A version's folders are found by the ledger or by the runs' register manifests, or it is said what is missing."""

import shutil
from datetime import UTC, datetime, timedelta

import pytest

from pipelines import ledger, storage
from pipelines.contracts import Order
from pipelines.errors import ConfigError, IntegrityError
from pipelines.reproduction.find import find
from pipelines.settings import Settings

AS_OF = datetime(2021, 1, 1, tzinfo=UTC)
FILES = {
    "dataset": ("train.parquet", "holdout.parquet"),
    "train": ("weights.pt", "record.json", "metrics.jsonl"),
    "export": ("model.onnx",),
    "evaluate": (),
    "register": (),
}
INPUTS = {
    "dataset": (),
    "train": ("dataset",),
    "export": ("dataset", "train"),
    "evaluate": ("dataset", "export"),
    "register": ("gate", "export"),
}


@pytest.fixture
def settings(tmp_path):
    """An empty state folder."""
    return Settings(home=tmp_path)


def put_run(settings, version, as_of=AS_OF, mark=""):
    """The folders of one run, their files holding their names; ``mark`` makes it another run of the same ``as_of``."""
    run_dir = settings.run_dir("loans", as_of)
    keys = {"gate": storage.digest(["gate", mark])}
    for step, names in FILES.items():
        keys[step] = storage.digest([step, version, mark])

        def build(folder, step=step, names=names):
            for name in names:
                (folder / name).write_text(f"{name} {version} {mark}")
            return {"version": version, "challenger": {}} if step in {"register", "evaluate"} else {}

        storage.commit(
            run_dir / step,
            case="loans",
            as_of=as_of,
            key=keys[step],
            inputs={name: keys[name] for name in INPUTS[step]},
            build=build,
        )
    return run_dir, keys


def test_a_version_that_was_never_released_is_found_by_its_run(settings):
    """The register manifest of a run leads to the folders of that run and of no other."""
    put_run(settings, 1)
    run_dir, keys = put_run(settings, 2, AS_OF + timedelta(days=1))
    found = find(settings, "loans", 2)
    assert found.folders == {step: run_dir / step for step in ("dataset", "train", "export", "evaluate")}
    assert found.manifests["train"].key == keys["train"]


def test_folders_that_were_set_aside_are_found(settings):
    """When a run of the same as_of was made anew, the earlier version still has all of its folders."""
    run_dir, keys = put_run(settings, 1)
    put_run(settings, 2, mark="again")
    found = find(settings, "loans", 1)
    assert {step: manifest.key for step, manifest in found.manifests.items()} == {
        step: keys[step] for step in found.manifests
    }
    assert found.folders["train"].name.startswith("train.")
    assert find(settings, "loans", 2).folders["train"] == run_dir / "train"


def test_a_release_is_found_by_the_ledger(settings):
    """What serves is found by its release, even where the register folder is gone."""
    run_dir, keys = put_run(settings, 4)
    ledger.append(
        settings.ledger,
        Order(
            case="loans",
            after=0,
            champion=4,
            candidate_key=keys["export"],
            bundle=str((run_dir / "export").relative_to(settings.root)),
            action="promote",
            trigger="initial",
            reason="test",
            actor="test",
            as_of=AS_OF,
        ),
    )
    shutil.rmtree(run_dir / "register")
    assert find(settings, "loans", 4).manifests["export"].key == keys["export"]


def test_an_unknown_version_is_refused_with_those_there_are(settings):
    """A number that nobody registered is the caller's mistake; the known ones are named, and where they are sought."""
    put_run(settings, 1)
    with pytest.raises(ConfigError, match=r"no version 9 .*registered are 1; PERENNIAL_HOME"):
        find(settings, "loans", 9)


@pytest.mark.parametrize(
    "name",
    [
        "train/record.json",
        "train/metrics.jsonl",
        "train/weights.pt",
        "dataset/train.parquet",
        "dataset/holdout.parquet",
    ],
)
def test_a_missing_file_is_named(settings, name):
    """Without its record, rows or weights a version cannot be reproduced, and the file that is missing is named."""
    run_dir, _ = put_run(settings, 1)
    (run_dir / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name} missing: it cannot be reproduced"):
        find(settings, "loans", 1)


@pytest.mark.parametrize("step", ["train", "dataset", "export"])
def test_a_missing_folder_is_named(settings, step):
    """A step's folder that is gone is said to be."""
    run_dir, _ = put_run(settings, 1)
    shutil.rmtree(run_dir / step)
    with pytest.raises(IntegrityError, match=f"{step} does not hold the artefact"):
        find(settings, "loans", 1)


def test_a_record_that_was_changed_is_refused(settings):
    """What training left must be what its manifest says; changed rows are left to the comparison, which names them."""
    run_dir, _ = put_run(settings, 1)
    (run_dir / "dataset" / "train.parquet").write_text("other rows")
    find(settings, "loans", 1)
    (run_dir / "train" / "record.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"record.json has sha256"):
        find(settings, "loans", 1)
