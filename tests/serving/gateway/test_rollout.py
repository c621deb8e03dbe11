"""A rollout at the gateway: who is answered by whom, what stands in, and what is counted and logged of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from pipelines import ledger
from pipelines.arms import LATENCY_MS, challenged
from pipelines.audit import audit
from pipelines.deploy import stages
from pipelines.encoding import encode
from pipelines.errors import Crowded
from pipelines.params import RolloutParams
from serving.gateway import routing, scoring, trial
from serving.gateway.joining import Lane, Late
from serving.gateway.log import Log
from serving.gateway.traffic import Traffic
from tests.serving.gateway.world import (
    FIELDS,
    PREDICT,
    Scores,
    bundle,
    client,
    counted,
    end,
    expected,
    fake_triton,
    lines,
    make_home,
    release,
    roll_out,
    some_rows,
    until,
)

FAST = {"traffic_seconds": 0.1}
ROWS = some_rows(60)


class Held(Scores):
    """A Triton in which one version answers nobody until it may."""

    def __init__(self, held=2):
        super().__init__()
        self.held, self.may = held, threading.Event()
        self.asked = Counter()

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        self.asked[int(request.model_version)] += 1
        if int(request.model_version) == self.held:
            self.may.wait(10)
        return super().ModelInfer(request, context)


@pytest.fixture
def world(tmp_path):
    """``(http, settings, triton)``, the champion of loans being version 1."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, **FAST) as http:
            yield http, settings, triton


@pytest.fixture
def held(tmp_path):
    """The same of a Triton in which version 2 hangs."""
    with fake_triton(servicer=Held()) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, deadline_seconds=1.0, **FAST) as http:
            yield http, settings, triton
            triton.may.set()


def follow(http, settings, *arguments, **options):
    """Append a row of a rollout, and wait until the gateway goes by it."""
    roll_out(settings, *arguments, **options)
    weight = options.get("weight", arguments[1] if len(arguments) > 1 else 5_000)
    share = 0.0 if options.get("stage") == "shadow" else weight / 10_000
    until(
        lambda: (
            (counted(http, "rollout_weight"), counted(http, "challenger_version")) == (share, arguments[0])
            if arguments[0]
            else counted(http, "rollout_stage") == 3
        ),
        5,
    )


def ask(http, rows=ROWS, path=PREDICT):
    """The rows of the reply."""
    answer = http.post(path, json={"rows": rows})
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def named(rows, prefix="a"):
    """The rows with ids of their own."""
    return [{**row, "prediction_id": f"{prefix}-{number}"} for number, row in enumerate(rows)]


def counts(settings, *names) -> Counter:
    """What was counted, by arm, version and outcome."""
    found: Counter = Counter()
    for line in lines(settings, "traffic"):
        for outcome, rows in line["outcomes"].items():
            found[line["arm"], line["version"], outcome] += rows
    return Counter({key: rows for key, rows in found.items() if not names or key[0] in names})


def scores(version, rows=ROWS):
    """What a version answers."""
    tensors = encode(FIELDS, {name: [row[name] for row in rows] for name in FIELDS.names})
    return expected(tensors["categorical"], tensors["numeric"], version).ravel().tolist()


def test_a_raised_weight_only_adds_keys(world):
    """A key keeps its arm while the weight rises: rows of one request meet both versions, each with its own score."""
    http, settings, _ = world
    before: set[int] = set()
    for weight in (500, 2_500, 5_000, 9_000):
        follow(http, settings, 2, weight, key="amount")
        found = ask(http)
        now = {place for place, row in enumerate(found) if row["arm"] == "challenger"}
        assert now == {place for place, row in enumerate(ROWS) if challenged("salt", str(float(row["amount"])), weight)}
        assert before <= now
        before = now
        assert [row["version"] for row in found] == [2 if place in now else 1 for place in range(len(ROWS))]
        both = {1: scores(1), 2: scores(2)}
        assert [row["score"] for row in found] == [both[row["version"]][place] for place, row in enumerate(found)]
    assert 0 < len(before) < len(ROWS)
    logged = lines(settings)[-len(ROWS) :]
    assert [(line["prediction_id"], line["arm"], line["version"]) for line in logged] == [
        (row["prediction_id"], row["arm"], row["version"]) for row in found
    ]


