"""The DAGs in the real Airflow over the whole real stack.

The scheduler's own tick, and one training run and one message per episode.
"""

import os
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest

from benchmarks.full.episode import forget, provoke
from embedded.airflow import client
from embedded.airflow_metrics import SERIES, Watch
from embedded.services import settings_of
from pipelines import cases, ledger
from pipelines.errors import ConflictError
from pipelines.fields import Categorical
from pipelines.line import order, runner
from pipelines.line.step import Run
from pipelines.params import RolloutParams
from pipelines.params_file import load_params
from pipelines.places import PRIVATE
from pipelines.provenance import wall_time
from pipelines.storage import read_manifest
from tests.embedded.test_airflow_metrics import samples
from tests.pipelines.candidates import month, registered
from tests.pipelines.data import loglines
from tests.running import CASE, ENDS, GRAFANA, MAPPED, PROFILE

pytestmark = pytest.mark.slow

TRAINING = tuple(step.name for step in order.TRAINING)
DRIFT = (*(step.name for step in (*order.WATCHING, *order.TELLING)), "retrain", "reconcile")

RUNS = 20 if PROFILE == "full" else 5
FAULTS = ("drift:decided.1", "drift:opened.1", "drift:publish.1", "drift:published.1", "alert:files.1")
"""Where a task is killed: the state without its episode, the episode without its report.

And on the way to the commits.
"""
RANKS = 2
"""Of each training of tests/dags/probes.py."""
PATIENCE = 20.0
"""Seconds in which ranks must be gone: 8 at most where nothing else runs."""


@pytest.fixture(scope="module")
def loop(live):
    """The running stack with its settings and its Airflow, which has parsed the DAGs of `loans`.

    What is written here into the state is its owner's alone, as what the stack writes is.
    """
    settings = settings_of(live.stack.home, live.stack.env)
    airflow = client(settings)
    airflow.wait_for_dags(f"{CASE}_{kind}" for kind in ("training", "drift", "rollout", "rollback"))
    umask = os.umask(PRIVATE)
    yield SimpleNamespace(
        settings=settings,
        airflow=airflow,
        params=load_params(CASE),
        faults=live.faults,
        messages=live.messages,
        events=live.events,
    )
    os.umask(umask)


def _own_tick(airflow, dag):
    """The run that the scheduler makes by itself once the DAG is unpaused."""
    airflow.unpause(dag)
    airflow.wait_quiet([dag])
    found = []
    while not found:
        found = airflow.runs(dag)
    return airflow.wait(dag, found[0]["dag_run_id"])


def _lineage(events, run_id):
    """The datasets that the tasks of a run have used and made, as OpenLineage's sink was told when they were over."""
    found = {}
    for _, event in events:
        told = event["run"]["facets"].get("perennial")
        about = event["run"]["facets"].get("airflow", {}).get("dagRun", {})
        if told and event["eventType"] == "COMPLETE" and about.get("run_id") == run_id:
            found[told["step"]] = (told, event["inputs"], event["outputs"])
    return found


def _versions(datasets):
    return {(one["namespace"], one["name"]): one["facets"].get("version", {}).get("datasetVersion") for one in datasets}


def _states(airflow, dag, run_id):
    return {task["task_id"]: task["state"] for task in airflow.tasks(dag, run_id)}


def test_the_schedulers_own_ticks_go_green(loop):
    """A training run that the scheduler made by itself ends green with a first champion at its interval's end.

    So does a drift run.
    """
    training = _own_tick(loop.airflow, f"{CASE}_training")
    assert (training["run_type"], training["triggered_by"], training["state"]) == ("scheduled", "timetable", "success")
    assert _states(loop.airflow, f"{CASE}_training", training["dag_run_id"]) == {
        **dict.fromkeys(TRAINING, "success"),
        "trial": "skipped",
    }
    executes = {"embedded": "scheduler.log", "full": "worker-default.log"}[PROFILE]
    assert "is not preloaded" not in (loop.settings.root / "logs" / executes).read_text()
    champion = ledger.head(loop.settings.ledger, CASE)
    assert champion.trigger == "initial"
    assert champion.as_of == datetime.fromisoformat(training["data_interval_end"])

    ticked = _own_tick(loop.airflow, f"{CASE}_drift")
    assert (ticked["run_type"], ticked["state"]) == ("scheduled", "success")
    assert _states(loop.airflow, f"{CASE}_drift", ticked["dag_run_id"]) == {
        **dict.fromkeys(DRIFT, "success"),
        "retrain": "skipped",
    }


