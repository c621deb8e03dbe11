"""The train step: texts, warm start, preemption, several nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.errors import Unavailable
from pipelines.params import Params, TextModelParams
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.training.origin import governance
from tests.encoders import write_encoder
from tests.pipelines.conftest import free_port
from tests.pipelines.steps import test_model_steps as loans
from tests.pipelines.verbs import train

AS_OF = datetime(2016, 1, 1, tzinfo=UTC)
REPOSITORY = Path(__file__).parents[3]
WORDS = {
    "memory_safety": "buffer overflow memory corruption",
    "web_injection": "cross site scripting html",
    "file_path": "directory traversal path",
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny encoder's folder."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def reports(encoder: Path, **train_params) -> Params:
    """The triage case on the tiny encoder, with a small training."""
    params = load_params("triage")
    changes = {
        "epochs": 3,
        "batch_size": 16,
        "pool": 64,
        "ranks": 1,
        "threads": 1,
        "precision": "fp32",
        "learning_rate": 0.003,
        "checkpoint_every": 4,
        **train_params,
    }
    return params.model_copy(
        update={
            "model": TextModelParams(kind="encoder", encoder=str(encoder), max_tokens=16, dropout=0.1),
            "train": params.train.model_copy(update=changes),
        }
    )


def put_reports(settings: Settings, count: int = 90) -> Path:
    """A committed dataset step with reports whose team follows from their words."""
    fields, generator = load_fields("triage"), np.random.default_rng(0)
    teams = [list(WORDS)[i] for i in generator.integers(0, len(WORDS), count)]
    frame = pl.DataFrame(
        {
            "id": [f"CVE-{i}" for i in range(count)],
            "text": [
                " ".join(generator.permutation([*WORDS[team].split(), *["allows", "remote", "attackers"][: i % 4]]))
                for i, team in enumerate(teams)
            ],
            fields.label: pl.Series([fields.classes.index(team) for team in teams], dtype=pl.Int8),
        }
    )

    def build(folder):
        frame.write_parquet(folder / "train.parquet")
        return {"train_rows": count}

    storage.commit(
        settings.run_dir("triage", AS_OF) / "dataset", case="triage", as_of=AS_OF, key="reports", inputs={}, build=build
    )
    return settings.run_dir("triage", AS_OF)


def test_texts_train_with_their_tokenizer(encoder, tmp_path):
    """A text case learns, its tokenizer travels beside the weights, every step has a line.

    No working folder is left.
    """
    settings = Settings(home=tmp_path)
    run_dir = put_reports(settings)
    manifest = train.run(reports(encoder, epochs=6, head_learning_rate=0.01), settings, run_dir, AS_OF)
    assert set(manifest.files) >= {"weights.pt", "tokenizer.json", "metrics.jsonl"}
    assert manifest.facts["loss_last"] < 0.5 * manifest.facts["loss_first"]
    assert (manifest.facts["steps"], manifest.facts["stopped"], manifest.facts["strategy"]) == (
        36,
        "finished",
        "single",
    )
    assert len((run_dir / "train" / "metrics.jsonl").read_text().splitlines()) == 36
    truncation = json.loads((run_dir / "train" / "tokenizer.json").read_text())["truncation"]
    assert truncation["max_length"] == 16
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


def test_another_base_is_another_training(encoder, tmp_path):
    """The key of a text training holds the bytes of the encoder that it starts from, wherever that lies."""
    settings = Settings(home=tmp_path)
    run_dir = put_reports(settings)
    first = train.run(reports(encoder, epochs=1), settings, run_dir, AS_OF)
    write_encoder(tmp_path / "other", seed=1)
    other = train.run(reports(tmp_path / "other", epochs=1), settings, run_dir, AS_OF)
    assert first.key != other.key
    assert first.facts["weights_sha256"] != other.facts["weights_sha256"]


def test_a_warm_start_follows_the_champion(tmp_path):
    """With train.warm_start a case with a champion starts from its weights: another key, a lower first loss.

    Without a champion nothing changes.
    """
    settings = Settings(home=tmp_path)
    warm = loans.PARAMS.model_copy(update={"train": loans.PARAMS.train.model_copy(update={"warm_start": True})})
    run_dir = loans.put_dataset(settings, loans.AS_OF)
    first = train.run(warm, settings, run_dir, loans.AS_OF)
    assert not first.facts["warm_start"]
    # The release's bundle is all that leads from a champion to its weights.
    storage.commit(
        run_dir / "export",
        case="loans",
        as_of=loans.AS_OF,
        key="bundle",
        inputs={"train": first.key},
        build=lambda _folder: {},
    )
    loans.release(settings, run_dir, loans.AS_OF, 1)
    later = loans.put_dataset(settings, loans.LATER)
    cold = train.run(loans.PARAMS, settings, later, loans.LATER)
    second = train.run(warm, settings, later, loans.LATER)
    assert second.facts["warm_start"]
    assert second.inputs["champion"] == first.key
    assert second.facts["loss_first"] < cold.facts["loss_first"]
    assert train.run(warm, settings, later, loans.LATER) == second


def params_file(folder: Path, params: Params) -> dict[str, str]:
    """The environment in which a command finds ``params``."""
    folder.mkdir()
    (folder / f"{params.case}.yaml").write_text(yaml.safe_dump(json.loads(params.model_dump_json())))
    return {"PERENNIAL_PARAMS_DIR": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.mark.long
@pytest.mark.slow
def test_preemption_of_the_command(encoder, tmp_path):
    """SIGTERM of the command saves and ends it with an error.

    The command run again goes on there and commits what an undisturbed one commits.
    """
    settings, params = Settings(home=tmp_path / "home"), reports(encoder, epochs=20, checkpoint_every=None)
    run_dir = put_reports(settings)
    environment = {**os.environ, **params_file(tmp_path / "params", params), "PERENNIAL_HOME": str(settings.root)}
    command = [sys.executable, "-m", "pipelines", "train", "--case", "triage", "--as-of", "2016-01-01"]
    first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(run_dir.glob(".train.k*/heartbeat")) and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert "Preempted: training was asked to leave at step" in first.communicate(timeout=60)[1]
    assert first.returncode == 1
    assert not (run_dir / "train").exists()
    facts = json.loads(
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True).stdout
    )["facts"]
    assert 0 < facts["resumed_from"] < 120 == facts["steps"]
    undisturbed = Settings(home=tmp_path / "undisturbed")
    assert (
        train.run(params, undisturbed, put_reports(undisturbed), AS_OF).facts["weights_sha256"]
        == facts["weights_sha256"]
    )


@pytest.mark.slow
def test_two_nodes(tmp_path):
    """The step on two nodes that share their state.

    Each runs a rank, the first one commits, both return its manifest.
    """
    endpoint = f"127.0.0.1:{free_port()}"
    params = loans.PARAMS.model_copy(update={"train": loans.PARAMS.train.model_copy(update={"ranks": 2})})
    nodes = [Settings(home=tmp_path, nodes=2, node_rank=rank, rdzv_endpoint=endpoint) for rank in range(2)]
    run_dir = loans.put_dataset(nodes[0], loans.AS_OF)
    found = {}
    other = threading.Thread(target=lambda: found.update(second=train.run(params, nodes[1], run_dir, loans.AS_OF)))
    other.start()
    first = train.run(params, nodes[0], run_dir, loans.AS_OF)
    other.join(timeout=60)
    assert found["second"] == first
    assert (first.facts["ranks"], first.facts["strategy"]) == (2, "ddp")
    alone = Settings(home=tmp_path / "alone")
    single = train.run(loans.PARAMS, alone, loans.put_dataset(alone, loans.AS_OF), loans.AS_OF)
    assert first.facts["loss_last"] == pytest.approx(single.facts["loss_last"], abs=0.05)


def test_a_node_without_a_first_one(tmp_path, monkeypatch):
    """A further node whose first node never comes says so instead of waiting for good."""
    monkeypatch.setattr("pipelines.training.launch.JOIN_SECONDS", 0.1)
    settings = Settings(home=tmp_path, nodes=2, node_rank=1, rdzv_endpoint="127.0.0.1:1")
    run_dir = loans.put_dataset(settings, loans.AS_OF)
    with pytest.raises(Unavailable, match=r"job\.json did not come within 0 s: start the train step on node 0"):
        train.run(loans.PARAMS, settings, run_dir, loans.AS_OF)


@pytest.mark.parametrize(
    ("trigger", "reason", "said", "episode"),
    [
        ("schedule", None, "schedule", None),
        ("manual", "new branch opened", "new branch opened", None),
        *((trigger, None, f"{trigger} episode e1", "e1") for trigger in ("drift", "performance", "headroom", "volume")),
    ],
)
def test_the_record_says_who_asked_and_why(tmp_path: Path, trigger, reason, said, episode):
    """A training asked for by an episode names it, whatever opened it.

    One asked for by a person keeps the person's words.
    """
    settings = Settings(home=tmp_path)
    ledger.open_episode(settings.ledger, case="loans", episode="e1", as_of=AS_OF, evidence={})
    found = governance(settings, "loans", AS_OF, trigger=trigger, actor="ada", reason=reason)
    assert found == {"actor": "ada", "trigger": trigger, "reason": said, "episode": episode}
