"""The rate limit of several workers: one count in a real Redis, a count each where there is none."""

import asyncio
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from embedded.ports import HOST, Ports
from pipelines.errors import ConfigError
from serving.gateway import protections
from serving.gateway.protections import Door
from serving.gateway.refusal import Refused
from serving.gateway.settings import Bounds

RATE = 20
EACH = 30
DAY = 86_400


@pytest.fixture(scope="module")
def redis_url():
    """A real Redis with a password; skipped only where the server is not installed (`apt-get install redis-server`)."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    import redis

    port = Ports.free().redis
    argv = [
        "redis-server",
        "--bind",
        HOST,
        "--port",
        str(port),
        "--requirepass",
        "word",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            url = f"redis://:word@{HOST}:{port}/1"
            deadline = time.monotonic() + 20
            while True:
                try:
                    redis.Redis.from_url(url).ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def worker(tmp_path, url):
    """What a worker does with many requests of one client: True for each that it lets in."""
    door = Door(Bounds(rate=f"{RATE}/day"), tmp_path / "key", None if url is None else SecretStr(url))

    async def come():
        try:
            await door.admit("k", HOST)
        except Refused as refused:
            return refused.status != 429
        return True

    async def all_of_them():
        return [await come() for _ in range(EACH)]

    return asyncio.run(all_of_them())


def let_in(tmp_path, url):
    """How many two workers, each with an event loop of its own, let in together."""
    (tmp_path / "key").write_text("k")
    with ThreadPoolExecutor(2) as pool:
        return sum(sum(answers) for answers in pool.map(lambda _: worker(tmp_path, url), range(2)))


def test_two_workers_share_one_limit(tmp_path, redis_url, monkeypatch):
    """Of sixty requests at two workers exactly as many come in as the rate allows one client."""
    monkeypatch.setattr(protections, "_WAIT_SECONDS", 10.0)  # a busy machine may be late
    assert let_in(tmp_path, redis_url) == RATE


def test_without_an_answer_each_worker_counts(tmp_path, redis_url):
    """Where Redis is away, refuses the password or is not set, nobody fails.

    Each worker lets in what the rate allows.
    """
    for url in (f"redis://:word@{HOST}:1/1", redis_url.replace(":word@", ":wrong@"), None):
        assert let_in(tmp_path, url) == 2 * RATE


def test_what_is_no_redis_names_the_setting(tmp_path):
    """An address that cannot be one stops the worker at its start, with the setting's name."""
    with pytest.raises(ConfigError, match="PERENNIAL_LIMITS_URL cannot be used"):
        let_in(tmp_path, "http://somewhere")


def refusals(door, *requests):
    """The statuses of requests, ``(caller, rows)``, one after the other; None for those that are let in."""

    async def one(caller, count):
        try:
            with door.place("loans", await door.admit(caller, HOST)) as place:
                await place.rows(count)
        except Refused as refused:
            return refused.status
        return None

    async def every():
        return [await one(*request) for request in requests]

    return asyncio.run(every())


@pytest.mark.parametrize("shared", [False, True])
def test_a_rate_counts_rows(tmp_path, request, monkeypatch, shared):
    """A request uses up as much of the rate as it has rows; what is refused for its rows leaves the others theirs."""
    monkeypatch.setattr(protections, "_WAIT_SECONDS", 10.0)
    url = SecretStr(request.getfixturevalue("redis_url")) if shared else None
    (tmp_path / "key").write_text("a\nb\n")
    door = Door(Bounds(rate="20/day"), tmp_path / "key", url)

    asked = (("a", 12), ("a", 9), ("a", 7), ("b", 20), ("a", 1), ("b", 1))
    assert refusals(door, *asked) == [None, 429, None, None, 429, 429]


def test_a_count_of_one_caller_leaves_the_others_alone(tmp_path, monkeypatch):
    """To count a request starts no task, and looks at no other caller's count until their windows may be over."""
    door = Door(Bounds(rate=f"{RATE}/minute", auth=False), tmp_path / "key")
    counts = door._limiter.storage
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)

    async def come(callers):
        tasks = asyncio.all_tasks()
        found = [await door.hit(caller, 1) for caller in callers]
        assert asyncio.all_tasks() == tasks
        return sum(found)

    assert asyncio.run(come([f"caller {number}" for number in range(1000)])) == 1000
    assert asyncio.run(come(["caller 7"] * 2 * RATE)) == RATE - 1
    assert len(counts.expirations) == len(counts.storage) == 1000
    clock += 61.0
    assert asyncio.run(come(["caller 7"] * 2 * RATE)) == RATE
    assert len(counts.expirations) == len(counts.storage) == 1


def test_a_clock_that_was_set_back_keeps_nobody_out(tmp_path, monkeypatch):
    """Who is above the rate as the clock is set back by two days is let in again at once, and no more than the rate."""
    door = Door(Bounds(auth=False, rate=f"{RATE}/day"), tmp_path / "key")
    assert refusals(door, ("c", RATE), ("c", 1)) == [None, 429]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 2 * DAY)
    assert refusals(door, ("c", RATE), ("c", 1)) == [None, 429]
    assert refusals(door, ("c", 1)) == [429]


def test_a_clock_of_redis_that_was_set_back_keeps_nobody_out(tmp_path, redis_url, monkeypatch):
    """A shared window that lasts longer than a window does is of a clock that was set back: it is counted anew."""
    import redis

    monkeypatch.setattr(protections, "_WAIT_SECONDS", 10.0)

    def door():
        return Door(Bounds(auth=False, rate=f"{RATE}/day"), tmp_path / "key", SecretStr(redis_url))

    assert refusals(door(), ("c", RATE), ("c", 1)) == [None, 429]
    kept = redis.Redis.from_url(redis_url)
    [key] = kept.keys(f"*{HOST}*")
    assert kept.ttl(key) <= DAY
    kept.expire(key, 3 * DAY)  # what is left of it where the server's clock is two days earlier
    assert refusals(door(), ("c", RATE), ("c", 1)) == [None, 429]
    assert kept.ttl(key) <= DAY


def test_more_rows_than_a_rate_lets_in_at_all_are_told_so(tmp_path):
    """Waiting does not help a request that is alone above the rate: it is told to be shorter, and uses up nothing."""
    door = Door(Bounds(auth=False, rate="20/day"), tmp_path / "key")

    async def run():
        with door.place("loans", "c") as place:
            await place.rows(21)

    with pytest.raises(Refused, match=r"21 rows are more than the rate of 20 per 1 day lets in at all") as refused:
        asyncio.run(run())
    assert (refused.value.status, refused.value.reason, refused.value.headers) == (422, "too_many", {})
    assert refusals(door, ("", 20)) == [None]