def test_openlineage_has_one_graph_from_data_to_release(loop):
    """The real provider sends every step of the training to a sink.

    Each dataset that a step uses is what another one made, by name and version: a data set's manifest, a model's
    number, a release's. The verdict stands beside it, and the drift run joins.
    """
    run = loop.airflow.runs(f"{CASE}_training")[0]
    steps = [step for step in order.TRAINING if step.name != "reconcile"]
    until = time.monotonic() + 30
    while len(told := _lineage(loop.events, run["dag_run_id"])) < len(TRAINING):
        assert time.monotonic() < until, sorted(told)
        time.sleep(0.2)
    made = {name: version for _, _, outputs in told.values() for name, version in _versions(outputs).items()}
    used = {name: version for _, inputs, _ in told.values() for name, version in _versions(inputs).items()}
    folder = loop.settings.run_dir(CASE, datetime.fromisoformat(run["data_interval_end"]))
    manifests = {step.name: read_manifest(folder / step.name) for step in steps}
    champion = ledger.head(loop.settings.ledger, CASE)
    place = f"perennial://{CASE}"
    assert made == {
        (place, "data"): manifests["ingest"].sha256,
        (place, "dataset"): manifests["dataset"].sha256,
        (place, "model"): str(champion.champion),
        (place, "release"): str(champion.seq),
    }
    assert used == {name: version for name, version in made.items() if name[1] != "release"}
    assert {name: told[name][0]["key"] for name in manifests} == {name: one.key for name, one in manifests.items()}
    assert told["gate"][0]["facts"]["decision"] == "promote"
    drift = _lineage(loop.events, loop.airflow.runs(f"{CASE}_drift")[0]["dag_run_id"])
    assert _versions(drift["profile"][1]).keys() == {(place, "release")}


def test_foreign_names_and_pages_are_turned_away(loop):
    """No service answers to a foreign Host, by which a web page would be an admin.

    Airflow, its tasks' API and its login, MLflow and gateway; no foreign page writes or frames.
    """
    airflow, mlflow, gateway = loop.airflow.url, loop.settings.mlflow_url, loop.settings.gateway_url
    paths = {
        airflow: ("/", "/api/v2/version", "/auth/token", "/execution/health"),
        mlflow: ("/", "/ajax-api/2.0/mlflow/experiments/search"),
        gateway: ("/healthz",),
    }
    welcome = {"embedded": 200, "full": 401}[PROFILE]  # MLflow on the full stack asks who is there
    with httpx.Client(timeout=30, trust_env=False) as http:
        for url, places in paths.items():
            port = httpx.URL(url).port
            for path in places:
                for name in (
                    "evil.example",
                    f"evil.example:{port}",
                    f"10.evil.example:{port}",
                    f"127.0.0.1.evil.example:{port}",
                ):
                    answer = http.get(url + path, headers={"Host": name})
                    assert answer.status_code == (403 if url == mlflow else 421), (url, path, name)
                    assert "set-cookie" not in answer.headers
                    assert "evil.example" in answer.text or url == mlflow
            for name in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost"):
                assert http.get(url + places[0], headers={"Host": name}).status_code == (
                    welcome if url == mlflow else 200
                ), (url, name)
        foreign = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
        for path in (f"/api/v2/dags/{CASE}_training/dagRuns", "/auth/token"):
            refused = http.post(airflow + path, content=b'{"logical_date": null}', headers=foreign)
            assert (refused.status_code, "PERENNIAL_ALLOWED_HOSTS" in refused.text) == (403, True)
        for url in (airflow, mlflow):
            assert http.get(url).headers["x-frame-options"] == "SAMEORIGIN"


