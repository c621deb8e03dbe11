"""pipelines/provenance.py: work says what commit it came from, and whether that is all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines

PIPELINES = Path(pipelines.__file__).parent


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A repository that holds this program's library, all of it committed."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(PIPELINES, folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__\n")
    for command in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "All"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("pipelines/cases/mine/model.py", True),
        ("pipelines/cases/mine/rates.csv", True),
        ("pipelines/helpers.py", True),
        ("plugins/more.py", True),
        ("pipelines/cases/ignored/model.py", True),
        ("pipelines/text.py", True),
        ("pipelines/cases/__pycache__/old.pyc", False),
        ("dvc.lock", False),
        ("runs/local/lake/bank/a.parquet", False),
    ],
)
def test_code_that_git_does_not_know_makes_work_dirty(clone: Path, name: str, dirty: bool):
    """Provenance calls work dirty when code changed or lies beside the committed one.

    So does a whole case that git ignores; state and caches do not.
    """
    path = clone / name
    code = "from pipelines.provenance import provenance; print(provenance()['dirty'])"
    (clone / ".git" / "info" / "exclude").write_text("pipelines/cases/ignored\n")
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before or ''}\n# edited\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=True)
    if before is None:
        path.unlink()
    else:
        path.write_text(before)
    assert done.stdout.strip() == str(dirty)


def test_without_a_repository_nobody_knows(tmp_path: Path):
    """Where there is no commit to compare with, work is neither clean nor dirty."""
    shutil.copytree(PIPELINES, tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from pipelines.provenance import provenance; print(provenance()['commit'], provenance()['dirty'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "None"]
