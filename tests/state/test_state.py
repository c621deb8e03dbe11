"""What the commit before left in a state folder is read by this one, or migrated by one command.

``<commit>.tar.xz`` is a folder that the code of that commit made (make.py). A format that changes without a migration
fails here.
"""

import io
import json
import shutil
import tarfile
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from embedded import mlflow, services
from embedded.ports import Ports
from embedded.traffic import read_place
from pipelines import ledger, storage
from pipelines.cli import main
from pipelines.contracts import Verdict, Window
from pipelines.data import log as prediction_log
from pipelines.deploy import rollout
from pipelines.drift.labels import sequential
from pipelines.drift_report import DriftReport
from pipelines.encoding import encoder
from pipelines.files import file_sha256
from pipelines.params_file import load_params
from pipelines.registry import aliases
from pipelines.settings import Settings
from tests.pipelines.conftest import free_port
from tests.pipelines.verbs import dataset, drift, gate, ingest, profile, register, validate
from tests.serving.gateway import world

HERE = Path(__file__).parent
STATES = sorted(path.name.partition(".")[0] for path in HERE.glob("*.tar.xz"))
CASE = world.CASE
FIELDS = world.FIELDS
FIRST, ASKED, LAST = date(2020, 6, 8), date(2020, 6, 14), date(2020, 6, 17)
"""The first champion's day, that of the run that asked for a retraining, and that of the newest drift run."""
JUDGED = [FIRST + timedelta(days=number) for number in range(1, 10)]
NEXT = LAST + timedelta(days=1)
UNKEPT = (".onnx", ".pt", ".pth", ".bin", ".safetensors", "api_key")


def at(day: date) -> datetime:
    """Midnight."""
    return datetime.combine(day, datetime.min.time(), UTC)


@pytest.fixture(scope="module", params=STATES)
def unpacked(request, tmp_path_factory) -> Path:
    """The folder of an old state, copied before it is changed."""
    home = tmp_path_factory.mktemp("old") / "state"
    with tarfile.open(HERE / f"{request.param}.tar.xz") as archive:
        archive.extractall(home, filter="data")
    (home / "api_key").write_text(world.KEY + "\n")
    return home


@pytest.fixture
def state(unpacked, tmp_path, monkeypatch) -> Settings:
    """The settings of a fresh copy of an old state; neither Triton nor MLflow runs."""
    home = tmp_path / "state"
    shutil.copytree(unpacked, home)
    places = {"HOME": home, "PARAMS_DIR": home / services.PARAMS, "MLFLOW_URL": f"http://127.0.0.1:{free_port()}"}
    places |= {"TRITON_GRPC": f"127.0.0.1:{free_port()}", "ACTOR": "ada", "CONNECTIONS": "none"}
    for name, value in places.items():
        monkeypatch.setenv(f"PERENNIAL_{name}", str(value))
    return Settings()


def answered(*arguments: str) -> dict:
    """What the command line prints, once it has said that all went well."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*arguments, "--case", CASE]) == 0
    return json.loads(out.getvalue().splitlines()[-1])


def lines(settings: Settings, kind: str, *, opened: bool = True) -> list[dict]:
    """The whole lines of the log that are what the contract says, read without the code that is tested."""
    found = []
    for path in sorted((settings.prediction_log / CASE / kind).glob("*.jsonl*" if opened else "*.jsonl")):
        whole = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
        found += [json.loads(line) for line in whole if line.startswith(b"{")]
    return found


def known_by(settings: Settings) -> dict[str, datetime]:
    """When the first label of each id became known, as its sender states it."""
    found: dict[str, datetime] = {}
    for line in lines(settings, "labels"):
        moment = datetime.fromisoformat(line["event_time"])
        found[line["prediction_id"]] = min(moment, found.get(line["prediction_id"], moment))
    return found


def judge(settings: Settings, day: date) -> DriftReport:
    """A drift run's report."""
    run_dir = settings.run_dir(CASE, at(day))
    for step in (profile, drift):
        step.run(load_params(CASE), settings, run_dir, at(day))
    return report(settings, day)