def test_without_a_declared_key_the_prediction_id_decides(world):
    """The client's ids, or ours, spread the rows; a key that is no field leaves it at that."""
    http, settings, _ = world
    for key, weight in ((None, 5_000), ("nobody_declared_this", 6_000)):
        salt = f"salt of {key}"
        follow(http, settings, 2, weight, salt=salt, key=key)
        for rows in (named(ROWS, f"by-{key}"), ROWS):
            found = ask(http, rows)
            wanted = [challenged(salt, row["prediction_id"], weight) for row in found]
            assert [row["arm"] == "challenger" for row in found] == wanted


def test_an_answer_is_repeated_with_its_first_version_and_arm(world):
    """Whatever the weight is now, at another gateway, with an index made anew, and when the rollout is over."""
    http, settings, _ = world
    early = ask(http, named(ROWS[:3], "early"))
    assert all("arm" not in row for row in early)
    follow(http, settings, 2, 5_000)
    first = ask(http, named(ROWS))
    assert {row["arm"] for row in first} == {"champion", "challenger"}
    follow(http, settings, 2, 9_000)
    assert ask(http, named(ROWS)) == first
    assert ask(http, named(ROWS[:3], "early")) == early
    end(settings)
    until(lambda: counted(http, "rollout_stage") == 0, 5)
    assert ask(http, named(ROWS)) == first
    (settings.root / "gateway" / "loans.ids.db").unlink()
    with client(settings, **FAST) as other:
        assert ask(other, named(ROWS)) == first
    assert "arm" not in ask(http, ROWS[:1])[0]


def test_counts_of_both_arms_are_written(world):
    """Rows, requests, latencies and scores of each arm and version, by stretches of time; nothing without a rollout."""
    http, settings, _ = world
    ask(http)
    follow(http, settings, 2, 5_000)
    found = [row for _ in range(3) for row in ask(http)]
    arms = Counter(row["arm"] for row in found)
    until(lambda: counts(settings).total() == len(found))
    assert counts(settings) == {
        ("champion", 1, "ok"): arms["champion"],
        ("challenger", 2, "ok"): arms["challenger"],
    }
    for arm in ("champion", "challenger"):
        own = [line for line in lines(settings, "traffic") if line["arm"] == arm]
        assert sum(line["requests"] for line in own) == 3
        assert sum(sum(line["latency"].values()) for line in own) == 3
        assert sum(sum(line["scores"].values()) for line in own) == arms[arm]
        for line in own:
            begin, finish = (datetime.fromisoformat(line[name]) for name in ("begin", "end"))
            assert (finish - begin).total_seconds() == pytest.approx(0.1, abs=1e-5)
            assert (datetime.now(UTC) - begin).total_seconds() < 60
    assert counted(http, "arm_rows_total", arm="challenger", outcome="ok") == arms["challenger"]
    end(settings)
    until(lambda: counted(http, "rollout_stage") == 0, 5)
    before = lines(settings, "traffic")
    ask(http)
    time.sleep(0.3)
    assert lines(settings, "traffic") == before


class Slow(Scores):
    """A Triton whose version 2 takes its time."""

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        if request.model_version == "2":
            time.sleep(0.3)
        return super().ModelInfer(request, context)


def test_a_slow_challenger_does_not_make_the_champion_look_slow(tmp_path):
    """Of a request with rows of both arms each arm's latency leaves out what it waited for the other."""
    with fake_triton(servicer=Slow()) as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, **FAST) as http:
            follow(http, settings, 2, 5_000)
            began = time.monotonic()
            assert len({row["arm"] for row in ask(http)}) == 2
            assert time.monotonic() - began > 0.3
            until(lambda: counts(settings).total() == len(ROWS))
    took = {line["arm"]: LATENCY_MS[int(place)] for line in lines(settings, "traffic") for place in line["latency"]}
    assert took["challenger"] > 300
    assert took["champion"] < 200


