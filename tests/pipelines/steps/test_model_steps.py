"""train, export, evaluate and gate, from a dataset to a verdict in the ledger."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order, Verdict
from pipelines.drift.profile.spec import load_spec
from pipelines.errors import ConflictError, IntegrityError
from pipelines.fields import Categorical
from pipelines.files import file_sha256
from pipelines.line import runner
from pipelines.line.order import TRAIN
from pipelines.line.step import Run
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.verbs import evaluate, export, gate, train

AS_OF = datetime(2021, 1, 1, tzinfo=UTC)
LATER = AS_OF + timedelta(days=30)
FIELDS = load_fields("loans")
_LOANS = load_params("loans")
PARAMS = _LOANS.model_copy(update={"train": _LOANS.train.model_copy(update={"epochs": 6, "ranks": 1})})
CHAIN = (train, export, evaluate, gate)


def made_rows(count: int, seed: int, flipped: bool = False) -> pl.DataFrame:
    """Canonical loans rows whose label follows the salary (the other way round if ``flipped``)."""
    generator = np.random.default_rng(seed)
    columns: dict = {}
    for field in FIELDS.fields:
        if isinstance(field, Categorical):
            columns[field.name] = [field.values[i] for i in generator.integers(0, len(field.values), count)]
        else:
            columns[field.name] = generator.integers(20, 100, count).astype(float)
    label = (columns["salary"] + generator.normal(0, 8, count) > 60) != flipped
    times = pl.Series(
        [AS_OF - timedelta(minutes=30 * (count - i)) for i in range(count)], dtype=pl.Datetime("us", "UTC")
    )
    names = pl.Series([f"{seed}-{i}" for i in range(count)], dtype=pl.String)
    return pl.DataFrame({"id": names, "event_time": times, **columns, FIELDS.label: pl.Series(label).cast(pl.Int8)})


def put_dataset(settings, as_of, *, seed=0, flipped=False, holdout=400):
    """A committed dataset step, as steps/dataset.py leaves it."""
    run_dir = settings.run_dir("loans", as_of)
    rows = made_rows(1200 + holdout, seed, flipped)

    def build(folder):
        rows.head(1200).write_parquet(folder / "train.parquet")
        rows.tail(holdout).write_parquet(folder / "holdout.parquet")
        return {"train_rows": 1200, "holdout_rows": holdout, "base_rate": float(rows.head(1200)[FIELDS.label].mean())}

    key = storage.digest([seed, flipped, holdout])
    storage.commit(run_dir / "dataset", case="loans", as_of=as_of, key=key, inputs={}, build=build)
    return run_dir


def run_chain(settings, run_dir, as_of, params=PARAMS):
    """Run train, export, evaluate and gate; their manifests by name."""
    return {step.name: step.run(params, settings, run_dir, as_of) for step in CHAIN}


def release(settings, run_dir, as_of, version):
    """Append the run's candidate to the ledger, as rollout does."""
    bundle = run_dir / "export"
    head = ledger.head(settings.ledger, "loans")
    ledger.append(
        settings.ledger,
        Order(
            case="loans",
            after=head.seq if head else 0,
            champion=version,
            candidate_key=storage.read_manifest(bundle).key,
            bundle=str(bundle.relative_to(settings.root)),
            action="promote",
            trigger="initial",
            reason="test",
            actor="test",
            as_of=as_of,
        ),
    )


