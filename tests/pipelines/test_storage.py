"""pipelines/storage.py: folders appear whole, once, and are found again by their key."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines import files, storage
from pipelines.errors import ConfigError, IntegrityError

AS_OF = datetime(2008, 8, 1, tzinfo=UTC)


def _commit(folder: Path, key: str = "k1", text: str = "hello", calls: list[str] | None = None):
    def build(work: Path) -> dict[str, int]:
        (work / "data.txt").write_text(text)
        if calls is not None:
            calls.append(key)
        return {"rows": len(text)}

    return storage.commit(folder, case="bank", as_of=AS_OF, key=key, inputs={}, build=build)


def test_same_key_is_a_no_op(tmp_path: Path):
    """A second commit of the same key runs nothing and returns the first manifest."""
    calls: list[str] = []
    first = _commit(tmp_path / "train", calls=calls)
    second = _commit(tmp_path / "train", text="other", calls=calls)
    assert first == second
    assert calls == ["k1"]
    assert (tmp_path / "train" / "data.txt").read_text() == "hello"


def test_other_key_sets_the_old_folder_aside(tmp_path: Path):
    """A commit of another key publishes the new work and keeps the old folder beside it."""
    _commit(tmp_path / "train")
    manifest = _commit(tmp_path / "train", key="k2", text="new")
    assert manifest.key == "k2"
    assert (tmp_path / "train" / "data.txt").read_text() == "new"
    [old] = tmp_path.glob("train.k1*")
    assert (old / "data.txt").read_text() == "hello"


def test_an_artefact_is_found_by_its_key(tmp_path: Path):
    """A key leads to its folder, also after another key's commit set that folder aside; an unknown key is refused."""
    _commit(tmp_path / "train")
    assert storage.find(tmp_path / "train", "k1") == tmp_path / "train"
    _commit(tmp_path / "train", key="k2", text="new")
    assert (storage.find(tmp_path / "train", "k1") / "data.txt").read_text() == "hello"
    assert (storage.find(tmp_path / "train", "k2") / "data.txt").read_text() == "new"
    with pytest.raises(IntegrityError, match="does not hold the artefact k3"):
        storage.find(tmp_path / "train", "k3")


def test_zombie_gives_way(tmp_path: Path):
    """A try that wakes after another one committed leaves the committed folder as it is."""
    folder = tmp_path / "train"

    def slow(work: Path) -> dict[str, int]:
        (work / "data.txt").write_text("zombie")
        _commit(folder, key="k1", text="winner")
        return {}

    manifest = storage.commit(folder, case="bank", as_of=AS_OF, key="k1", inputs={}, build=slow)
    assert manifest.facts == {"rows": 6}
    assert (folder / "data.txt").read_text() == "winner"
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("point", storage.FAILPOINTS)
def test_kill_at_every_failpoint(tmp_path: Path, point: str):
    """After SIGKILL at any point of a commit, running it again gives the same tree and no leftovers."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, '.');from tests.pipelines.test_storage import "
        "_commit; _commit(Path(sys.argv[1]) / 'train')"
    )
    environment = {**os.environ, "PERENNIAL_FAILPOINT": f"train:{point}", "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    _commit(tmp_path / "train")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "train",
        "train/data.txt",
        "train/manifest.json",
    ]
    assert storage.read_manifest(tmp_path / "train", verify=True).facts == {"rows": 5}


def test_a_fault_that_lies_in_a_folder_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each file named after a point kills one process that comes by, and no more: the next try lives."""
    killed = []
    monkeypatch.setattr(storage.os, "kill", lambda _pid, number: killed.append(number))
    monkeypatch.setenv("PERENNIAL_FAILPOINT", f"@{tmp_path}")
    for name in ("drift:files.1", "drift:files.2", "drift:published.1"):
        (tmp_path / name).touch()
    for _ in range(4):
        storage.failpoint("drift", "files")
        storage.failpoint("alert", "files")
    assert killed == [signal.SIGKILL] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["drift:published.1"]


def test_changed_bytes_are_found(tmp_path: Path):
    """A verified read names the file whose bytes are not those committed."""
    _commit(tmp_path / "train")
    (tmp_path / "train" / "data.txt").write_text("hellO")
    with pytest.raises(IntegrityError, match=r"data\.txt has sha256"):
        storage.read_manifest(tmp_path / "train", verify=True)


def test_missing_step_says_what_to_run(tmp_path: Path):
    """Reading a step that has not run says which step to run."""
    with pytest.raises(ConfigError, match="run the step 'train' first"):
        storage.read_manifest(tmp_path / "train")


def test_a_lost_file_is_made_again(tmp_path: Path):
    """A folder that lost a file is no finished work: the same key builds it again, the old folder stays aside."""
    first = _commit(tmp_path / "train")
    (tmp_path / "train" / "data.txt").unlink()
    again = _commit(tmp_path / "train")
    assert again.files == first.files
    assert (tmp_path / "train" / "data.txt").read_text() == "hello"
    assert len(list(tmp_path.glob("train.damaged-k1.*"))) == 1


def _flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_changed_bytes_are_made_again(tmp_path: Path):
    """A folder with a changed file is no finished work either.

    Running again makes it anew, and nobody finds the damaged one.
    """
    first = _commit(tmp_path / "train")
    _flip(tmp_path / "train" / "data.txt")
    with pytest.raises(IntegrityError, match=r"data.txt has sha256 \w+, its manifest says \w+: move the folder away"):
        storage.find(tmp_path / "train", "k1")
    assert _commit(tmp_path / "train").files == first.files
    assert (storage.find(tmp_path / "train", "k1") / "data.txt").read_text() == "hello"
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(IntegrityError, match="does not hold the artefact k1"):
        storage.find(tmp_path / "train", "k1")