def test_a_gateway_that_stops_writes_what_it_counted(tmp_path):
    """What was counted in a stretch that is not over is in a closed segment once the gateway has stopped."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        roll_out(settings, 2, 5_000)
        with client(settings, traffic_seconds=3_000) as http:
            ask(http)
            assert not lines(settings, "traffic")
        assert counts(settings).total() == len(ROWS)
        assert all(path.suffix == ".jsonl" for path in settings.prediction_log.glob("loans/traffic/*.jsonl*"))


def test_counts_are_written_though_the_clock_was_set_back(tmp_path):
    """What was counted in a time that is yet to come, as the clock was set back since, waits for nothing."""
    log = Log(tmp_path, "w", max_bytes=10**6, max_seconds=60, on_error=lambda: None)
    traffic = Traffic(10, lambda *_: None)
    for received in (datetime.now(UTC), datetime.now(UTC) + timedelta(days=1)):
        traffic.count(received, "champion", 1, "ok", 1)
    assert traffic.write(log) == 1
    assert traffic.write(log, every=True) == 1
    asyncio.run(log.close())


def test_the_champion_answers_for_a_challenger_that_is_not_loaded(world):
    """Nobody is harmed: its rows have the champion's answer, keep their arm, and count as failed of the challenger."""
    http, settings, triton = world
    triton.loaded = {1}
    follow(http, settings, 2, 5_000)
    found = ask(http)
    assert {row["version"] for row in found} == {1}
    arms = Counter(row["arm"] for row in found)
    assert [row["score"] for row in found] == scores(1)
    until(lambda: counts(settings).total() == len(ROWS))
    assert counts(settings) == {
        ("champion", 1, "ok"): arms["champion"],
        ("challenger", 2, "fallback"): arms["challenger"],
    }
    assert not any(line["scores"] for line in lines(settings, "traffic") if line["arm"] == "challenger")
    assert counted(http, "rows_total", version="2") == 0
    triton.loaded = {1, 2}
    until(lambda: {row["version"] for row in ask(http)} == {1, 2}, 10)


def test_the_champion_answers_in_time_for_a_challenger_that_hangs(held):
    """A challenger gets half of the time that a request has; an answer comes all the same, within the deadline."""
    http, settings, triton = held
    follow(http, settings, 2, 9_999)
    began = time.monotonic()
    [row] = ask(http, ROWS[:1])
    assert time.monotonic() - began < 1.0
    assert (row["version"], row["arm"]) == (1, "challenger")
    assert triton.asked[2]
    until(lambda: counts(settings)["challenger", 2, "fallback"] == 1)


def test_a_challenger_whose_bundle_is_of_other_fields_serves_nobody(world):
    """It is said and shown, its rows are the champion's and count as failed; mended, it serves."""
    http, settings, _ = world
    follow(http, settings, 2, 5_000, fields_hash="0" * 64)
    assert counted(http, "challenger_refused", case="loans") == 1
    found = ask(http)
    assert {row["version"] for row in found} == {1}
    until(lambda: counts(settings)["challenger", 2, "fallback"] == sum(row["arm"] == "challenger" for row in found))
    about = http.get("/readyz")
    assert about.status_code == 200
    assert "other fields" in about.json()["cases"]["loans"]["challenger"]["error"]
    follow(http, settings, 3, 5_000)
    assert {row["version"] for row in ask(http)} == {1, 3}
    path = settings.root / ledger.head(settings.ledger, "loans").trial.bundle / "bundle.json"
    kept = path.read_bytes()
    path.unlink()
    with client(settings, **FAST) as other:
        assert {row["version"] for row in ask(other)} == {1}
        path.write_bytes(kept)
        until(lambda: {row["version"] for row in ask(other)} == {1, 3}, 5)
        assert counted(other, "challenger_refused", case="loans") == 0


def test_a_challenger_without_its_verdict_serves_nobody(world):
    """A verdict that rejected it, or that the ledger does not have, is said to be damage; the champion goes on."""
    http, settings, _ = world
    arguments = {"case": "loans", "as_of": datetime(2024, 1, 9, tzinfo=UTC), "trigger": "drift"}
    value = ledger.record_verdict(settings.ledger, **arguments, gate_key="g", verdict={"decision": "reject"})
    for cited, said in ((value, "promotes on a verdict that says reject"), ("0" * 64, "there is no verdict")):
        follow(http, settings, 2, 5_000, verdict_hash=cited)
        until(lambda said=said: said in http.get("/readyz").json()["cases"]["loans"].get("damaged", ""), 5)
        assert {row["version"] for row in ask(http)} == {1}
    with client(settings, **FAST) as fresh:
        assert {row["version"] for row in ask(fresh)} == {1}
    follow(http, settings, 2, 5_000, verdict_hash=value, by_hand=True)
    until(lambda: counted(http, "ledger_damaged") == 0, 5)
    assert {row["version"] for row in ask(http)} == {1, 2}


