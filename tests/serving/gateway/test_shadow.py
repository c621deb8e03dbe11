"""Rows that the other version is asked for after the reply: what comes of them, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from pipelines.arms import challenged
from pipelines.cases import load_fields
from pipelines.contracts import Window
from pipelines.data import log as prediction_log
from pipelines.data import traffic
from pipelines.errors import Unavailable
from pipelines.moments import parse_moment
from pipelines.params import ServingParams
from serving.gateway import shadow
from serving.gateway.joining import TimedOut
from serving.gateway.shadow import Found, Pair
from serving.gateway.trial import _failure
from tests.serving.gateway.test_rollout import FAST, ROWS, Held, ask, counts, follow, named, scores
from tests.serving.gateway.world import (
    PREDICT,
    Scores,
    client,
    counted,
    end,
    fake_triton,
    lines,
    make_home,
    release,
    until,
)


@pytest.fixture
def world(tmp_path):
    """``(http, settings, triton)``, the champion of loans being version 1."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, **FAST) as http:
            yield http, settings, triton


def test_a_shadow_answers_nobody_and_is_asked_for_every_row(world):
    """The champion answers all, whatever the weight; each row's line has both versions' scores, and counts as one."""
    http, settings, _ = world
    follow(http, settings, 2, 10_000, stage="shadow")
    found = ask(http, named(ROWS))
    assert {(row["version"], row["arm"]) for row in found} == {(1, "champion")}
    until(lambda: len(lines(settings, "shadow")) == len(ROWS))
    told = {line["prediction_id"]: line for line in lines(settings, "shadow")}
    for place, row in enumerate(found):
        line = told[row["prediction_id"]]
        assert (line["champion_score"], line["challenger_score"]) == (row["score"], scores(2)[place])
        assert (line["arm"], line["champion"], line["challenger"]) == ("champion", 1, 2)
        assert line["ms"] > 0
    until(lambda: counts(settings)["shadow", 2, "ok"] == len(ROWS))
    assert counts(settings, "champion") == {("champion", 1, "ok"): len(ROWS)}
    own = [line for line in lines(settings, "traffic") if line["arm"] == "shadow"]
    assert sum(sum(line["scores"].values()) for line in own) == len(ROWS)
    assert counted(http, "arm_rows_total", arm="shadow", outcome="ok") == len(ROWS)
    assert counted(http, "log_lines_total", kind="shadow") == len(ROWS)
    assert ask(http, named(ROWS)) == found
    time.sleep(0.2)
    assert len(lines(settings, "shadow")) == len(ROWS), "an answer that is repeated is asked for again"


def test_both_arms_are_mirrored_where_that_is_declared(world):
    """A row that the challenger answered is asked of the champion, too; without mirror nothing is."""
    http, settings, _ = world
    follow(http, settings, 2, 5_000)
    ask(http)
    follow(http, settings, 2, 6_000, mirror=True)
    found = ask(http)
    until(lambda: len(lines(settings, "shadow")) >= len(found))
    assert len(lines(settings, "shadow")) == len(found)
    told = {line["prediction_id"]: line for line in lines(settings, "shadow")}
    both = scores(1), scores(2)
    for place, row in enumerate(found):
        line = told[row["prediction_id"]]
        assert (line["champion_score"], line["challenger_score"]) == (both[0][place], both[1][place])
        assert line["arm"] == row["arm"]
    arms = Counter(row["arm"] for row in found)
    until(lambda: counts(settings, "shadow").total() == len(found))
    assert counts(settings, "shadow") == {
        ("shadow", 2, "ok"): arms["champion"],
        ("shadow", 1, "ok"): arms["challenger"],
    }


def test_what_stood_in_is_no_pair(world):
    """A row that the champion answered for the challenger is asked of nobody again."""
    http, settings, triton = world
    triton.loaded = {1}
    follow(http, settings, 2, 9_000, mirror=True)
    found = ask(http)
    own = {row["prediction_id"] for row in found if row["arm"] == "champion"}
    until(lambda: len(lines(settings, "shadow")) == len(own))
    time.sleep(0.2)
    assert {line["prediction_id"] for line in lines(settings, "shadow")} == own
    assert {line["challenger_score"] for line in lines(settings, "shadow")} == {None}
    until(lambda: counts(settings, "shadow") == {("shadow", 2, "error"): len(own)})


def test_a_challenger_that_is_not_served_here_fails_in_shadow(world):
    """Its rows are pairs without its score: nobody waits in vain for a shadow that cannot be."""
    http, settings, triton = world
    follow(http, settings, 2, 0, stage="shadow", fields_hash="0" * 64)
    ask(http)
    until(lambda: len(lines(settings, "shadow")) == len(ROWS))
    assert {line["challenger_score"] for line in lines(settings, "shadow")} == {None}
    until(lambda: counts(settings, "shadow") == {("shadow", 2, "error"): len(ROWS)})
    assert triton.rows == len(ROWS)