def test_tasks_have_buttons(loop):
    """What a finished run's tasks link to, as the UI is told.

    MLflow's run, verdict, version and page, Grafana's dashboard; none where there is nothing.
    """
    training, drift = loop.airflow.runs(f"{CASE}_training")[0], loop.airflow.runs(f"{CASE}_drift")[0]
    shown = {
        task: _buttons(loop.airflow, f"{CASE}_training", training["dag_run_id"], task)
        for task in ("train", "gate", "register", "rollout", "ingest")
    }
    grafana, mlflow = f"{GRAFANA}/d/perennial-model?var-case={CASE}", loop.settings.mlflow_url
    run = shown["train"].pop("MLflow run")
    assert run.startswith(f"{mlflow}/#/experiments/")
    expected = (
        {"Gate report": f"{run}/artifacts/verdict.json"},
        {"Model version": f"{mlflow}/#/models/{CASE}/versions/1"},
        {"Grafana": grafana},
        {},
    )
    assert shown == dict(zip(shown, ({"Grafana": grafana}, *expected), strict=True))
    told = {
        task: _buttons(loop.airflow, f"{CASE}_drift", drift["dag_run_id"], task)
        for task in ("drift", "report", "retrain")
    }
    assert told["drift"] == {
        "Drift report": f"{loop.airflow.url}/dags/{CASE}_drift/runs/{drift['dag_run_id']}/tasks/report",
        "Grafana": grafana,
    }
    assert told["report"].keys() == {"Daily page"}
    assert told["retrain"] == {}


def _buttons(airflow, dag, run_id, task):
    found = airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/links")["extra_links"]
    return {name: address for name, address in found.items() if address}


def test_a_train_task_that_is_ended_leaves_no_rank(loop):
    """Marked failed, cleared, out of time.

    Deaf ranks in sessions of their own are gone soon, the cleared task runs again alone. Meanwhile what ranks say
    stands in the log of the running task, and people are told once of a run that is late.
    """
    from perennial.airflow.torchrun import tagged

    airflow, dags = loop.airflow, {end: f"held_{end}" for end in ENDS}
    for dag in dags.values():
        airflow.unpause(dag)
    runs = {end: airflow.trigger_dag(dag, "held") for end, dag in dags.items()}
    until = time.monotonic() + 60
    began: set[str] = set()
    while (
        began != set(ENDS)
        or not _late(loop)
        or "a rank is up" not in airflow.log(dags["failed"], runs["failed"], "train")
    ):
        assert time.monotonic() < until, (began, loop.messages)
        began |= {end for end, dag in dags.items() if len(tagged(f"{dag}/held/train#1")) == RANKS}
        time.sleep(0.5)
    airflow.call(
        "PATCH", f"/dags/held_failed/dagRuns/{runs['failed']}/taskInstances/train", json={"new_state": "failed"}
    )
    airflow.clear("held_cleared", runs["cleared"], ["train"])
    until = time.monotonic() + PATIENCE
    while left := [end for end, dag in dags.items() if tagged(f"{dag}/held/train#1")]:
        assert time.monotonic() < until, left
        time.sleep(0.2)
    ended = {end: airflow.wait(dag, runs[end])["state"] for end, dag in dags.items()}
    assert ended == {"failed": "failed", "cleared": "success", "timed": "failed"}
    assert [task["try_number"] for task in airflow.tasks("held_cleared", runs["cleared"])] == [2]
    assert len(_late(loop)) == 1


def _late(loop):
    return [body["text"] for _, body in loop.messages if "run held of held_failed is late" in body["text"]]


def test_a_run_that_fails_is_told_once_and_at_once(loop):
    """People are told once of a failed run, with its task and error.

    A retry that succeeds and a skip are told to nobody.
    """
    airflow, wanted = loop.airflow, {"broken": "failed", "flaky": "success", "early": "success"}
    for mishap in wanted:
        airflow.unpause(f"mishap_{mishap}")
    runs = {mishap: airflow.trigger_dag(f"mishap_{mishap}", "once") for mishap in wanted}
    assert {mishap: airflow.wait(f"mishap_{mishap}", run)["state"] for mishap, run in runs.items()} == wanted
    until = time.monotonic() + 60
    while not _about(loop, "mishap_broken"):
        assert time.monotonic() < until, loop.messages
        time.sleep(0.05)
    [told] = _about(loop, "mishap_")
    assert "run once of mishap_broken failed in its task step: DataError: 6% of the rows are bad" in told


