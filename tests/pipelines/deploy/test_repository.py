"""pipelines/deploy/repository.py: versions appear whole, and the configuration names what may be loaded."""

import os
import shutil
import signal

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipelines import storage
from pipelines.cases import load_fields
from pipelines.deploy import repository
from pipelines.errors import IntegrityError
from pipelines.fields import Fields, Text
from pipelines.files import file_sha256
from pipelines.params import Batching, Queue, ServingParams
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
        repository.config(FIELDS, [3, 1], ServingParams(device=device))
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


BATCHED = ServingParams(
    device="cpu",
    instances=2,
    batching=Batching(window_ms=2.5, preferred_rows=(8, 32), queue=Queue(timeout_ms=250, size=100)),
)


def parsed(text):
    """A configuration as Triton reads it."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_instances_and_batching_are_tritons():
    """Instances, window, preferred rows and the queue's policy stand in the configuration under Triton's own names."""
    found = parsed(repository.config(FIELDS, [1], BATCHED))
    [group], batcher = found.instance_group, found.dynamic_batching
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert list(batcher.preferred_batch_size) == [8, 32]
    assert batcher.max_queue_delay_microseconds == 2500
    policy = batcher.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override) == (250_000, True)
    assert policy.max_queue_size == 100


def test_only_a_declared_queue_has_a_policy():
    """A bare ``batching: {}`` joins what is there already, and its queue has no policy, which would cost latency.

    One with a size alone leaves how long a request waits to its own timeout, up to an hour.
    """
    batcher = parsed(repository.config(FIELDS, [1], ServingParams(batching=Batching()))).dynamic_batching
    assert (list(batcher.preferred_batch_size), batcher.max_queue_delay_microseconds) == ([], 0)
    assert not batcher.HasField("default_queue_policy")
    sized = ServingParams(batching=Batching(queue=Queue(size=5)))
    policy = parsed(repository.config(FIELDS, [1], sized)).dynamic_batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override) == (3_600_000_000, True)
    assert policy.max_queue_size == 5


def test_without_batching_there_is_no_batcher():
    """A case that declares none has no dynamic batcher, whatever else it declares."""
    serving = ServingParams(instances=3, deadline_seconds=1.0)
    assert not parsed(repository.config(FIELDS, [1], serving)).HasField("dynamic_batching")


def test_a_fallback_holds_for_what_was_asked_for(tmp_path):
    """A case on the CPU instead of a GPU is so for its versions, instances and batching: another wish is a new one."""
    wanted = BATCHED.model_copy(update={"device": "gpu"})
    assert not repository.fell_back(tmp_path, FIELDS, [1], wanted)
    repository.configure(tmp_path, FIELDS, [1], BATCHED, instead="no GPU\nhere")
    assert repository.instead_of_gpu(tmp_path, CASE) == "no GPU here"
    assert repository.fell_back(tmp_path, FIELDS, [1], wanted)
    assert not repository.fell_back(tmp_path, FIELDS, [1, 2], wanted)
    assert not repository.fell_back(tmp_path, FIELDS, [1], wanted.model_copy(update={"instances": 1}))
    repository.configure(tmp_path, FIELDS, [1], BATCHED)
    assert not repository.fell_back(tmp_path, FIELDS, [1], wanted)


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


def test_a_case_that_is_served_otherwise_is_loaded_anew(tmp_path, bundle):
    """Triton takes a newer file for another model: models get one where more than versions changes.

    With other instances alone Triton would change a version that answers, and may forget who waits for it.
    """
    repository.configure(tmp_path, FIELDS, [1])
    repository.stage(tmp_path, CASE, 1, bundle)
    model, old = tmp_path / CASE / "1" / "model.onnx", 1_000_000_000
    seen = []
    for versions, serving, instead in (
        ([1, 2], ServingParams(), ""),
        ([1, 2], ServingParams(instances=2), ""),
        ([1, 2], ServingParams(instances=2), "no GPU"),
        ([1, 2], ServingParams(instances=2, device="gpu"), ""),
    ):
        os.utime(model, (old, old))
        assert repository.configure(tmp_path, FIELDS, versions, serving, instead=instead)
        seen.append(model.stat().st_mtime > old)
    assert seen == [False, True, False, True]


def test_retiring_keeps_what_is_kept(tmp_path, bundle):
    """Versions that are not kept are deleted; with none to keep the configuration goes too."""
    for version in (1, 2, 10):
        repository.stage(tmp_path / "repo", CASE, version, bundle)
    repository.configure(tmp_path / "repo", FIELDS, [2, 10])
    assert repository.retire(tmp_path / "repo", CASE, [2, 10]) == [1]
    assert repository.staged(tmp_path / "repo", CASE) == [2, 10]
    assert repository.retire(tmp_path / "repo", CASE, []) == [2, 10]
    assert repository.configured(tmp_path / "repo", CASE) == []