def report(settings: Settings, day: date) -> DriftReport:
    """The report as it lies there."""
    return DriftReport.model_validate_json((settings.run_dir(CASE, at(day)) / "drift" / "report.json").read_bytes())


def decided(settings: Settings) -> list[dict | None]:
    """Every drift state of the ledger, the newest last, and the episodes."""
    moments = [*map(at, JUDGED), datetime.max.replace(tzinfo=UTC)]
    return [
        *(ledger.drift_state_before(settings.ledger, CASE, moment) for moment in moments),
        *ledger.episodes(settings.ledger, CASE),
    ]


def states_end(settings: Settings, day: date) -> dict:
    """The policy's state after the drift run of a day."""
    found = ledger.drift_state_before(settings.ledger, CASE, at(day) + timedelta(microseconds=1))
    assert found is not None
    assert found["as_of"][:10] == str(day)
    policy: dict = found["policy"]
    return policy


@contextmanager
def gateway(settings: Settings):
    """This commit's gateway on the old state, its Triton a servicer: the client and the servicer."""
    with world.fake_triton() as (scores, port):
        own = settings.model_copy(update={"triton_grpc": f"127.0.0.1:{port}"})
        with world.client(own) as http:
            yield http, scores


def test_a_state_of_another_commit_is_kept():
    """There is at least one archive to read, it is small, and it holds no weights."""
    assert STATES
    for name in STATES:
        path = HERE / f"{name}.tar.xz"
        assert path.stat().st_size < 300 * 1024
        with tarfile.open(path) as archive:
            assert not [found for found in archive.getnames() if found.endswith(UNKEPT)]


def test_history_is_read(state):
    """Releases and verdicts are told, the chain of hashes holds, and a kept verdict is the same verdict today."""
    told = answered("history")["releases"]
    assert [(one["champion"], one["action"], one["trigger"], one["as_of"][:10]) for one in told] == [
        (1, "promote", "initial", str(FIRST)),
        (3, "promote", "drift", str(ASKED)),
    ]
    assert all(one["verdict"]["decision"] == "promote" for one in told)
    assert [one.champion for one in ledger.releases(state.ledger, CASE)] == [1, 3]
    kept = ledger.verdicts(state.ledger, CASE)
    assert [row["verdict"]["decision"] == "promote" for row in kept] == [True, False, True]
    for row in kept:
        written = Verdict.model_validate_json(json.dumps(row["verdict"]))
        moment = datetime.fromisoformat(row["as_of"])
        about = {"gate_key": row["gate_key"], "as_of": moment, "trigger": row["trigger"], "verdict": written}
        again = ledger.record_verdict(state.ledger, case=CASE, **about)
        assert again == row["hash"]


def test_alerts_and_metrics_are_read(state):
    """What people were told is told again, with what is still open; the exporter says what ledger and report say."""
    told = answered("alerts")
    assert {one["rule"]: one["state"] for one in told["alerts"]} == {
        "performance_dropped": "resolved",
        "quality_blocked": "open",
        "drift_confirmed": "resolved",
        "champion_old": "resolved",
        "page_broken": "open",
    }
    assert [one["rule"] for one in told["silences"]] == ["labels_late"]
    text = Path(answered("metrics")["file"]).read_text()
    for series in (
        'champion_version{case="loans"} 3.0',
        'policy_state{case="loans",state="COOLDOWN"} 1.0',
        'episodes{case="loans",trigger="performance"} 1.0',
        'alert_open{case="loans",rule="page_broken",',
    ):
        assert f"perennial_{series}" in text, series