def _about(loop, name):
    return [body["text"] for _, body in loop.messages if name in body["text"]]


def test_an_episode_trains_once(loop):
    """Concurrent drift runs of one episode end in one training run, to which all link, and one message.

    There are twenty on the full stack; some are killed and retried, some cleared.
    """
    tomorrow = wall_time().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    as_of, episode = provoke(loop.settings, loop.params, tomorrow)
    forget(loop.settings, CASE, as_of)
    for fault in FAULTS:
        (loop.faults / fault).touch()
    dag, airflow = f"{CASE}_drift", loop.airflow
    ids = [airflow.trigger_dag(dag, f"concurrent_{number}", {"as_of": as_of.isoformat()}) for number in range(RUNS)]
    for number in (0, RUNS - 1):
        airflow.wait(dag, ids[number])
        airflow.clear(dag, ids[number])
    airflow.wait(dag, ids[3])
    airflow.clear(dag, ids[3], ["retrain"])
    airflow.wait_quiet([dag])

    assert list(loop.faults.iterdir()) == []
    retried = [task for run_id in ids for task in airflow.tasks(dag, run_id) if task["try_number"] > 1]
    assert (
        len([task for task in retried if task["task_id"] in {"drift", "alert"}]) >= len(FAULTS) - 2
    )  # one run may meet two faults
    assert [row["episode"] for row in ledger.episodes(loop.settings.ledger, CASE)] == [episode]
    asked = [(airflow.run(dag, run_id)["state"], _states(airflow, dag, run_id)["retrain"]) for run_id in ids]
    assert {state for state, _ in asked} == {"success"}
    assert {retrain for _, retrain in asked} <= {"success", "skipped"}
    trained = [run for run in airflow.runs(f"{CASE}_training") if run["run_type"] == "operator_triggered"]
    assert [run["dag_run_id"] for run in trained] == [f"drift__{episode}"]
    assert {name: trained[0]["conf"][name] for name in ("trigger", "episode")} == {
        "trigger": "performance",
        "episode": episode,
    }
    assert datetime.fromisoformat(trained[0]["conf"]["as_of"]) == as_of
    assert trained[0]["note"]
    assert (loop.settings.root / trained[0]["conf"]["evidence"]).is_file()
    for run_id in ids:
        links = airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances/retrain/links")["extra_links"]
        assert list(links.values()) == [f"{airflow.url}/dags/{CASE}_training/runs/drift__{episode}"]

    assert airflow.wait(f"{CASE}_training", f"drift__{episode}")["state"] == "success"
    verdicts = Counter(row["as_of"] for row in ledger.verdicts(loop.settings.ledger, CASE))
    assert set(verdicts.values()) == {1}
    assert [row["trigger"] for row in ledger.verdicts(loop.settings.ledger, CASE)] == ["initial", "performance"]
    assert [body["text"].partition("\n")[0] for _, body in loop.messages if episode in body["text"]] == [
        f"*CRITICAL* {CASE}: {episode}"
    ]


def test_every_day_of_a_mapped_case_has_a_task(loop):
    """Where profiles are mapped, a drift run has a task for each day of the window that has rows.

    `profile` takes what they made.
    """
    settings, as_of = loop.settings, datetime(2009, 6, 1, tzinfo=UTC)
    row = {
        field.name: field.values[0] if isinstance(field, Categorical) else 1.0
        for field in cases.load_fields(MAPPED).fields
    }
    given = {"request_id": "r", "version": 1, "score": 0.25, "prediction": 0, "row": row}
    times = [as_of - timedelta(days=days, hours=hours) for days, hours in ((20, 1), (20, 4), (3, 5))]
    lines = [
        {**given, "prediction_id": str(at), "event_time": at.isoformat(), "received_at": at.isoformat()} for at in times
    ]
    loglines.write(settings, MAPPED, "predictions", "made", lines)
    dag, airflow = f"{MAPPED}_drift", loop.airflow
    airflow.unpause(dag)
    run_id = airflow.trigger_dag(dag, "mapped", {"as_of": as_of.isoformat()})
    assert airflow.wait(dag, run_id)["state"] == "success"
    assert Counter(task["state"] for task in airflow.tasks(dag, run_id) if task["task_id"] == "profile_day") == {
        "success": 2
    }
    run_dir = settings.run_dir(MAPPED, as_of)
    days = read_manifest(run_dir / "profile").facts["days"]
    assert [(day["date"], day["rows"]) for day in days] == [("2009-05-11", 2), ("2009-05-28", 1)]
    assert [read_manifest(run_dir / "profile_parts" / day["date"]).facts for day in days] == days