def test_a_version_that_a_person_rolls_out_against_its_verdict_arrives(world):
    """Its last row releases it by hand: this gateway, one that starts then and the audit go by it."""
    http, settings, _ = world
    case, now = "loans", datetime(2024, 1, 9, tzinfo=UTC)
    known = {"case": case, "as_of": now, "trigger": "drift"}
    value = ledger.record_verdict(settings.ledger, **known, gate_key="g", verdict={"decision": "reject"})
    folder = bundle(settings, 2)
    candidate = stages.Candidate(
        version=2,
        candidate_key="key-2",
        bundle=str(folder.relative_to(settings.root)),
        mlflow_run=None,
        verdict_hash=value,
        trigger="manual",
        as_of=now,
        by_hand=True,
    )
    said = stages.Said(actor="ada", reason="we know better", now=now, as_of=now)
    head = ledger.head(settings.ledger, case)
    ledger.append(settings.ledger, stages.open_(head, candidate, RolloutParams(steps=(0.5, 1.0)), said))
    until(lambda: {row["version"] for row in ask(http)} == {1, 2}, 5)
    head = ledger.head(settings.ledger, case)
    ledger.append(settings.ledger, stages.advance(head, said))
    until(lambda: {row["version"] for row in ask(http)} == {2}, 5)
    assert counted(http, "ledger_damaged") == 0
    with client(settings, **FAST) as fresh:
        assert {row["version"] for row in ask(fresh)} == {2}
    assert [row.action for row in ledger.chain(settings.ledger, case)] == ["promote", "open", "release"]
    assert "seq 3" not in {one["row"] for one in audit(settings, case)["findings"]}


def test_rows_of_a_rollout_leave_the_champion_alone(world, monkeypatch):
    """A weight is followed without reading a bundle again, neither the champion's nor the challenger's."""
    http, settings, _ = world
    read = []
    load = routing.load
    monkeypatch.setattr(routing, "load", lambda root, fields, one: read.append(one.champion) or load(root, fields, one))
    for weight in (1_000, 5_000, 9_000):
        follow(http, settings, 2, weight)
    assert read == [2]
    end(settings)
    until(lambda: counted(http, "rollout_stage") == 0, 5)
    assert read == [2]
    assert {row["version"] for row in ask(http)} == {1}


def test_a_challenger_on_trial_is_asked_by_its_number(world):
    """Whoever names a version gets that one, in no arm and in no count; once the trial is over, it is unknown."""
    http, settings, _ = world
    follow(http, settings, 2, 0, stage="shadow")
    assert http.get("/v2/models/loans").json()["versions"] == ["1", "2"]
    row = ROWS[0]
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES" if isinstance(value, str) else "FP64", "data": [value]}
        for name, value in row.items()
    ]
    for version in (1, 2):
        answer = http.post(f"/v2/models/loans/versions/{version}/infer", json={"inputs": inputs})
        assert (answer.status_code, answer.json()["model_version"]) == (200, str(version))
        until(lambda version=version: http.get(f"/v2/models/loans/versions/{version}/ready").status_code == 200, 5)
    assert http.post("/v2/models/loans/versions/3/infer", json={"inputs": inputs}).status_code == 404
    assert [(line["version"], "arm" in line) for line in lines(settings)] == [(1, False), (2, False)]
    end(settings)
    until(lambda: counted(http, "rollout_stage") == 0, 5)
    assert http.post("/v2/models/loans/versions/2/infer", json={"inputs": inputs}).status_code == 404
    assert not counts(settings)


def refusing(monkeypatch, module, versions, error):
    """Have rows of these versions turned away."""
    scored_by = module.scored_by

    async def scored(gateway, case, version, *arguments):
        if version.number in versions:
            raise error
        return await scored_by(gateway, case, version, *arguments)

    monkeypatch.setattr(module, "scored_by", scored)


@pytest.mark.parametrize("kind", ["late", "crowded"])
def test_overload_is_a_challengers_fault_only_where_it_carries_no_more(world, monkeypatch, kind):
    """Rows that its lane has no room for are the champion's: failed up to half of the keys, beyond that only late."""
    http, settings, _ = world
    error = Late(Lane(None, 1), 1.0, 1) if kind == "late" else Crowded("the queue is full")
    refusing(monkeypatch, trial, {2}, error)
    for weight, outcome in ((5_000, "fallback"), (9_000, "late")):
        follow(http, settings, 2, weight)
        before = counts(settings, "challenger")
        found = ask(http)
        assert {row["version"] for row in found} == {1}
        own = sum(row["arm"] == "challenger" for row in found)
        until(lambda before=before: counts(settings, "challenger") != before)
        assert counts(settings, "challenger") - before == {("challenger", 2, outcome): own}
    assert counted(http, "triton_errors_total", version="2") == 0


