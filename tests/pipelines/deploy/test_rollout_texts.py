"""The handshake with the real Triton for a case of texts."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from embedded import triton as embedded
from pipelines import storage
from pipelines.cases import load_fields
from pipelines.deploy import repository, rollout, triton
from pipelines.errors import IntegrityError, Unavailable
from pipelines.params import ServingParams
from tests.texts import some_texts, write_text_bundle

pytestmark = pytest.mark.slow
CASE = "triage"
FIELDS = load_fields(CASE)


def bundle(settings, month):
    """A committed bundle with the dataset that it was judged on."""
    as_of = datetime(2015, month, 1, tzinfo=UTC)
    run_dir = settings.run_dir(CASE, datetime(2015, month, 1, tzinfo=UTC))
    key = f"dataset-{month}"

    def dataset(folder):
        pl.DataFrame({"text": some_texts(40, seed=month)}).write_parquet(folder / "holdout.parquet")
        return {}

    def export(folder):
        write_text_bundle(folder, len(FIELDS.classes), seed=month)
        (folder / "bundle.json").write_text(json.dumps({"fields_hash": FIELDS.hash, "dataset_key": key}))
        return {}

    storage.commit(run_dir / "dataset", case=CASE, as_of=as_of, key=key, inputs={}, build=dataset)
    storage.commit(run_dir / "export", case=CASE, as_of=as_of, key=f"export-{month}", inputs={}, build=export)
    return run_dir / "export"


def test_a_text_version_serves_only_as_its_own_bundle_does(triton_server):
    """A text version is proved by real texts of its holdout, all classes' scores compared.

    Another bundle's model under its number is refused, and so is one that is not loaded.
    """
    home, ports = triton_server
    settings = embedded.settings(home, ports)
    first = bundle(settings, 1)
    second = bundle(settings, 2)
    rollout.offer(settings, FIELDS, 1, first)
    tensors = rollout.probe_tensors(FIELDS, first)
    assert triton.infer(settings, CASE, 1, tensors).shape == (rollout.PROBE_TEXTS, len(FIELDS.classes))
    with pytest.raises(IntegrityError, match="differs from ONNX Runtime"):
        rollout.prove(settings, FIELDS, 1, second)
    with pytest.raises(Unavailable):
        rollout.prove(settings, FIELDS, 2, second)
    assert repository.configured(settings.model_repository, CASE) == [1]


def test_a_case_that_wants_a_gpu_goes_on_without_one(triton_server, caplog):
    """Where Triton has no GPU, a case for one is configured for it, loaded on the CPU and proved there.

    Log and configuration say why; reconciling again changes nothing.
    """
    home, ports = triton_server
    settings = embedded.settings(home, ports)
    first = bundle(settings, 3)
    with caplog.at_level("INFO"):
        rollout.offer(settings, FIELDS, 3, first, serving=ServingParams(device="gpu"))
    assert "triage is served on the CPU instead of a GPU: Triton at" in caplog.text
    assert "KIND_CPU" in repository.read_config(settings.model_repository, CASE)
    assert "GPU" in repository.instead_of_gpu(settings.model_repository, CASE)
    assert triton.devices(settings, CASE) == ["cpu"]
    rollout.prove(settings, FIELDS, 3, first)


def test_auto_is_the_cpu_where_there_is_no_gpu(triton_server, caplog):
    """A case that leaves the device to Triton is KIND_AUTO in the configuration, and served.

    It is said to be served on the CPU.
    """
    home, ports = triton_server
    settings = embedded.settings(home, ports)
    first = bundle(settings, 4)
    with caplog.at_level("INFO"):
        rollout.offer(settings, FIELDS, 4, first)
    assert "triage is served on the CPU (serving.device: auto)" in caplog.text
    assert "KIND_AUTO" in repository.read_config(settings.model_repository, CASE)
    assert triton.devices(settings, CASE) == ["cpu"]
    rollout.prove(settings, FIELDS, 4, first)