def test_every_artefact_is_read(state):
    """Every manifest is one, and the files that it names are those that lie there, weights and pictures left out."""
    manifests = sorted(state.root.glob("artefacts/*/*/*/manifest.json"))
    assert len(manifests) > 40
    for path in manifests:
        made = storage.read_manifest(path.parent, verify=False)
        for name, expected in made.files.items():
            if (path.parent / name).exists():
                assert file_sha256(path.parent / name) == expected
            else:
                assert name.endswith((".onnx", ".pt", ".png")), path.parent / name


def test_a_judged_window_is_reported_and_decides_nothing(state):
    """Drift runs of windows that the old code judged give its decisions, evidence and features, and decide nothing."""
    before = decided(state)
    for day in (JUDGED[1], ASKED, LAST):
        old = report(state, day)
        new = judge(state, day)
        assert (new.state, new.action, new.reason, new.episode, new.model_version) == (
            old.state,
            old.action,
            old.reason,
            old.episode,
            old.model_version,
        )
        assert (new.current_rows, new.labels.rows, new.labels.errors) == (
            old.current_rows,
            old.labels.rows,
            old.labels.errors,
        )
        moved = [{one.feature: (one.psi, one.drifted) for one in found.features} for found in (old, new)]
        assert moved[0] == moved[1]
        assert new.policy.log_e == old.policy.log_e
    assert decided(state) == before


def test_the_next_window_goes_on(state):
    """The day that was not judged yet is judged on the old policy's state.

    Cooldown and e-CUSUM go on, each label counts once, and is told of.
    """
    with gateway(state):
        pass  # it closes what the killed one left open
    before = states_end(state, LAST)
    new = judge(state, NEXT)
    known = known_by(state)
    fresh = {name for name, moment in known.items() if at(LAST) < moment <= at(NEXT)}
    served = {line["prediction_id"]: line["version"] for line in lines(state, "predictions")}
    assert len(fresh) == 60
    assert {served[name] for name in fresh} == {3}
    assert new.current_rows == 60
    assert new.features
    assert (new.state, new.model_version) == ("COOLDOWN", 3)
    after = states_end(state, NEXT)
    for name in ("champion", "retrained_at", "retrains", "cooldown_until", "cooldown_days", "trigger", "verdict"):
        assert after[name] == before[name], name
    counted = (new.labels.errors, new.labels.rows, new.labels.baseline)
    assert after["log_e"] == sequential.grown(before["log_e"], sequential.log_e_value(*counted))
    assert len(after["marks"]) == len(before["marks"]) or len(after["marks"]) == len(before["marks"]) + 1
    for step in ("alert", "report"):
        answered(step, "--as-of", str(NEXT))
    page = (state.run_dir(CASE, at(NEXT)) / "report" / "index.html").read_text()
    assert "version 3" in page
    told = {one["rule"]: one for one in answered("alerts")["alerts"]}
    assert (told["page_broken"]["state"], told["champion_old"]["state"]) == ("resolved", "open")
    # A label that the old code judged and that was corrected since is not judged again.
    assert new.labels.rows == len(fresh)


def test_the_next_training_reads_the_old_log(state):
    """A new run takes every logged row of its days once, quarantines the broken one, and judges on what is new."""
    params = load_params(CASE)
    run_dir = state.run_dir(CASE, at(NEXT))
    for step in (ingest, validate, dataset):
        step.run(params, state, run_dir, at(NEXT))
    facts = {step: storage.read_manifest(run_dir / step).facts for step in ("ingest", "validate", "dataset")}
    rows = pl.concat(pl.read_parquet(state.root / one["path"]) for one in facts["ingest"]["partitions"])
    logged = lines(state, "predictions", opened=False)
    closed = {line["prediction_id"]: datetime.fromisoformat(line["event_time"]) for line in logged}
    first = date.fromisoformat(facts["ingest"]["partitions"][0]["date"])
    assert facts["ingest"]["origin"] == "log"
    assert first <= NEXT - timedelta(days=params.dataset.window_days)
    assert sorted(rows["id"]) == sorted(name for name, moment in closed.items() if moment >= at(first))
    assert (facts["validate"]["bad"], list(facts["validate"]["reasons"])) == (1, ["car: unknown category"])
    assert facts["validate"]["rows"] + 1 == facts["ingest"]["rows"]
    trained = pl.read_parquet(state.run_dir(CASE, at(ASKED)) / "dataset" / "train.parquet")
    split = [pl.read_parquet(run_dir / "dataset" / f"{part}.parquet") for part in ("train", "holdout")]
    assert all(part.height for part in split)
    assert not set(split[1]["id"]) & (set(trained["id"]) | set(split[0]["id"]))
    # A label that was corrected trains with its highest revision.
    [corrected] = [line for line in lines(state, "labels", opened=False) if line["revision"]]
    used = pl.concat([split[0], split[1]]).filter(id=corrected["prediction_id"])
    assert used[FIELDS.label].to_list() in ([], [corrected["label"]])