def _answer_twenty(settings, name):
    """Counts of twenty rows that each version of the rollout answers well, as a gateway writes them."""
    begin = ledger.head(settings.ledger, MAPPED).trial.opened + timedelta(seconds=1)
    times = {"begin": begin.isoformat(), "end": (begin + timedelta(seconds=1)).isoformat()}
    counts = {"requests": 20, "outcomes": {"ok": 20}, "latency": {"12": 20}, "scores": {}}
    arms = ({"arm": "champion", "version": 1}, {"arm": "challenger", "version": 2})
    loglines.write(settings, MAPPED, "traffic", name, [times | arm | counts for arm in arms])


@pytest.mark.long
def test_a_rollout_is_moved_by_one_run(loop):
    """The run of a candidate waits without a worker, and ends when the candidate serves, also if its ticks are killed.

    Cleared it ends again and changes nothing; there is no second run of its name.
    """
    settings, airflow, dag = loop.settings, loop.airflow, f"{MAPPED}_rollout"
    plan = {"steps": [0.5, 1.0], "hold": {"rows": 30}, "guard": {"window_minutes": 0.05, "min_requests": 1}}
    params = load_params(MAPPED).model_copy(update={"rollout": RolloutParams.model_validate(plan)})
    for number, opponent in ((1, None), (2, 1)):
        folder = registered(settings, month(number), number, bias=number / 10, champion=opponent)
        made = runner.run(order.ROLLOUT, Run(params, settings, month(number)))
    _answer_twenty(settings, "first")
    for fault in ("tick:judged.1", "tick:projected.1"):
        (loop.faults / fault).touch()
    asked = order.ROLLOUT.facts.of(made).asks(month(2).isoformat(), str(folder))
    airflow.unpause(dag)
    name = airflow.trigger_dag(dag, f"candidate__{asked['candidate'][:16]}", asked)
    states, until = set(), time.monotonic() + 240
    while airflow.run(dag, name)["state"] not in ("success", "failed"):
        assert time.monotonic() < until, states
        states |= {task["state"] for task in airflow.tasks(dag, name)}
        if "up_for_reschedule" in states:  # it waits for more rows
            _answer_twenty(settings, "second")
        time.sleep(0.2)
    assert airflow.run(dag, name)["state"] == "success"
    assert {"up_for_retry", "up_for_reschedule"} <= states
    assert list(loop.faults.iterdir()) == []
    told = [(row.action, row.champion, row.challenger) for row in ledger.chain(settings.ledger, MAPPED)]
    assert told == [("promote", 1, None), ("open", 1, 2), ("promote", 2, None)]
    airflow.clear(dag, name)
    assert airflow.wait(dag, name)["state"] == "success"
    assert len(ledger.chain(settings.ledger, MAPPED)) == len(told)
    with pytest.raises(ConflictError):
        airflow.trigger_dag(dag, name, asked)


def test_what_prometheus_is_told_of_a_real_airflow(loop):
    """The exporter finds all components healthy.

    It finds the durations and tries of the newest runs' tasks, too, in the answers of a real REST API.
    """
    found = samples(Watch(client(loop.settings)).text())
    assert found["up", ()] == 1
    assert {labels[0][1] for (name, labels), value in found.items() if name == "component_healthy" and value} >= {
        "metadatabase",
        "scheduler",
    }
    timed = {
        dict(labels)["task"]
        for name, labels in found
        if name == "task_seconds" and ("dag", f"{CASE}_training") in labels
    }
    assert timed == set(TRAINING)
    assert {name for name, _labels in found} >= set(SERIES) - {"dag_running_seconds"}
