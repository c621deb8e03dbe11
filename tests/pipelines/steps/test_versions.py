"""A step whose code changed gets a new STEP_VERSION: its old artefacts would otherwise pass for new ones."""

import json
from pathlib import Path

import pytest

from tests.pipelines.steps import versions


@pytest.mark.parametrize("path", versions.step_files(), ids=lambda path: path.stem)
def test_changed_steps_have_a_new_version(path: Path):
    """The source of a step and of its rooms is the one that its STEP_VERSION stands for."""
    kept = json.loads(versions.KEPT.read_text()).get(path.stem)
    found = versions.describe(path)
    assert kept is not None, f"{path.stem} is a new step: run `make step-versions` and commit versions.json"
    if kept["version"] == found["version"]:
        assert kept["sha256"] == found["sha256"], (
            f"the source of {path.stem} or of its ROOMS changed under STEP_VERSION {found['version']}: "
            "raise STEP_VERSION if it now does something else, then (or if it does the same) run `make step-versions`"
        )
    assert kept == found, f"STEP_VERSION of {path.stem} is new: run `make step-versions` and commit versions.json"


def test_no_step_is_forgotten():
    """versions.json names the steps there are, and no others."""
    assert set(json.loads(versions.KEPT.read_text())) == {path.stem for path in versions.step_files()}


def test_wording_does_not_count():
    """Comments, docstrings, layout and the version itself leave a fingerprint as it is; code changes it."""
    one = '"""A."""\nSTEP_VERSION = 1\ndef run():\n    """B."""\n    return 1\n'
    same = '"""C."""\nSTEP_VERSION = 2\n\n\ndef run():\n    # D\n    return (1)\n'
    assert versions.normal(one) == versions.normal(same)
    assert versions.normal(one) != versions.normal(same.replace("(1)", "2"))


def test_a_room_that_changed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Code that changes in a room which a step names changes the step's fingerprint."""
    step, room = tmp_path / "step.py", tmp_path / "a_room_of_its_own.py"
    step.write_text('STEP_VERSION = 1\nROOMS = ("a_room_of_its_own",)\ndef run(run_dir): ...\n')
    room.write_text("LIMIT = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = versions.describe(step)
    room.write_text("LIMIT = 2\n")
    assert versions.describe(step) != before
    assert versions.step_files(tmp_path) == [step]