def tree(folder):
    """Every file's hash; provenance, the run record and the metrics of training are left out: they hold times."""
    timed = {storage.MANIFEST, "metrics.jsonl", "record.json"}
    return {
        str(p.relative_to(folder)): file_sha256(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in timed
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A first run up to its verdict, and its release."""
    settings = Settings(home=tmp_path_factory.mktemp("loop"))
    run_dir = put_dataset(settings, AS_OF)
    manifests = run_chain(settings, run_dir, AS_OF)
    release(settings, run_dir, AS_OF, 1)
    return settings, run_dir, manifests


def test_the_first_candidate_beats_the_base_rate(first):
    """Without a champion the opponent is the base rate, and a model that learned something is promoted."""
    _, run_dir, manifests = first
    verdict = Verdict.model_validate_json((run_dir / "gate" / "verdict.json").read_bytes())
    assert (verdict.decision, verdict.rule, verdict.evidence.opponent) == ("promote", "first_champion", "base_rate")
    assert manifests["evaluate"].facts["challenger"]["roc_auc"] > 0.9
    assert manifests["gate"].facts["verdict_sha256"] == storage.digest(verdict)


def test_the_bundle_is_complete(first):
    """The exported folder holds the model, its contract, its fields, its feature spec and its reference.

    It says what the model costs.
    """
    _, run_dir, manifests = first
    assert set(manifests["export"].files) == {
        "model.onnx",
        "bundle.json",
        "fields.json",
        "contract.json",
        "spec.json",
        "reference.parquet",
    }
    spec = json.loads((run_dir / "export" / "spec.json").read_text())
    assert spec["version"] == load_spec(FIELDS).version
    assert set(spec["scales"]) == {*(field.name for field in FIELDS.numeric), "score"}
    facts = manifests["export"].facts
    assert facts["parity"] <= 1e-5
    assert facts["variants"]["fp32"]["bytes"] == (run_dir / "export" / "model.onnx").stat().st_size
    assert facts["variants"]["fp32"]["latency_ms"]["32"] > 0


def test_every_step_run_again_changes_nothing(first):
    """A second run of each step is a no-op: the same keys, the same bytes, one verdict in the ledger."""
    settings, run_dir, manifests = first
    before = tree(run_dir)
    again = run_chain(settings, run_dir, AS_OF)
    assert again == manifests
    assert tree(run_dir) == before
    kept = [row for row in ledger.verdicts(settings.ledger, "loans") if row["gate_key"] == manifests["gate"].key]
    assert len(kept) == 1
    assert kept[0]["hash"] == manifests["gate"].facts["verdict_sha256"]


def test_the_same_inputs_give_the_same_model_anywhere(first, tmp_path):
    """In another home the same dataset gives the same keys, weights, ONNX bytes and verdict."""
    _, run_dir, manifests = first
    elsewhere = Settings(home=tmp_path)
    other = put_dataset(elsewhere, AS_OF)
    again = run_chain(elsewhere, other, AS_OF)
    assert {name: m.key for name, m in again.items()} == {name: m.key for name, m in manifests.items()}
    assert tree(other) == tree(run_dir)


def test_a_worse_challenger_is_judged_on_the_same_rows_and_rejected(first):
    """A challenger trained on flipped labels loses to the champion.

    The champion is scored anew on the rows of this run's holdout.
    """
    settings, run_dir, _ = first
    challenger = settings.run_dir("loans", LATER)
    flipped, honest = made_rows(1200, 1, flipped=True), made_rows(400, 2)

    def build(folder):
        flipped.write_parquet(folder / "train.parquet")
        honest.write_parquet(folder / "holdout.parquet")
        return {"train_rows": 1200, "holdout_rows": 400, "base_rate": 0.5}

    storage.commit(challenger / "dataset", case="loans", as_of=LATER, key="f" * 64, inputs={}, build=build)
    manifests = run_chain(settings, challenger, LATER)
    scores = pl.read_parquet(challenger / "evaluate" / "scores.parquet")
    assert scores["id"].to_list() == honest["id"].to_list()
    assert scores["champion"].null_count() == 0
    assert manifests["evaluate"].facts["opponent"]["candidate_key"] == storage.read_manifest(run_dir / "export").key
    assert manifests["gate"].facts["decision"] == "reject"


def test_the_champion_itself_is_no_challenger(first):
    """A run whose model is the champion's gets no promotion, though by then more labels of its baseline have come."""
    settings, _, manifests = first
    run_dir = put_dataset(settings, LATER + timedelta(days=1))
    again = run_chain(settings, run_dir, LATER + timedelta(days=1))
    assert again["export"].files["model.onnx"] == manifests["export"].files["model.onnx"]
    assert (again["gate"].facts["decision"], again["gate"].facts["rule"]) == ("inconclusive", "same_candidate")


def test_an_empty_holdout_is_inconclusive(first):
    """With no row to judge on, the steps go through and the verdict names the rows that it needs."""
    settings, _, _ = first
    as_of = LATER + timedelta(days=2)
    run_dir = put_dataset(settings, as_of, seed=4, holdout=0)
    manifests = run_chain(settings, run_dir, as_of)
    assert (manifests["gate"].facts["decision"], manifests["gate"].facts["rule"]) == ("inconclusive", "too_few_rows")
    assert manifests["evaluate"].facts["challenger"]["log_loss"] is None


def test_a_champion_whose_folder_was_set_aside_is_still_the_opponent(first, tmp_path):
    """If the champion's own run is repeated with other parameters, it is found beside its old place.

    If it is gone, that is said.
    """
    settings = Settings(home=tmp_path)
    run_dir = settings.run_dir("loans", AS_OF)
    shutil.copytree(first[1], run_dir)
    release(settings, run_dir, AS_OF, 1)
    key = storage.read_manifest(run_dir / "export").key
    other = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update={"seed": 8})})
    for step in (train, export):
        step.run(other, settings, run_dir, AS_OF)
    assert storage.read_manifest(run_dir / "export").key != key
    later = put_dataset(settings, LATER, seed=5)
    for step in (train, export):
        step.run(PARAMS, settings, later, LATER)
    assert evaluate.run(PARAMS, settings, later, LATER).facts["opponent"]["candidate_key"] == key
    (kept,) = run_dir.glob(f"export.{key[:12]}.*")
    kept.rename(tmp_path / "lost")
    shutil.rmtree(later / "evaluate")
    with pytest.raises(IntegrityError, match="restore the run"):
        evaluate.run(PARAMS, settings, later, LATER)