def test_an_old_training_reads_its_own_rows(state):
    """A run that is run again brings the rows that it had: nothing that came later, nothing twice."""
    params = load_params(CASE)
    run_dir = state.run_dir(CASE, at(ASKED))
    before = {step: storage.read_manifest(run_dir / step).facts for step in ("ingest", "validate", "dataset")}
    for step in (ingest, validate, dataset):
        step.run(params, state, run_dir, at(ASKED))
    after = {step: storage.read_manifest(run_dir / step).facts for step in before}
    assert after["ingest"]["rows"] == before["ingest"]["rows"]
    days = [{one["date"]: one["rows"] for one in facts["ingest"]["partitions"]} for facts in (before, after)]
    assert days[0] == days[1]
    for name in ("train_rows", "holdout_rows", "positives", "oldest", "newest", "champion"):
        assert after["dataset"][name] == before["dataset"][name], name


def test_an_old_evaluation_is_judged_anew(state):
    """The gate with another confidence reads the scores and facts that an old evaluate step left.

    It gives a verdict on them.
    """
    params = load_params(CASE)
    run_dir = state.run_dir(CASE, at(ASKED))
    other = params.model_copy(update={"gate": params.gate.model_copy(update={"confidence": 0.9})})
    evaluated = storage.read_manifest(run_dir / "evaluate")
    assert evaluated.facts["opponent"] is not None
    judged = gate.run(other, state, run_dir, at(ASKED))
    assert (judged.facts["rule"] == "same_candidate", judged.inputs) == (False, {"evaluate": evaluated.key})


def test_compaction_goes_on(state):
    """What was not compacted is, no row is lost or doubled, and a lake that was removed is made again from the log."""

    def held() -> dict[str, pl.DataFrame]:
        span = Window(start=at(FIRST), end=at(NEXT))
        return {
            "predictions": prediction_log.read_predictions(state, CASE, span),
            "labels": prediction_log.read_labels(state, CASE, at(NEXT)),
        }

    def stored(kind: str) -> int:
        return sum(
            pl.read_parquet(path).height for path in (state.lake_dir / CASE / kind).glob("date=*/hour=*/*.parquet")
        )

    assert prediction_log.compact(state, CASE) > 0
    assert prediction_log.compact(state, CASE) == 0
    found = held()
    for kind, frame in found.items():
        closed = lines(state, kind, opened=False)
        assert stored(kind) == len(closed)
        assert sorted(frame["id"]) == sorted({line["prediction_id"] for line in closed})
    by_revision = sorted(lines(state, "labels", opened=False), key=lambda line: line["revision"])
    highest = {line["prediction_id"]: line["label"] for line in by_revision}
    assert dict(found["labels"].select("id", "label").iter_rows()) == highest
    for kind in prediction_log.KINDS:
        shutil.rmtree(state.lake_dir / CASE / kind)
    prediction_log.compact(state, CASE)
    for kind, frame in held().items():
        assert frame.equals(found[kind])


