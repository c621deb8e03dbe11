"""What a gateway must bear: damaged requests, requests drawn from its own OpenAPI document, long bodies.

And connections that only hold on.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Json = dict[str, Any]
HOST = "127.0.0.1"
SNIPPETS = (
    b"\xff", b"\x00", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"-0", b"null", b"true", b'""',
    b"{}", b"[]", b"[[", b"}", b'"', b",",
    b":", b"\r\n", b"\n", b"9" * 400, b'{"a":' * 50, b"\xef\xbb\xbf", b'"event_time":"2024-02-30T00:00:00Z"', b"1.5",
    b"%00", b"../", b" " * 70_000,
)  # fmt: skip
HEADERS = (
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", (
        b"Transfer-Encoding: "
        b"chunked"
    ), b"Transfer-Encoding: gzip, chunked",
    b"Host: evil.example", b"Host:", b"Origin: null", b"Origin: http://evil.example", b"Expect: 100-continue",
    b"Upgrade: websocket", b"X-API-Key:",
    b"Content-Encoding: gzip", b"Content-Type: multipart/form-data; boundary=x", (
        b"Accept-Encoding: "
        b"\xff"
    ), b"Connection: keep-alive", b" folded: x", b"no colon",
    b"Cookie: " + b"a=b;" * 4_000, b"Range: bytes=0-1,5-1", b"X-Forwarded-For: " + b"1.1.1.1," * 50,
)  # fmt: skip
METHODS = (b"GET", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"TRACE", b"PATCH", b"CONNECT", b"POST" * 30, b"")


def request(path: str, body: bytes | None = None, key: str = "", headers: Sequence[bytes] = ()) -> bytes:
    """A whole request, GET without a body and POST with one, after whose answer the connection ends."""
    lines = [
        b"%s %s HTTP/1.1" % (b"GET" if body is None else b"POST", path.encode()),
        b"Host: " + HOST.encode(),
        b"Connection: close",
    ]
    if key:
        lines.append(b"X-API-Key: " + key.encode())
    if body is not None:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body or b""])


def mutated(drawn: random.Random, path: str, name: str, items: Sequence[Json], key: str) -> bytes:
    """A request for ``items`` with damage.

    To their values, to the body's bytes, to the head's lines, or to any byte.
    """
    kind = drawn.randrange(4)
    if kind == 0:
        return request(path, b'{"%s": %s}' % (name.encode(), _other_values(drawn, items)), key)
    body = json.dumps({name: items}).encode()
    if kind == 1:
        return request(path, _edited(drawn, body), key)
    if kind == 2:
        return _other_head(drawn, request(path, body, key))
    return _edited(drawn, request(path, body, key))


def _other_values(drawn: random.Random, items: Sequence[Json]) -> bytes:
    changed: list[Any] = [dict(item) for item in items]
    item = drawn.choice(changed)
    key = drawn.choice(list(item))
    kind = drawn.randrange(6)
    if kind == 0:
        del item[key]
    elif kind == 1:
        item[key + "x"] = item.pop(key)
    elif kind == 2:
        changed[0] = "@@"
    else:
        item[key] = "@@"
    return json.dumps(changed).encode().replace(b'"@@"', drawn.choice(SNIPPETS))


def _edited(drawn: random.Random, data: bytes) -> bytes:
    """A few edits: bytes changed, cut out, repeated, put in, or all that follows cut off."""
    edited = bytearray(data)
    for _ in range(drawn.randint(1, 3)):
        at = drawn.randrange(len(edited) + 1)
        kind = drawn.randrange(5)
        if kind == 0:
            edited[at : at + 1] = drawn.randbytes(1)
        elif kind == 1:
            del edited[at : at + drawn.randint(1, 30)]
        elif kind == 2:
            edited[at:at] = edited[at : at + drawn.randint(1, 60)]
        elif kind == 3:
            edited[at:at] = drawn.choice(SNIPPETS)
        else:
            del edited[at + drawn.randrange(200) :]
    return bytes(edited)


def _other_head(drawn: random.Random, whole: bytes) -> bytes:
    head, _, body = whole.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    kind = drawn.randrange(5)
    if kind == 0:
        lines[0] = lines[0].replace(b"POST", drawn.choice(METHODS), 1)
    elif kind == 1:
        lines[0] = lines[0].replace(
            b"/v1",
            drawn.choice((b"", b"*", b"http://evil.example/v1", b"/v1/../v1", b"/v1/%2e%2e", b"/v1?" + b"a" * 9_000)),
            1,
        )
    elif kind == 2:
        lines[0] = lines[0].replace(
            b"HTTP/1.1", drawn.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"HTTP/1.1 x"))
        )
    elif kind == 3:
        del lines[drawn.randrange(1, len(lines))]
    else:
        lines.insert(drawn.randrange(1, len(lines) + 1), drawn.choice(HEADERS))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def described(document: Json, paths: Sequence[str], count: int, start: int) -> list[tuple[str, Any]]:
    """``count`` bodies, with their paths, drawn from an OpenAPI document; about half are then changed in one place."""
    operations = [(path, schema_of(document, path)) for path in paths]
    found: list[tuple[str, Any]] = []
    one = st.one_of([st.tuples(st.just(path), _of(schema) | _changed(_of(schema))) for path, schema in operations])
    quiet = settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    while len(found) < count:

        @seed(start + len(found))
        @quiet
        @given(one)
        def draw(drawn: tuple[str, Any]) -> None:
            found.append(drawn)

        draw()
    return found[:count]


def schema_of(document: Json, path: str) -> Json:
    """The schema of the body that a path takes."""
    found: Json = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return found


def _of(schema: Json) -> st.SearchStrategy[Any]:
    """Values of a schema, as far as the gateway's document uses the language."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    low = schema.get("minimum")
    high = schema.get("maximum")
    if kind == "object":
        wanted = schema.get("required", ())
        parts = {name: _of(part) for name, part in schema["properties"].items()}
        return st.fixed_dictionaries(
            {name: parts[name] for name in wanted}, optional={name: parts[name] for name in parts if name not in wanted}
        )
    if kind == "array":
        return st.lists(_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=min(4, schema["maxItems"]))
    if kind == "integer":
        return st.integers(low, high)
    if kind == "number":
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if schema.get("format") == "date-time":
        first = datetime(2015, 1, 1)  # noqa: DTZ001 - hypothesis adds the zone
        last = datetime(2030, 1, 1)  # noqa: DTZ001 - as above
        times = st.datetimes(first, last, timezones=st.just(UTC))
        return times.map(datetime.isoformat)
    if "pattern" in schema:
        return st.from_regex(re.compile(schema["pattern"], re.ASCII), fullmatch=True)
    return st.text(min_size=schema.get("minLength", 0), max_size=min(400, schema.get("maxLength", 400)))


_LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40)
)
_ANYTHING = _LEAF | st.lists(_LEAF, max_size=3) | st.dictionaries(st.text(max_size=8), _LEAF, max_size=3)


@st.composite
def _changed(draw: st.DrawFn, whole: st.SearchStrategy[Any]) -> Any:
    """One value of a body replaced by anything, or a key added to one of its objects or taken away."""
    body = draw(whole)
    holder, key = draw(st.sampled_from(list(_places(body))))
    if isinstance(holder, dict) and draw(st.booleans()):
        holder.pop(key)
        if draw(st.booleans()):
            holder[draw(st.text(max_size=20))] = draw(_ANYTHING)
    else:
        holder[key] = draw(_ANYTHING)
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for key, part in inner:
        yield value, key
        yield from _places(part)


def long_bodies(path: str, key: str, rows: Sequence[Json], size: int) -> list[bytes]:
    """Requests of about ``size`` bytes: empty items, nested ones, a broken end.

    And as many good ``rows`` as there are, with and without ids.
    """
    nested = b'{"age":{"a":[' + b"{}," * 10_000 + b"{}]}},"
    bad = [b'{"rows":[' + (piece * (size // len(piece))).rstrip(b",") + b"]}" for piece in (b"{},", b"0,", nested)]
    own = [{**row, "prediction_id": f"long-{random.randrange(2**60)}-{number}"} for number, row in enumerate(rows)]
    good = [json.dumps({"rows": chosen}).encode() for chosen in (rows, own)]
    return [request(path, body, key) for body in (*bad, good[0][:-40], *good)]


def holding(path: str, key: str) -> dict[str, tuple[bytes, bytes]]:
    """Connections that do not come to an end, by name: what is sent first, and what is sent again and again."""
    head = request(path, b"", key).removesuffix(b"Content-Length: 0\r\n\r\n")
    return {
        "silent": (b"", b""),
        "empty lines": (b"", b"\r\n"),
        "a head without an end": (head, b"x-a: b\r\n"),
        "no body": (head + b"Content-Length: 100\r\n\r\n", b""),
        "a body byte by byte": (head + b"Content-Length: 100000\r\n\r\n", b"x"),
        "chunks without an end": (head + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "a body without a key": (request(path, b"", "").replace(b"Content-Length: 0", b"Content-Length: 100000"), b"x"),
        "a held body of 1.5 MB": (head + b"Content-Length: 7500000\r\n\r\n" + b" " * 1_500_000, b" " * 100),
        "answers that nobody reads": (
            b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 8,
            b"",
        ),
        "a second head without an end": (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /healthz", b"x"),
    }
