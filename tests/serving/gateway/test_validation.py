"""What the gateway turns away, and how."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress

import httpx
import pytest

from pipelines.errors import ConfigError
from pipelines.fields import Categorical, Fields, Numeric
from pipelines.settings import Settings
from serving.gateway.protections import Door
from serving.gateway.refusal import Refused
from serving.gateway.rows import read, row_shape
from serving.gateway.settings import Bounds
from tests.serving.gateway.world import (
    FIELDS,
    LABELS,
    PREDICT,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
)

GOOD = some_rows(1)[0]
SECRET = "s3cret-value"

BAD_FIELDS = [
    ("age", SECRET, "type"),
    ("age", None, "type"),
    ("age", True, "type"),
    ("age", [SECRET], "type"),
    ("age", float("nan"), "not_finite"),
    ("age", float("inf"), "not_finite"),
    ("age", 1e308 * 10, "not_finite"),
    ("age", 10**400, "bounds"),
    ("age", 20.5, "not_whole"),
    ("age", 17, "bounds"),
    ("salary", -0.5, "bounds"),
    ("education", SECRET, "category"),
    ("education", "\ud800" + SECRET, "category"),
    ("education", 7, "type"),
    ("education", {"a": SECRET}, "type"),
    ("prediction_id", "", "prediction_id"),
    ("prediction_id", f"{SECRET} with spaces", "prediction_id"),
    ("prediction_id", "x" * 129, "prediction_id"),
    ("prediction_id", 5, "prediction_id"),
    ("prediction_id", "a\n", "prediction_id"),
    ("event_time", "2024-05-01T12:00:00", "event_time"),
    ("event_time", SECRET, "event_time"),
    ("event_time", 1714560000, "event_time"),
    ("event_time", "0001-01-01T00:00:00+23:59", "event_time"),
    ("event_time", "9999-12-31T23:59:59-23:00", "event_time"),
    (SECRET, 1, "unknown_field"),
]


@pytest.mark.parametrize(("field", "value", "reason"), BAD_FIELDS)
def test_a_bad_value_names_field_and_row_and_is_not_echoed(world, field, value, reason):
    """One bad value refuses the request with 422, names its field and row, and is counted.

    It repeats nothing, and reaches neither model nor log.
    """
    scored, logged, before = (
        world.triton.rows,
        len(lines(world.settings)),
        counted(world.http, "refused_rows_total", reason=reason),
    )
    answer = world.http.post(PREDICT, content=json.dumps({"rows": [GOOD, {**GOOD, field: value}]}))
    assert answer.status_code == 422
    said = answer.json()
    assert said["row"] == 1
    assert said["field"] == field
    assert field in said["error"]
    if field != SECRET:
        assert SECRET not in answer.text
    assert world.triton.rows == scored
    assert len(lines(world.settings)) == logged
    assert counted(world.http, "refused_rows_total", reason=reason, case="loans") == before + 2


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (Numeric("expected_income", low=0), -1, "bounds"),
        (Numeric("expected_income", low=0), "much", "type"),
        (Categorical("delivery", ("expected", "late")), "lost", "category"),
    ],
)
def test_a_reason_hangs_on_no_name(field, value, reason):
    """What a field or a category is called leaves the reason of a refusal as it is.

    Also where the name is a word of a message.
    """
    shape = row_shape(Fields(case="made", label="y", fields=(field,)), 10)
    with pytest.raises(Refused) as refused:
        read(shape, json.dumps({"rows": [{field.name: value}]}).encode())
    assert (refused.value.reason, refused.value.field, refused.value.row) == (reason, field.name, 0)


def test_a_missing_field_is_named(world):
    """A row without a declared field is refused with the field's name."""
    row = {name: value for name, value in GOOD.items() if name != "zipcode"}
    answer = world.http.post(PREDICT, json={"rows": [row]})
    assert (answer.status_code, answer.json()["field"], answer.json()["row"]) == (422, "zipcode", 0)


BAD_BODIES = [
    (b"", 400),
    (b"\xff\xfe", 400),
    (b'{"rows": [{"education": "\xff"}]}', 400),
    (b"{", 400),
    (b"[" * 100_000, 400),
    (b'{"rows": ' * 50_000, 400),
    (b"[]", 422),
    (b"null", 422),
    (b"{}", 422),
    (b'{"rows": []}', 422),
    (b'{"rows": {}}', 422),
    (b'{"rows": [1]}', 422),
    (b'{"rows": [null]}', 422),
    (b'{"rows": [], "\\ud800": 1}', 422),
    (b'{"rows": [{"\\ud800": 1}]}', 422),
    (json.dumps({"rows": [GOOD], "extra": SECRET}).encode(), 422),
    (json.dumps({"rows": [GOOD]}).encode("utf-16"), 400),
    (b"\xef\xbb\xbf" + json.dumps({"rows": [GOOD]}).encode(), 400),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES)