def test_overload_of_both_is_nobodys_fault(world, monkeypatch):
    """Where the champion has no room either, the request is 503, and counts as late of both arms."""
    http, settings, _ = world
    error = Late(Lane(None, 1), 1.0, 1)
    refusing(monkeypatch, trial, {2}, error)
    refusing(monkeypatch, scoring, {1}, error)
    follow(http, settings, 2, 5_000)
    assert http.post(PREDICT, json={"rows": ROWS}).status_code == 503
    until(lambda: counts(settings).total() == len(ROWS))
    assert {outcome for _, _, outcome in counts(settings)} == {"late"}
    assert lines(settings) == []


def test_rows_that_nobody_answers_count_in_their_arms(world):
    """A Triton without any version is an error of each row's arm, and nothing is logged."""
    http, settings, triton = world
    follow(http, settings, 2, 5_000)
    triton.loaded = set()
    assert http.post(PREDICT, json={"rows": ROWS}).status_code == 503
    until(lambda: counts(settings).total() == len(ROWS))
    assert {(arm, outcome) for arm, _, outcome in counts(settings)} == {
        ("champion", "error"),
        ("challenger", "error"),
    }
    assert lines(settings) == []


def test_refused_rows_belong_to_the_arm_of_their_key(world):
    """Rows that are not as declared count in their keys' arms, in both counts; one without a key is the champion's."""
    http, settings, _ = world
    follow(http, settings, 2, 5_000)
    bad = [{**row, "age": -1} for row in named(ROWS[:30])]
    arms = Counter("challenger" if challenged("salt", row["prediction_id"], 5_000) else "champion" for row in bad)
    assert set(arms) == {"champion", "challenger"}
    assert http.post(PREDICT, json={"rows": bad}).status_code == 422
    assert http.post(f"{PREDICT}?partial=true", json={"rows": bad}).json()["refused"] == len(bad)
    assert http.post(PREDICT, json={"rows": [{**ROWS[0], "age": -1}]}).status_code == 422
    versions = {"champion": 1, "challenger": 2}
    wanted = Counter({arm: 2 * rows for arm, rows in arms.items()}) + Counter({"champion": 1})
    until(lambda: counts(settings).total() == wanted.total())
    assert counts(settings) == {(arm, versions[arm], "refused"): rows for arm, rows in wanted.items()}
    found: Counter = Counter()
    for line in lines(settings, "refusals"):
        found[line["arm"], line["version"]] += line["rows"]
    assert found == {(arm, versions[arm]): rows for arm, rows in wanted.items()}


def test_a_declared_key_of_refused_rows_is_read_where_it_can_be(world):
    """A number counts as it is decoded, also beside values that are no JSON; a text with escapes is nobody's key."""
    http, settings, _ = world
    follow(http, settings, 2, 5_000, key="amount")
    amounts = [1000, 2000.5, 3e3, 4000, 5000, 6000]
    rows = ", ".join(f'{{"amount": {amount}, "age": NaN}}' for amount in amounts)
    http.post(PREDICT, content=f'{{"rows": [{rows}]}}')
    wanted = Counter("challenger" if challenged("salt", str(float(one)), 5_000) else "champion" for one in amounts)
    assert len(wanted) == 2
    until(lambda: counts(settings).total() == len(amounts))
    assert Counter({arm: rows for (arm, _, _), rows in counts(settings).items()}) == wanted


def test_a_soak_is_the_champions(world):
    """After the last step there is one arm, whose counts are of the version that serves now."""
    http, settings, _ = world
    release(settings, 2)
    until(lambda: counted(http, "champion_version") == 2, 5)
    follow(http, settings, None, 10_000, stage="soak", action="advance")
    found = ask(http)
    assert {(row["arm"], row["version"]) for row in found} == {("champion", 2)}
    until(lambda: counts(settings) == {("champion", 2, "ok"): len(ROWS)})


def test_a_retired_case_has_no_rollout(world):
    """A case out of service answers nobody, whatever its newest row says."""
    http, settings, _ = world
    follow(http, settings, 2, 5_000)
    ledger.set_retired(settings.ledger, "loans", retired=True, reason="a test", actor="a test")
    until(lambda: http.post(PREDICT, json={"rows": ROWS}).status_code == 410, 5)
    assert counted(http, "rollout_stage") == 0
