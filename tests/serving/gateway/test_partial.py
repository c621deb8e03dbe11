"""A request whose rows are answered one by one: what is wrong with a row is said in its place, and costs no other."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from serving.gateway import predict
from tests.serving.gateway.world import PREDICT, counted, lines, some_rows, until

EACH = f"{PREDICT}?partial=true"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


def named(count: int, prefix: str) -> list[dict]:
    """Valid rows with ids and event times, an hour apart."""
    return [
        {**row, "prediction_id": f"{prefix}-{number}", "event_time": (NOON + timedelta(hours=number)).isoformat()}
        for number, row in enumerate(some_rows(count))
    ]


def ids(settings) -> list[str]:
    """The ids in the log."""
    return [line["prediction_id"] for line in lines(settings)]


def test_one_bad_row_refuses_itself_only(world):
    """Valid rows are scored and logged, the others have status, words and field in their place; all in their order.

    The bad ones are counted, in the metric and beside the log, each in its own hour.
    """
    rows = named(4, "mixed")
    rows[1]["education"], rows[3]["age"] = "phd", -3
    before = counted(world.http, "refused_rows_total")
    answer = world.http.post(EACH, json={"rows": rows})
    assert answer.status_code == 200
    found = answer.json()
    assert found["refused"] == 2
    assert [row.get("prediction_id") for row in found["rows"]] == ["mixed-0", None, "mixed-2", None]
    alone = [world.http.post(PREDICT, json={"rows": [row]}) for row in rows]
    for number in (1, 3):
        refused = found["rows"][number]
        assert refused == {
            "row": number,
            "status": alone[number].status_code,
            "error": alone[number].json()["error"].replace("row 0:", f"row {number}:"),
            "field": alone[number].json()["field"],
        }
    for number in (0, 2):
        assert found["rows"][number] == alone[number].json()["rows"][0]
    assert sorted(one for one in ids(world.settings) if one.startswith("mixed")) == ["mixed-0", "mixed-2"]
    assert counted(world.http, "refused_rows_total") == before + 4  # the two alone, too
    until(lambda: sum(line["rows"] for line in lines(world.settings, "refusals")) == 4)
    kept = {(line["hour"], line["field"], line["reason"]) for line in lines(world.settings, "refusals")}
    assert kept == {
        ((NOON + timedelta(hours=1)).isoformat(), "education", "category"),
        ((NOON + timedelta(hours=3)).isoformat(), "age", "bounds"),
    }


def test_a_request_of_valid_rows_is_what_it_is_without(world):
    """Where nothing is refused the answer has the same rows, and asking again gives them again."""
    rows = named(3, "valid")
    usual = world.http.post(PREDICT, json={"rows": rows}).json()
    found = world.http.post(EACH, json={"rows": rows}).json()
    assert (found["rows"], found["refused"]) == (usual["rows"], 0)
    assert len([one for one in ids(world.settings) if one.startswith("valid")]) == 3
    off = world.http.post(f"{PREDICT}?partial=false", json={"rows": [{**rows[0], "age": -1}]})
    assert off.status_code == 422


def test_a_request_of_bad_rows_only_is_answered(world):
    """Where every row is refused, nothing is scored or logged, and each row says why."""
    before = world.triton.rows, len(lines(world.settings))
    answer = world.http.post(EACH, json={"rows": [{}, 3, {"age": "old"}]})
    assert answer.status_code == 200
    assert [row["status"] for row in answer.json()["rows"]] == [422] * 3
    assert answer.json()["refused"] == 3
    assert (world.triton.rows, len(lines(world.settings))) == before


def test_an_id_of_another_row_is_a_conflict_in_its_place(world):
    """A row under an id that was answered before, or stands in the request before, with other features is a 409.

    Repetitions of the row that has the id get its answer.
    """
    rows = named(2, "clash")
    first = world.http.post(PREDICT, json={"rows": rows[:1]}).json()["rows"][0]
    other = {**rows[0], "age": rows[0]["age"] + 1}
    twin = {**rows[1], "age": rows[1]["age"] + 1}
    found = world.http.post(EACH, json={"rows": [other, rows[1], rows[0], twin, rows[1]]}).json()
    assert [row.get("status", 200) for row in found["rows"]] == [409, 200, 200, 409, 200]
    assert found["rows"][0]["field"] == "prediction_id"
    assert found["rows"][2] == first
    assert found["rows"][1] == found["rows"][4]
    assert sorted(one for one in ids(world.settings) if one.startswith("clash")) == ["clash-0", "clash-1"]


def test_a_row_that_loses_a_race_is_a_conflict_in_its_place(world, monkeypatch):
    """An id that somebody else logs with another row, after it was looked for, costs that row only."""
    rows = named(2, "race")
    world.http.post(PREDICT, json={"rows": rows[:1]})
    real, calls = predict._found, []

    async def late(case, size, asked):
        calls.append(size)
        return {} if len(calls) == 1 else await real(case, size, asked)

    monkeypatch.setattr(predict, "_found", late)
    found = world.http.post(EACH, json={"rows": [{**rows[0], "age": rows[0]["age"] + 1}, rows[1]]}).json()
    assert len(calls) == 2
    assert [row.get("status", 200) for row in found["rows"]] == [409, 200]
    assert sorted(one for one in ids(world.settings) if one.startswith("race")) == ["race-0", "race-1"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"rows": [{"age": }]}', 400),
        (b'{"rows": []}', 422),
        (b'{"rows": [{}], "more": 1}', 422),
        (b'{"lines": [{}]}', 422),
        (b'{"rows": [' + b"{}," * 10_000 + b"{}]}", 422),
    ],
)
def test_a_body_that_is_no_list_of_rows_is_refused_as_a_whole(world, body, status):
    """What is wrong beside the rows refuses all of them, and so does what breaks off behind them."""
    answers = [world.http.post(where, content=body) for where in (EACH, PREDICT)]
    assert [answer.status_code for answer in answers] == [status, status]
    assert "rows" not in answers[0].json()
    assert world.http.post(EACH, content=b'{"rows": [{}], "rows"').status_code == 400


def test_the_parameter_is_true_or_false(world):
    """Another value is a clear refusal; other parameters are passed over, as ever."""
    answer = world.http.post(f"{PREDICT}?partial=maybe", json={"rows": some_rows(1)})
    assert (answer.status_code, "partial" in answer.json()["error"]) == (422, True)
    assert world.http.post(f"{PREDICT}?other=1", json={"rows": some_rows(1)}).status_code == 200


def broken(row: dict, rng: random.Random) -> dict:
    """A row with something wrong, or with nothing."""
    field = rng.choice(list(row))
    change = rng.choice(["keep", "keep", "drop", "null", "text", "number", "list", "nan", "more", "time", "id"])
    changes = {
        "null": {field: None},
        "text": {field: 'quote " comma , bracket ] brace }'},
        "number": {field: 1e300},
        "list": {field: [[{}], "a,b"]},
        "nan": {field: float("nan")},
        "more": {"unknown": {"deep": [1, 2, {"x": "]"}]}},
        "time": {"event_time": rng.choice(["yesterday", "1850-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])},
        "id": {"prediction_id": "not an id"},
    }
    if change == "drop":
        return {name: value for name, value in row.items() if name != field}
    return row | changes.get(change, {})


@pytest.mark.parametrize("seed", range(4))
def test_a_row_gets_what_it_would_get_alone(world, seed):
    """Whatever stands beside a row, and however it is broken: status, words and field are those of the row alone."""
    rng = random.Random(seed)
    rows = [broken(row, rng) for row in some_rows(20)]
    sent = json.dumps({"rows": rows}, indent=rng.choice([None, 1]))
    found = world.http.post(EACH, content=sent)
    assert found.status_code == 200
    assert 0 < found.json()["refused"] < len(rows)
    for number, (row, one) in enumerate(zip(rows, found.json()["rows"], strict=True)):
        alone = world.http.post(PREDICT, content=json.dumps({"rows": [row]}))
        assert one.get("status", 200) == alone.status_code
        if "status" in one:
            assert one["error"] == alone.json()["error"].replace("row 0:", f"row {number}:")
            assert one.get("field") == alone.json().get("field")
        else:
            assert one["score"] == alone.json()["rows"][0]["score"]


def test_one_bad_row_of_ten_thousand(world):
    """The largest request there may be is answered but for its bad row."""
    rows = some_rows(1) * 10_000
    rows[4321] = {**rows[0], "age": 3}
    found = world.http.post(EACH, json={"rows": rows}).json()
    assert found["refused"] == 1
    assert [number for number, row in enumerate(found["rows"]) if "error" in row] == [4321]