def test_a_manifest_is_checked_as_its_files_are(tmp_path: Path):
    """A changed fact of a manifest is found by its own sha256; one from before there was a sha256 is read as it is."""
    _commit(tmp_path / "train")
    path = tmp_path / "train" / storage.MANIFEST
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"key": "k2"}))
    with pytest.raises(IntegrityError, match="is not what was written"):
        storage.read_manifest(tmp_path / "train")
    del said["sha256"]
    path.write_text(json.dumps(said))
    assert storage.read_manifest(tmp_path / "train").key == "k1"


def test_only_the_files_that_matter_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file is hashed once as long as it does not change, and not at all for who does not read it."""
    _commit(tmp_path / "train")
    hashed = []
    once = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path.name) or once(path))
    storage.read_manifest(tmp_path / "train", verify=False)
    storage.read_manifest(tmp_path / "train", verify=("other.txt",))
    assert hashed == []
    for _ in range(2):
        storage.read_manifest(tmp_path / "train", verify=("data.txt",))
    assert hashed == ["data.txt"]
    _flip(tmp_path / "train" / "data.txt")
    with pytest.raises(IntegrityError, match=r"data.txt has sha256"):
        storage.read_manifest(tmp_path / "train")


def _elsewhere(folder: Path, begun: Path, go_on: Path) -> None:
    """A try as in another container: its process id is none here."""
    storage.os.getpid = lambda: 2**22 + 1

    def build(work: Path) -> dict:
        (work / "data.txt").write_text("hello")
        begun.touch()
        while not go_on.exists():
            time.sleep(0.01)
        return {}

    storage.commit(folder, case="bank", as_of=AS_OF, key="k1", inputs={}, build=build)


def test_a_live_try_in_another_container_is_left_alone(tmp_path: Path):
    """A try whose process cannot be seen from here keeps its work folder while a second one begins.

    A dead one's is removed.
    """
    begun = tmp_path / "begun"
    go_on = tmp_path / "go_on"
    folder = tmp_path / "run" / "train"
    first = multiprocessing.get_context("fork").Process(target=_elsewhere, args=(folder, begun, go_on))
    first.start()
    while not begun.exists():
        time.sleep(0.01)
    dead = folder.with_name(f".train.{os.getpid()}.left")
    dead.mkdir()
    (work,) = folder.parent.glob(f".train.{2**22 + 1}.*")
    manifest = _commit(folder)
    assert (work / "data.txt").exists()
    assert not dead.exists()
    go_on.touch()
    first.join(30)
    assert (first.exitcode, storage.read_manifest(folder)) == (0, manifest)
    assert [path.name for path in folder.parent.iterdir()] == ["train"]


NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0,
    reason="this host lets nobody make a process namespace",
)
def test_a_live_try_in_another_process_namespace_is_left_alone(tmp_path: Path):
    """A second try in a process namespace of its own leaves the first one's work alone, removes a dead one's.

    Then it commits.
    """
    code = """
import sys
from pathlib import Path
from tests.pipelines.test_storage import _commit

_commit(Path(sys.argv[1]) / "train", text="second")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    (tmp_path / ".train.999999.dead").mkdir()

    def build(work: Path) -> dict[str, int]:
        (work / "data.txt").write_text("first")
        subprocess.run([*NAMESPACE, sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
        assert (work / "data.txt").read_text() == "first"
        return {}

    storage.commit(tmp_path / "train", case="bank", as_of=AS_OF, key="k1", inputs={}, build=build)
    assert (tmp_path / "train" / "data.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_no_flipped_bit_of_a_manifest_gives_another_one(tmp_path: Path):
    """Each flipped bit of a manifest is found, or the manifest says the same as before."""
    committed = _commit(tmp_path / "train")
    path = tmp_path / "train" / storage.MANIFEST
    whole = path.read_bytes()
    found = 0
    for bit in range(0, 8 * len(whole), 13):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert storage.read_manifest(tmp_path / "train", verify=False) == committed
        except IntegrityError:
            found += 1
    assert found > len(whole) // 4


def test_the_mend_of_changed_bytes_works(tmp_path: Path):
    """Moving a damaged folder away and running again, as the error says, ends in the folder as it was committed."""
    first = _commit(tmp_path / "train")
    (tmp_path / "train" / "data.txt").write_text("hellO")
    with pytest.raises(IntegrityError, match="move the folder away and run again"):
        storage.read_manifest(tmp_path / "train", verify=True)
    (tmp_path / "train").rename(tmp_path / "away")
    _commit(tmp_path / "train")
    assert storage.read_manifest(tmp_path / "train", verify=True).files == first.files


def test_everything_is_durable_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file and folder in it and every new folder above is synced before the rename that publishes the work."""
    synced: set[str] = set()
    before: set[str] = set()
    fsync = os.fsync
    rename = os.rename

    def noted(fd: int) -> None:
        fsync(fd)
        synced.add(str(Path(f"/proc/self/fd/{fd}").readlink()))

    def publish(source: Path, target: Path) -> None:
        before.update(path.replace(str(source), str(target)) for path in synced)
        rename(source, target)

    def build(work: Path) -> dict[str, int]:
        (work / "model" / "1").mkdir(parents=True)
        (work / "model" / "1" / "weights").write_text("w")
        return {}

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", publish)
    folder = tmp_path / "artefacts" / "bank" / "20080801T000000Z" / "export"
    storage.commit(folder, case="bank", as_of=AS_OF, key="k", inputs={}, build=build)
    inside = [folder, folder / "model", folder / "model" / "1", folder / "model" / "1" / "weights"]
    above = [tmp_path, tmp_path / "artefacts", tmp_path / "artefacts" / "bank"]
    assert {str(path) for path in (*inside, *above)} <= before
    assert str(folder.parent) in synced
