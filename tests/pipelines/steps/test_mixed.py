"""A case with a text beside a table through the real steps, from its source to a verdict.

Reports are planted: the team follows from the words and from who assigned the number, and from neither alone.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines import cases, runtime, storage
from pipelines.cases import sources
from pipelines.cases.triage.source import DOWNLOADED
from pipelines.params import MixedModelParams
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.encoders import write_encoder
from tests.pipelines.verbs import dataset, evaluate, export, gate, ingest, train, validate

CASE = "triage_fields"
START, AS_OF = datetime(2015, 1, 1, tzinfo=UTC), datetime(2015, 9, 1, tzinfo=UTC)
WORDS = ("buffer overflow memory corruption", "cross site scripting html")
ASSIGNERS = ("cve@mitre.org", "secalert@redhat.com", "cna@new.example")
TEAMS = (("memory_safety", "file_path"), ("web_injection", "data_injection"))


def put_reports(settings: Settings, count: int = 800) -> None:
    """Planted reports where a download would be kept."""
    rng = np.random.default_rng(0)
    kinds, assigners = rng.integers(0, 2, count), rng.integers(0, 3, count)
    filler = ["allows", "remote", "attackers", "users", "server", "local", "via", "code", "file", "upload"]
    frame = pl.DataFrame(
        {
            "id": [f"CVE-{2015 - n % 3}-{n:04d}" for n in range(count)],
            "event_time": [START + n * timedelta(hours=6) for n in range(count)],
            "text": [
                " ".join([*rng.permutation([*WORDS[kind].split(), *rng.choice(filler, 4)]), str(n)])
                for n, kind in enumerate(kinds)
            ],
            "team": [TEAMS[kind][int(own == 0)] for kind, own in zip(kinds, assigners, strict=True)],
            "assigner": [ASSIGNERS[own] for own in assigners],
        }
    )
    (settings.root / "data").mkdir(parents=True)
    frame.write_parquet(settings.root / "data" / DOWNLOADED)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """``(settings, run's folder, parameters)`` of a first run up to its verdict."""
    home = tmp_path_factory.mktemp("mixed")
    settings = Settings(home=home, data_dir=None)
    own = load_params(CASE)
    sizes = {"hidden": (16,), "embedding": 4, "dropout": 0.0, "tokens": 16, "max_tokens": 16}
    training = {"epochs": 12, "batch_size": 32, "learning_rate": 0.02, "head_learning_rate": 0.02, "precision": "fp32"}
    params = own.model_copy(
        update={
            "model": MixedModelParams(kind="mixed", encoder=str(write_encoder(home / "encoder")), **sizes),
            "train": own.train.model_copy(update={**training, "threads": 1, "class_weights": "none"}),
            "dataset": own.dataset.model_copy(update={"min_rows": 100, "min_holdout": 50}),
        }
    )
    put_reports(settings)
    run_dir = settings.run_dir(CASE, AS_OF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BESIDE", home / "nowhere")
        for step in (ingest, validate, dataset, train, export, evaluate, gate):
            step.run(params, settings, run_dir, AS_OF)
    return settings, run_dir, params


def test_the_candidate_has_learned_from_both_and_is_promoted(line):
    """Neither text nor table tells the team alone; with both the first model is surely better than the base rates."""
    _, run_dir, _ = line
    assert storage.read_manifest(run_dir / "evaluate").facts["challenger"]["accuracy"] > 0.9
    assert storage.read_manifest(run_dir / "gate").facts["decision"] == "promote"


def test_the_bundle_answers_as_it_was_judged(line):
    """Four inputs, the tokenizer and both variants are in the bundle; its answers of raw rows are the judged ones."""
    _, run_dir, params = line
    bundle = run_dir / "export"
    about = json.loads((bundle / "bundle.json").read_text())
    names = [tensor["name"] for tensor in about["inputs"]]
    assert names == ["input_ids", "attention_mask", "categorical", "numeric"]
    assert {"tokenizer.json", "model.onnx", "model.int8.onnx", "reference.parquet"} <= {
        path.name for path in bundle.iterdir()
    }
    facts = storage.read_manifest(bundle).facts
    assert facts["parity"] <= 1e-5
    assert facts["variants"]["int8"]["refused"] is None
    fields = cases.load_fields(params.case)
    holdout = pl.read_parquet(run_dir / "dataset" / "holdout.parquet")
    found = runtime.score_rows(bundle, fields, {name: holdout[name].to_list() for name in fields.reads})
    assert (found.argmax(1) == holdout[fields.label].to_numpy()).mean() > 0.9