def test_the_gateway_goes_on(state):
    """The gateway closes what a killed one left open, answers old ids as they were answered, and logs new rows."""
    old = lines(state, "predictions")
    own = [line for line in old if line["prediction_id"].startswith("loans-2020")]
    with gateway(state) as (http, scores):
        assert not list(state.prediction_log.rglob("*.open"))
        for some in (own[:200], own[-200:]):
            rows = [line["row"] | {name: line[name] for name in ("prediction_id", "event_time")} for line in some]
            answer = http.post(world.PREDICT, json={"rows": rows})
            assert answer.status_code == 200, answer.text
            names = ("prediction_id", "version", "score", "prediction")
            told = [[row[name] for name in names] for row in answer.json()["rows"]]
            assert told == [[line[name] for name in names] for line in some]
        assert scores.rows == 0
        assert len(lines(state, "predictions")) == len(old)
        answer = http.post(world.PREDICT, json={"rows": world.some_rows(5)})
        assert [row["version"] for row in answer.json()["rows"]] == [3] * 5
        labels = [{"prediction_id": own[-1]["prediction_id"], "label": 1}]
        assert http.post(world.LABELS, json={"labels": labels}).json() == {"accepted": 1}
    assert len(lines(state, "predictions", opened=False)) == len(old) + 5


def test_an_old_bundle_gets_the_inputs_that_it_was_trained_with(state):
    """Rows reach a version of the old code as positions in the vocabularies and as plain float32 numbers."""
    rows = world.some_rows(20)
    columns = {name: [row[name] for row in rows] for name in FIELDS.names}
    tensors = encoder(FIELDS, state.run_dir(CASE, at(ASKED)) / "export")(columns)
    positions = [[field.values.index(row[field.name]) for field in FIELDS.categorical] for row in rows]
    assert tensors["categorical"].tolist() == positions
    assert tensors["numeric"].dtype.name == "float32"
    numbers = pl.DataFrame(rows).select(pl.col([field.name for field in FIELDS.numeric]).cast(pl.Float32))
    assert tensors["numeric"].tolist() == numbers.to_numpy().tolist()


def test_rollback_goes_back_to_an_old_release(state, monkeypatch):
    """The release below serves again: its row continues the old chain, and the next drift run looks at its champion."""
    for room, name in ((rollout, "offer"), (rollout, "restore"), (aliases, "project")):
        monkeypatch.setattr(room, name, lambda *_, **__: [])
    before = ledger.releases(state.ledger, CASE)
    answered("rollback", "--reason", "worse", "--as-of", str(LAST))
    after = ledger.releases(state.ledger, CASE)
    assert after[:2] == before
    assert (after[2].champion, after[2].action, after[2].previous_hash, after[2].bundle) == (
        1,
        "rollback",
        before[1].hash,
        before[0].bundle,
    )
    assert judge(state, NEXT).model_version == 1


def test_the_traffic_goes_on(state):
    """The place up to which the stream was sent is read."""
    place = read_place(state, CASE, at(NEXT))
    assert (place.since, place.rows, place.labels) == (at(FIRST), at(NEXT), at(NEXT))


@pytest.mark.slow
def test_mlflow_goes_on(state, monkeypatch):
    """The old runs and versions are found by their tags.

    Registering again makes none anew, and the aliases are what they were.
    """
    with mlflow.server(state.root, Ports.free()) as url:
        monkeypatch.setenv("PERENNIAL_MLFLOW_URL", url)
        settings = Settings()
        params = load_params(CASE)
        run_dir = state.run_dir(CASE, at(ASKED))
        before = storage.read_manifest(run_dir / "register", verify=False).facts
        shutil.move(run_dir / "register", run_dir / "lost")
        assert aliases.project(settings, CASE) == []
        assert register.run(params, settings, run_dir, at(ASKED), trigger="drift").facts == before
        from mlflow import MlflowClient

        client = MlflowClient(url, url)
        assert sorted(int(found.version) for found in client.search_model_versions(f"name='{CASE}'")) == [1, 2, 3]
        assert len(client.search_runs([client.get_experiment_by_name(CASE).experiment_id])) == 3
