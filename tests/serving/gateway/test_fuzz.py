"""Requests that no client would send on purpose: never a 5xx, never a row in the log that was not accepted."""

from __future__ import annotations

import json

import numpy as np

from tests.serving.gateway.world import LABELS, PREDICT, lines, some_rows

REQUESTS = 2400
SNIPPETS = (
    b"\xff", b"\x00", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"-0", b"null", b"true",
    b'""', b"{}", b"[]", b"[[",
    b"}", b'"', b",", b":", b"9" * 400, b'{"a":' * 50, b"\xef\xbb\xbf", b'"prediction_id":"x"',
    b'"event_time":"2024-02-30T00:00:00Z"', b"1.5",
)  # fmt: skip


def good(rng, number):
    """A valid body as an object, its path, and the name of its list."""
    if number % 4 == 3:
        labels = [
            {"prediction_id": f"f{rng.integers(50)}", "label": int(rng.integers(2)), "revision": int(rng.integers(3))}
            for _ in range(2)
        ]
        return LABELS, "labels", labels
    rows = some_rows(1 + number % 3, 1 + number % 28)
    if number % 3 == 0:
        rows = [
            {**row, "prediction_id": f"f{number}-{position}", "event_time": "2024-03-01T00:00:00Z"}
            for position, row in enumerate(rows)
        ]
    return PREDICT, "rows", rows


def change_values(rng, items):
    """Damage that leaves most of the JSON whole: a value replaced, a key removed or renamed, an item replaced."""
    item = items[int(rng.integers(len(items)))]
    key = list(item)[int(rng.integers(len(item)))]
    kind = rng.integers(8)
    if kind == 0:
        del item[key]
    elif kind == 1:
        item[key + "x"] = item.pop(key)
    elif kind == 2:
        items[0] = "@@"
    elif kind > 3:
        item[key] = "@@"
    return json.dumps(items).encode().replace(b'"@@"', SNIPPETS[int(rng.integers(len(SNIPPETS)))])


def change_bytes(rng, body):
    """A few random edits: flips, cuts, repeats, and snippets put in."""
    data = bytearray(body)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(data) + 1))
        kind = rng.integers(5)
        if kind == 0 and at < len(data):
            data[at] = int(rng.integers(256))
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 30))]
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 60))]
        elif kind == 3:
            data[at:at] = SNIPPETS[int(rng.integers(len(SNIPPETS)))]
        else:
            del data[at + int(rng.integers(200)) :]
    return bytes(data)


def form_is_right(body, name):
    """Whether a body is JSON of the form ``{name: [something, ...]}``."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        return False
    once = body.count(b'"%s"' % name.encode()) == 1
    return (
        once
        and isinstance(value, dict)
        and list(value) == [name]
        and isinstance(value[name], list)
        and bool(value[name])
    )


def test_mutated_requests_are_answered_below_500_and_logged_exactly(world):
    """2,400 randomly damaged requests (fixed seed): each a 200 or a 4xx with a JSON error that names what is wrong.

    The rows of the 200s are the rows of the log.
    """
    rng = np.random.default_rng(20240501)
    statuses: dict[int, int] = {}
    answered: set[str] = set()
    accepted = 0
    for number in range(REQUESTS):
        path, name, items = good(rng, number)
        whole = json.dumps({name: items}).encode()
        body = change_bytes(rng, whole) if number % 2 else b'{"%s": %s}' % (name.encode(), change_values(rng, items))
        headers = {
            "Content-Type": ("application/json", "text/plain", "application/x-www-form-urlencoded", "")[number % 4]
        }
        answer = world.http.post(path, content=body, headers=headers)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (body, answer.text)
        said = answer.json()
        if answer.status_code == 422:
            # The two readers of a declaration agree: what one turns away, the other can explain.
            assert "row" in said or not form_is_right(body, name), (body, said)
        elif answer.status_code != 200:
            assert said["error"]
        elif path == PREDICT:
            answered |= {row["prediction_id"] for row in said["rows"]}
        else:
            accepted += said["accepted"]
    assert min(statuses.get(status, 0) for status in (200, 400, 422)) > REQUESTS // 20, statuses
    logged = [line["prediction_id"] for line in lines(world.settings)]
    assert sorted(logged) == sorted(answered)
    assert len(lines(world.settings, "labels")) == accepted