@pytest.mark.parametrize("path", [PREDICT, LABELS])
def test_a_body_that_is_none_is_a_client_error(world, path, body, status):
    """Bytes that are no JSON are a 400, JSON of another form a 422, both with a JSON text that repeats nothing."""
    answer = world.http.post(path, content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == (422 if path == LABELS and status == 422 else status)
    assert answer.json()["error"]
    assert SECRET not in answer.text


BAD_LABELS = [
    ("label", 2),
    ("label", -1),
    ("label", True),
    ("label", 1.0),
    ("label", "1"),
    ("label", None),
    ("revision", -1),
    ("revision", 0.5),
    ("revision", 2**40),
    ("prediction_id", None),
    ("prediction_id", "a\n"),
    ("event_time", "2024-05-01"),
]


@pytest.mark.parametrize(("field", "value"), BAD_LABELS)
def test_a_bad_label_is_refused_whole(world, field, value):
    """One bad label refuses its request with 422, names field and row, and nothing of it is logged."""
    logged = len(lines(world.settings, "labels"))
    good = {"prediction_id": "a", "label": 1}
    answer = world.http.post(LABELS, json={"labels": [good, {**good, field: value}]})
    assert (answer.status_code, answer.json()["field"], answer.json()["row"]) == (422, field, 1)
    assert len(lines(world.settings, "labels")) == logged


def test_labels_are_logged_as_posted(world):
    """Labels of known and unknown ids are accepted, with revision 0 and the time of receipt unless given."""
    labels = [
        {"prediction_id": "never-seen", "label": 1},
        {"prediction_id": "b", "label": 0, "revision": 3, "event_time": "2024-05-01T12:00:00+02:00"},
    ]
    answer = world.http.post(LABELS, json={"labels": labels})
    assert (answer.status_code, answer.json()) == (200, {"accepted": 2})
    first, second = lines(world.settings, "labels")[-2:]
    assert (first["prediction_id"], first["label"], first["revision"]) == ("never-seen", 1, 0)
    assert first["event_time"] == first["received_at"]
    assert (second["revision"], second["event_time"]) == (3, "2024-05-01T10:00:00+00:00")


def test_ten_megabytes_are_too_much(world):
    """A body of 10 MB is answered 413 with a clear text, and the connection's owner can read it."""
    answer = world.http.post(PREDICT, content=b"x" * 10_000_000)
    assert answer.status_code == 413
    assert "longer than" in answer.json()["error"]


def test_a_chunked_body_is_cut_off(tmp_path):
    """A body without a length is read no further than the limit."""
    sent = 0

    def endless():
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield b"x" * 10_000

    with client(make_home(tmp_path), max_body_bytes=100_000) as http:
        with suppress(httpx.TransportError):  # cut off while sending
            assert http.post(PREDICT, content=endless()).status_code == 413
        assert sent < 50_000_000
        assert counted(http, "requests_total", status="413") == 1


def test_too_many_rows_are_refused(tmp_path):
    """More rows than allowed are a 422 that says how many are allowed."""
    with client(make_home(tmp_path), max_rows=3) as http:
        answer = http.post(PREDICT, json={"rows": [GOOD] * 4})
        assert (answer.status_code, answer.json()["field"]) == (422, "rows")
        assert "at most 3" in answer.json()["error"]


@pytest.mark.parametrize("key", [None, "", "wrong", "a-key-for-test", "ä"])
@pytest.mark.parametrize("path", [PREDICT, LABELS])
def test_a_wrong_key_stays_outside(world, path, key):
    """Without the right key /v1 answers 401, before anything else is looked at."""
    headers = {} if key is None else {"X-API-Key": key.encode()}
    request = world.http.build_request("POST", path, content=b"\xff", headers=headers)
    if key is None:
        del request.headers["X-API-Key"]
    answer = world.http.send(request)
    assert answer.status_code == 401
    assert "X-API-Key" in answer.json()["error"]


def test_a_hashed_key_lets_its_key_in(tmp_path):
    """The key file may hold the sha256 of a key instead of the key."""
    settings = make_home(tmp_path)
    (tmp_path / "api_key").write_text(f"sha256:{hashlib.sha256(b'other').hexdigest()}\n")
    with client(settings) as http:
        assert http.post(PREDICT, content=b"").status_code == 401
        assert http.post(PREDICT, content=b"", headers={"X-API-Key": "other"}).status_code == 400


def test_above_the_rate_a_caller_waits(tmp_path):
    """The third request of a minute is answered 429 where two are allowed."""
    with client(make_home(tmp_path), rate="2/minute") as http:
        assert [http.post(PREDICT, content=b"").status_code for _ in range(3)] == [400, 400, 429]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/cases/nothing/predict", 404),
        ("POST", "/v1/cases/%ff/labels", 404),
        ("GET", PREDICT, 405),
        ("PUT", LABELS, 405),
        ("GET", "/nothing", 404),
    ],
)
def test_a_wrong_address_is_a_client_error(world, method, path, status):
    """Unknown cases and paths are a 404, other methods a 405; always JSON, always counted."""
    before = counted(world.http, "requests_total", status=str(status))
    answer = world.http.request(method, path, content=b"{}")
    assert answer.status_code == status
    assert answer.json()["error"]
    assert counted(world.http, "requests_total", status=str(status)) == before + 1