def test_nobody_waits_for_a_shadow_that_hangs_and_the_queue_is_bounded(tmp_path):
    """While the other version answers nothing, replies come as ever; what has no room is dropped and counted.

    The row that was asked for in vain has a line without its score.
    """
    with fake_triton(servicer=Held()) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, deadline_seconds=1.0, shadow_rows=20, **FAST) as http:
            follow(http, settings, 2, 0, stage="shadow")
            ask(http, ROWS[:1])
            until(lambda: triton.asked[2] == 1)
            began = time.monotonic()
            for _ in range(5):
                assert len(ask(http, ROWS[:10])) == 10
            assert time.monotonic() - began < 0.8, "replies wait for the call that hangs"
            assert triton.asked[2] == 1
            until(lambda: counts(settings)["shadow", 2, "dropped"] == 30)
            until(lambda: counts(settings)["shadow", 2, "timeout"] == 1)
            triton.may.set()
            until(lambda: counts(settings)["shadow", 2, "ok"] == 20)
            until(lambda: len(lines(settings, "shadow")) == 21)
    assert [line["challenger_score"] is None for line in lines(settings, "shadow")] == [True] + [False] * 20
    assert counts(settings, "champion") == {("champion", 1, "ok"): 51}


def test_a_busy_worker_makes_one_call_a_second(world, monkeypatch):
    """Where it has little time left, the pause after a call is the longest; every row is asked for all the same."""
    http, settings, triton = world
    follow(http, settings, 2, 0, stage="shadow")
    pauses: dict[float, list[float]] = {1.0: [], 0.0: []}
    for busy, told in pauses.items():

        async def worked(pause: float, busy=busy, told=told) -> float:
            told.append(pause)
            await asyncio.sleep(0.01)
            return busy

        monkeypatch.setattr(shadow, "_worked", worked)
        before = len(lines(settings, "shadow"))
        ask(http)
        until(lambda before=before: len(lines(settings, "shadow")) == before + len(ROWS))
    assert max(pauses[0.0]) < shadow.MOST_PAUSE_SECONDS
    assert set(pauses[1.0][1:]) == {shadow.MOST_PAUSE_SECONDS}
    assert triton.rows == 4 * len(ROWS)


def test_work_of_the_loop_is_told_from_waiting():
    """A loop that has something to do all the time has worked for more of a pause than one that sleeps."""

    async def both() -> tuple[float, float]:
        idle = await shadow._worked(0.2)
        until = time.monotonic() + 0.3

        def work() -> None:
            if time.monotonic() < until:
                asyncio.get_running_loop().call_soon(work)

        work()
        busy = await shadow._worked(0.2)
        return idle, busy

    idle, busy = asyncio.run(both())
    assert idle < 0.2
    assert busy > idle


def test_what_waits_when_a_gateway_stops_is_counted(tmp_path):
    """Rows that were never asked for are dropped ones, those of the call that is under way too."""
    with fake_triton(servicer=Held()) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, **FAST) as http:
            follow(http, settings, 2, 0, stage="shadow")
            ask(http)
            until(lambda: triton.asked[2] == 1)
        triton.may.set()
    assert counts(settings, "shadow") == {("shadow", 2, "dropped"): len(ROWS)}
    assert lines(settings, "shadow") == []


def test_rows_of_a_rollout_that_is_over_are_not_asked_for(tmp_path):
    """A challenger that was taken back is left alone: what waits for it is forgotten."""
    with fake_triton(servicer=Held()) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, deadline_seconds=0.5, **FAST) as http:
            follow(http, settings, 2, 0, stage="shadow")
            ask(http, ROWS[:1])
            until(lambda: triton.asked[2] == 1)
            ask(http)
            end(settings)
            until(lambda: counted(http, "rollout_stage") == 0, 5)
            triton.may.set()
            until(lambda: counts(settings, "shadow").total() == 1)
            time.sleep(1.2)
            assert triton.asked[2] == 1
    assert len(lines(settings, "shadow")) == 1


class Picky(Scores):
    """A Triton whose version 2 has no answer for rows of one amount."""

    amount = 0.0

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        numeric = np.frombuffer(request.raw_input_contents[1], np.float32).reshape(-1, len(ROWS[0]) - 3)
        if request.model_version == "2" and (numeric[:, -1] == np.float32(self.amount)).any():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a row is wrong")
        return super().ModelInfer(request, context)


def test_a_row_that_a_version_cannot_answer_costs_no_other_its_pair(tmp_path):
    """Rows go together in a call; the one that it fails of is found, and is the only one without a score."""
    with fake_triton(servicer=Picky()) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        triton.amount = ROWS[7]["amount"]
        with client(settings, **FAST) as http:
            follow(http, settings, 2, 0, stage="shadow")
            found = ask(http)
            until(lambda: len(lines(settings, "shadow")) == len(ROWS))
    bad = {line["prediction_id"] for line in lines(settings, "shadow") if line["challenger_score"] is None}
    assert bad == {found[7]["prediction_id"]}
    assert counts(settings, "shadow") == {("shadow", 2, "ok"): len(ROWS) - 1, ("shadow", 2, "error"): 1}