@pytest.mark.parametrize("point", storage.FAILPOINTS)
def test_a_gate_killed_at_any_point_is_mended_by_running_again(first, tmp_path, point, caplog):
    """After SIGKILL at each commit point a second run leaves the same tree and exactly one verdict in the ledger."""
    _, run_dir, manifests = first
    settings = Settings(home=tmp_path)
    mine = settings.run_dir("loans", AS_OF)
    mine.mkdir(parents=True)
    (mine / "evaluate").symlink_to(run_dir / "evaluate")
    # A process of its own, not a fork: polars' threads do not survive one.
    code = (
        "import sys; from tests.pipelines.steps.test_model_steps import gate, PARAMS, Settings, AS_OF; "
        "from pathlib import Path\n"
    )
    code += "gate.run(PARAMS, Settings(home=Path(sys.argv[1])), Path(sys.argv[2]), AS_OF)"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(mine)],
        env={**os.environ, "PERENNIAL_FAILPOINT": f"gate:{point}"},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert ledger.verdicts(settings.ledger, "loans") == []
    with caplog.at_level("INFO"):
        again = gate.run(PARAMS, settings, mine, AS_OF, trigger="drift")
    assert again.key == manifests["gate"].key
    # Airflow's task log shows what the step logs: the verdict must be there, with its reason.
    said = (
        f"verdict on loans as of {AS_OF.isoformat()}: {again.facts['decision']}, by the rule "
        f"{again.facts['rule']}: {again.facts['reason']}"
    )
    assert said in caplog.messages
    assert tree(mine / "gate") == tree(run_dir / "gate")
    assert [p.name for p in mine.iterdir() if p.name.startswith(".gate")] == []
    (row,) = ledger.verdicts(settings.ledger, "loans")
    assert (row["hash"], row["trigger"]) == (again.facts["verdict_sha256"], "drift")


def test_a_changed_verdict_is_refused_by_the_ledger(first):
    """A verdict file edited after the fact does not match what the ledger holds.

    That holds though its manifest were made to fit.
    """
    settings, run_dir, _ = first
    path, beside = run_dir / "gate" / "verdict.json", run_dir / "gate" / storage.MANIFEST
    honest, manifest = path.read_text(), beside.read_text()
    try:
        path.write_text(honest.replace('"promote"', '"reject"'))
        files = {"verdict.json": file_sha256(path)}
        beside.write_text(json.dumps(json.loads(manifest) | {"files": files, "sha256": ""}))
        with pytest.raises(ConflictError, match="immutable"):
            gate.run(PARAMS, settings, run_dir, AS_OF)
    finally:
        path.write_text(honest)
        beside.write_text(manifest)


READS = ((train, "dataset/train.parquet"), (export, "train/weights.pt"), (export, "dataset/holdout.parquet"))
READS += ((evaluate, "export/model.onnx"), (evaluate, "dataset/holdout.parquet"), (gate, "evaluate/scores.parquet"))


@pytest.mark.parametrize(("step", "file"), READS, ids=[f"{step.name} {file}" for step, file in READS])
def test_one_bit_in_an_input_stops_the_step(first, tmp_path, step, file):
    """A step whose input is not what was committed says which file it is, also when its own work is done already."""
    settings = Settings(home=tmp_path)
    run_dir = settings.run_dir("loans", AS_OF)
    shutil.copytree(first[1], run_dir)
    data = bytearray((run_dir / file).read_bytes())
    data[len(data) // 2] ^= 4
    (run_dir / file).write_bytes(data)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=rf"{file} has sha256 \w+, its manifest says"):
            step.run(PARAMS, settings, run_dir, AS_OF)
        shutil.rmtree(run_dir / step.name, ignore_errors=True)


def test_a_damaged_verdict_is_made_again(first):
    """The no-op path looks at what it finds: a changed file of a finished step is made anew, byte for byte."""
    settings, run_dir, manifests = first
    path = run_dir / "gate" / "verdict.json"
    honest = path.read_bytes()
    path.write_bytes(honest.replace(b'"promote"', b'"reject"'))
    assert gate.run(PARAMS, settings, run_dir, AS_OF).files == manifests["gate"].files
    assert path.read_bytes() == honest


def test_a_parameter_of_training_gives_a_new_candidate(first):
    """Every declared training parameter enters the key; the place and the clock do not."""
    settings, run_dir, manifests = first
    found = []
    for change in ({}, {"epochs": 7}, {"seed": 1}, {"ranks": 2}, {"learning_rate": 0.5}):
        params = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update=change)})
        run = Run(params, settings, AS_OF, folder=run_dir)
        read = runner.reads(TRAIN, run)
        found.append(runner.key(TRAIN, run, read, runner.home(TRAIN).work(run, read)))
    assert found[0] == manifests["train"].key
    assert len(set(found)) == 5