def test_without_a_champion_the_answer_says_so(tmp_path):
    """Before the first promotion a prediction is a 503 that names the case and what to do.

    /readyz is 200 and lists the case.
    """
    with fake_triton() as (_, port), client(make_home(tmp_path, port)) as http:
        answer = http.post(PREDICT, json={"rows": [GOOD]})
        assert answer.status_code == 503
        assert "loans has no champion yet" in answer.json()["error"]
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["cases"]) == (200, {})
        assert "loans" in ready.json()["without_champion"]
        assert http.get("/healthz").status_code == 200


def test_a_good_request_is_answered_in_order_and_logged(world):
    """Every row of an answer carries id, version, score and prediction as they stand in the log.

    The log has its raw features.
    """
    rows = some_rows(7)
    answer = world.http.post(PREDICT, json={"rows": rows})
    assert answer.status_code == 200
    said = answer.json()
    logged = {line["prediction_id"]: line for line in lines(world.settings) if line["request_id"] == said["request_id"]}
    assert len(logged) == len(said["rows"]) == 7
    for row, found in zip(rows, said["rows"], strict=True):
        line = logged[found["prediction_id"]]
        assert line["row"] == row
        assert list(line) == [
            "prediction_id",
            "request_id",
            "event_time",
            "received_at",
            "version",
            "score",
            "prediction",
            "row",
        ]
        assert list(line["row"]) == list(FIELDS.names)
        assert {name: line[name] for name in found} == found
        assert found["prediction"] == int(found["score"] >= 0.5)


def test_no_key_file_is_a_clear_error(tmp_path):
    """Without a key the gateway does not start, and says which file it wants."""
    with pytest.raises(ConfigError, match="api_key"):
        Door(Bounds(), Settings(home=tmp_path).key_file)
    (tmp_path / "api_key").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        Door(Bounds(), Settings(home=tmp_path).key_file)
    assert Door(Bounds(auth=False), Settings(home=tmp_path).key_file)


def test_large_batches_are_split(tmp_path):
    """2,500 rows in one request reach Triton in pieces of at most 1,024 and come back in their order."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path, port)
        release(settings, 1)
        with client(settings) as http:
            rows = some_rows(2500)
            whole = http.post(PREDICT, json={"rows": rows}).json()["rows"]
            assert sorted(size for size in triton.sizes if size > 1) == [452, 1024, 1024]
            last = http.post(PREDICT, json={"rows": rows[-3:]}).json()["rows"]
            assert [row["score"] for row in last] == [row["score"] for row in whole[-3:]]


@pytest.mark.parametrize("moment", ["1900-01-01T00:00:00Z", "2199-12-31T23:59:59Z"])
def test_a_time_that_is_years_away_is_refused(world, moment):
    """A live case takes no row and no label whose event time lies years from now.

    The answer names row, field and parameter.
    """
    rows, labels = (
        [{**some_rows(1)[0], "event_time": moment}],
        [{"prediction_id": "a", "label": 1, "event_time": moment}],
    )
    for path, body in (
        (PREDICT, {"rows": some_rows(1) + rows}),
        (LABELS, {"labels": [{"prediction_id": "b", "label": 1}, *labels]}),
    ):
        answer = world.http.post(path, json=body)
        assert (answer.status_code, answer.json()["field"], answer.json()["row"]) == (422, "event_time", 1)
        assert "event_times.max_" in answer.json()["error"]


def test_a_revision_that_nothing_could_correct_is_refused(world):
    """A revision is at most the present time in seconds: so a label that was taken can be corrected a second later."""
    labels = [{"prediction_id": "high", "label": 1, "revision": 2**31 - 1}]
    answer = world.http.post(LABELS, json={"labels": labels})
    assert (answer.status_code, answer.json()["field"], answer.json()["row"]) == (422, "revision", 0)
    assert world.http.post(LABELS, json={"labels": [{**labels[0], "revision": int(time.time())}]}).status_code == 200