def test_live_rows_share_no_call_with_mirrored_ones(tmp_path):
    """A champion that is busy with a mirrored row answers requests all the same: the two have lanes of their own."""
    with fake_triton(servicer=Held(held=1)) as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings, deadline_seconds=5.0, **FAST) as http:
            follow(http, settings, 2, 9_999, mirror=True)
            [row] = ask(http, ROWS[:1])
            assert row["arm"] == "challenger"
            until(lambda: triton.asked[1] == 1)
            triton.held = None
            began = time.monotonic()
            answer = http.post(PREDICT, json={"rows": [{**ROWS[0], "prediction_id": champions_key()}]})
            assert answer.json()["rows"][0]["arm"] == "champion"
            assert time.monotonic() - began < 2.0
            triton.may.set()


def champions_key():
    """An id that stays with the champion at a weight of 9,999."""
    return next(key for key in map(str, range(10**6)) if not challenged("salt", key, 9_999))


def test_a_guard_reads_pairs_and_answers_with_labels(world):
    """What the gateway wrote is what the readers give, closed on request, and nothing of it is a row of the lake."""
    http, settings, _ = world
    follow(http, settings, 2, 5_000, mirror=True)
    found = ask(http, named(ROWS))
    http.post(PREDICT.replace("predict", "labels"), json={"labels": [{"prediction_id": "a-3", "label": 1}]})
    until(lambda: counts(settings, "shadow").total() == len(ROWS))
    received = parse_moment(lines(settings)[0]["received_at"])
    since, until_ = received - timedelta(seconds=1), received + timedelta(seconds=60)
    pairs = traffic.pairs(settings, "loans", since, until_)
    assert pairs["prediction_id"].sort().to_list() == sorted(row["prediction_id"] for row in found)
    assert pairs.filter(pairs["label"].is_not_null())["prediction_id"].to_list() == ["a-3"]
    rows = traffic.answered(settings, "loans", since, until_)
    assert rows.height == len(ROWS)
    assert dict(rows.select("prediction_id", "arm").rows()) == {row["prediction_id"]: row["arm"] for row in found}
    counted_ = traffic.read(settings, "loans", since, until_)
    assert sum(line["outcomes"].get("ok", 0) for line in counted_ if line["arm"] != "shadow") == len(ROWS)
    window = Window(start=received - timedelta(hours=1), end=received + timedelta(hours=1))
    assert prediction_log.catch_up(settings, "loans", window) == 0
    frame = prediction_log.read_predictions(settings, "loans", window)
    assert frame.height == len(ROWS)
    assert {path.name for path in (settings.lake_dir / "loans").iterdir()} == {"predictions", "labels"}


def pair(arm, score, own):
    """A row that one version has answered."""
    now = parse_moment("2026-05-01T00:00:00+00:00")
    return Pair(None, 1, 2, arm, "a", now, now, (), score, own)


@pytest.mark.parametrize(
    ("arm", "found", "told"),
    [
        ("champion", [0.75, 0.25], (0.5, 0.75, [0.5, 0.5], [0.75, 0.25])),
        ("challenger", [0.75, 0.25], (0.75, 0.5, [0.75, 0.25], [0.5, 0.5])),
        ("champion", None, (0.5, None, [0.5, 0.5], None)),
        ("challenger", None, (None, 0.5, None, [0.5, 0.5])),
    ],
)
def test_in_a_case_with_classes_a_line_has_all_scores_of_each_version(arm, found, told):
    """Whoever answered, each version's probabilities stand in its own place, and none where it gave none."""
    line = shadow.line_of(pair(arm, 0.5, [0.5, 0.5]), Found("ok" if found else "error", found), 0.01)
    names = ("champion_score", "challenger_score", "champion_scores", "challenger_scores")
    assert tuple(line.get(name) for name in names) == told
    assert line["ms"] == 10.0


@pytest.mark.parametrize(("error", "outcome"), [(TimedOut("late"), "timeout"), (Unavailable("away"), "error")])
def test_who_is_out_of_time_is_told_by_what_happened_and_no_clock(error, outcome):
    """A timer may be early by a turn of the event loop: no answer in time counts as that, whatever the clock says."""

    class Aside:
        def deadline(self, *_):
            return time.monotonic() + 60.0

        async def score_rows(self, *_):
            raise error

    case = SimpleNamespace(fields=load_fields("loans"), serving=ServingParams())
    pair = SimpleNamespace(other=object(), features=[0] * len(case.fields.names), event_time=datetime.now(UTC))
    found = asyncio.run(shadow.ask(SimpleNamespace(aside=Aside()), case, [pair]))
    assert [one.outcome for one in found] == [outcome]
    assert _failure(error) == outcome
