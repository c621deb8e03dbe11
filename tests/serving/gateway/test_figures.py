"""Business figures of predictions: what is logged, and what is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.data import units
from pipelines.data.units import Asked
from tests.serving.gateway.world import (
    FIGURES,
    PREDICT,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    roll_out,
    some_rows,
    until,
)

GOOD = {"prediction_id": "a", "name": "revenue", "value": 12.5}
SECRET = "s3cret-value"


def test_figures_are_logged_as_posted(world):
    """Each is a line with its name, value and revision; the stated time is kept in UTC, else it is that of receipt."""
    late = {**GOOD, "value": -3, "revision": 2, "event_time": "2024-03-01T12:00:00+02:00"}
    answer = world.http.post(FIGURES, json={"figures": [GOOD, late]})
    assert (answer.status_code, answer.json()) == (200, {"accepted": 2})
    first, second = lines(world.settings, "figures")[-2:]
    received = first["received_at"]
    assert first == {**GOOD, "revision": 0, "event_time": received, "received_at": received}
    assert abs((datetime.now(UTC) - datetime.fromisoformat(received)).total_seconds()) < 60
    assert second == {**late, "event_time": "2024-03-01T10:00:00+00:00", "received_at": received}
    assert counted(world.http, "figures_total", case="loans") == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", f"{SECRET} 1"),
        ("name", "1st"),
        ("name", "x" * 65),
        ("name", "revenue\n"),
        ("name", 7),
        ("value", SECRET),
        ("value", None),
        ("value", True),
        ("value", float("nan")),
        ("value", 1e300),
        ("revision", -1),
        ("revision", 2**31 - 1),
        ("prediction_id", "two words"),
        ("prediction_id", "a\n"),
        ("event_time", "2024-05-01T12:00:00"),
        (SECRET, 1),
    ],
)
def test_a_bad_figure_names_field_and_row_and_is_not_echoed(world, field, value):
    """One bad value refuses the request with 422, repeats nothing of it, and nothing of it is logged."""
    logged = len(lines(world.settings, "figures"))
    answer = world.http.post(FIGURES, content=json.dumps({"figures": [GOOD, {**GOOD, field: value}]}))
    assert (answer.status_code, answer.json()["row"], answer.json()["field"]) == (422, 1, field)
    assert field == SECRET or SECRET not in answer.text
    assert len(lines(world.settings, "figures")) == logged


def test_what_is_no_list_of_figures_is_refused(world):
    """No figures, too many, another list and a missing name are 422 with what to send; what is no JSON is 400."""
    for content, status, word in (
        (b'{"figures": []}', 422, "at least one"),
        (b'{"labels": [{}]}', 422, "figures"),
        (b'{"figures": [{"prediction_id": "a", "value": 1}]}', 422, "name: missing"),
        (b'{"figures": [', 400, "JSON"),
        (json.dumps({"figures": [GOOD] * 10_001}).encode(), 422, "10001"),
    ):
        answer = world.http.post(FIGURES, content=content)
        assert (answer.status_code, word in answer.json()["error"]) == (status, True), answer.text
    assert world.http.post(FIGURES, json={"figures": [GOOD]}, headers={"X-API-Key": "wrong"}).status_code == 401


def test_units_are_read_from_what_a_gateway_wrote(tmp_path):
    """Each unit is of the arm that its answer named, with the figure that was posted for it, once both are closed.

    By a declared key rows of one value are one unit.
    """
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        before = datetime.now(UTC) - 2 * units.SETTLING
        roll_out(settings, 2, key="zipcode")
        with client(settings) as http:
            rows = [{**row, "prediction_id": f"p{number}"} for number, row in enumerate(some_rows(40))]
            until(lambda: http.post(PREDICT, json={"rows": some_rows(1)}).json()["rows"][0].get("arm"))
            answers = http.post(PREDICT, json={"rows": rows}).json()["rows"]
            posted = [{"prediction_id": f"p{number}", "name": "revenue", "value": number} for number in range(0, 40, 2)]
            assert http.post(FIGURES, json={"figures": posted}).status_code == 200
        horizon = timedelta(microseconds=1)
        now = datetime.now(UTC)
        asked = Asked([(before, 5000)], None, "revenue", timedelta(seconds=30), "sum")
        found = {
            row["unit"]: row for row in units.read(settings, "loans", asked, now + timedelta(minutes=1)).to_dicts()
        }
        mine = {f"p{number}": found[f"id p{number}"] for number in range(40)}
        assert {name: row["arm"] for name, row in mine.items()} == {
            answer["prediction_id"]: answer["arm"] for answer in answers
        }
        assert len({row["arm"] for row in mine.values()}) == 2
        assert [row["value"] for row in mine.values()] == [number if number % 2 == 0 else 0 for number in range(40)]
        by_key = Asked([(before, 5000)], "zipcode", "revenue", horizon, "sum")
        keys = set(units.read(settings, "loans", by_key, now)["unit"])
        assert {f"key {row['zipcode']}" for row in rows} <= keys
