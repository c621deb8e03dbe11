"""pipelines/deploy/repository.py: versions appear whole, and the configuration names what may be loaded."""

import os
import shutil
import signal

import pytest

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.deploy import repository
from pipelines.errors import IntegrityError
from pipelines.fields import Fields, Text
from pipelines.files import file_sha256
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, candidate, month

FIELDS = load_fields(CASE)


@pytest.fixture
def bundle(tmp_path):
    """A committed export folder."""
    return candidate(Settings(home=tmp_path / "home"), month(1), bias=0.1) / "export"


@pytest.mark.parametrize(("device", "kind"), [("auto", "KIND_AUTO"), ("cpu", "KIND_CPU"), ("gpu", "KIND_GPU")])
def test_configuration_says_what_the_case_declares(device, kind):
    """The configuration has the case's tensors, the kept versions in order, the device's kind.

    And the official backend's name.
    """
    assert (
        repository.config(FIELDS, [3, 1], device)
        == f"""name: "bank"
backend: "onnxruntime"
max_batch_size: 1024
input [
  {{ name: "categorical" data_type: TYPE_INT64 dims: [ {len(FIELDS.categorical)} ] }},
  {{ name: "numeric" data_type: TYPE_FP32 dims: [ {len(FIELDS.numeric)} ] }}
]
output [ {{ name: "score" data_type: TYPE_FP32 dims: [ 1 ] }} ]
version_policy {{ specific {{ versions: [ 1, 3 ] }} }}
instance_group [ {{ kind: {kind} count: 1 }} ]
parameters [
  {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }},
  {{ key: "session.intra_op.allow_spinning" value: {{ string_value: "0" }} }}
]
"""
    )


def test_configuration_of_texts_leaves_their_length_open():
    """A text case has ids and mask of any length, and one score per class."""
    text = repository.config(Fields("reports", (Text("text"),), label="team", classes=("a", "b", "c")), [1])
    for name in ("input_ids", "attention_mask"):
        assert f'name: "{name}" data_type: TYPE_INT64 dims: [ -1 ]' in text
    assert 'name: "score" data_type: TYPE_FP32 dims: [ 3 ]' in text


def test_staging_is_idempotent_and_repairs(tmp_path, bundle):
    """A version is staged once, is there with the manifest's bytes, and is replaced if it was damaged.

    Nothing else is left.
    """
    repo = tmp_path / "repo"
    assert repository.stage(repo, CASE, 4, bundle)
    assert not repository.stage(repo, CASE, 4, bundle)
    model = repo / CASE / "4" / "model.onnx"
    model.write_bytes(b"damaged")
    assert repository.stage(repo, CASE, 4, bundle)
    assert file_sha256(model) == storage.read_manifest(bundle).files["model.onnx"]
    assert sorted(path.name for path in repo.rglob("*")) == ["4", CASE, "model.onnx"]


def test_what_a_killed_staging_left_is_removed_by_the_next(tmp_path, bundle):
    """After SIGKILL once a damaged version was replaced, the next staging removes only the damaged one."""
    repo = tmp_path / "repo"
    repository.stage(repo, CASE, 4, bundle)
    (repo / CASE / "4" / "model.onnx").write_bytes(b"damaged")
    child = os.fork()
    if not child:
        shutil.rmtree = lambda *_args, **_named: os.kill(os.getpid(), signal.SIGKILL)
        repository.stage(repo, CASE, 4, bundle)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not repository.stage(repo, CASE, 4, bundle)
    assert sorted(path.name for path in repo.rglob("*")) == ["4", CASE, "model.onnx"]


def test_bundle_without_a_model_is_a_clear_error(tmp_path, bundle):
    """A bundle that lost its model is named, with what to do, and nothing is staged."""
    (bundle / "model.onnx").unlink()
    with pytest.raises(
        IntegrityError, match=r"export has no model\.onnx: restore the folder, or run the step 'export' again"
    ):
        repository.stage(tmp_path / "repo", CASE, 4, bundle)
    assert repository.staged(tmp_path / "repo", CASE) == []


def test_configured_versions_are_read_back(tmp_path):
    """What was configured is read back; writing the same again changes nothing.

    Without a configuration there are none.
    """
    assert repository.configured(tmp_path, CASE) == []
    assert repository.configure(tmp_path, FIELDS, [2, 10])
    assert repository.configured(tmp_path, CASE) == [2, 10]
    assert not repository.configure(tmp_path, FIELDS, [10, 2])


def test_retiring_keeps_what_is_kept(tmp_path, bundle):
    """Versions that are not kept are deleted; with none to keep the configuration goes too."""
    for version in (1, 2, 10):
        repository.stage(tmp_path / "repo", CASE, version, bundle)
    repository.configure(tmp_path / "repo", FIELDS, [2, 10])
    assert repository.retire(tmp_path / "repo", CASE, [2, 10]) == [1]
    assert repository.staged(tmp_path / "repo", CASE) == [2, 10]
    assert repository.retire(tmp_path / "repo", CASE, []) == [2, 10]
    assert repository.configured(tmp_path / "repo", CASE) == []
