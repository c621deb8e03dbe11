"""pipelines/alerts/delivery.py: each notice once per sink, whoever tries and whatever fails."""

import multiprocessing
from datetime import timedelta

import pytest

from pipelines import ledger
from pipelines.alerts import delivery, sinks
from tests.pipelines.alerts.found import ALERTS, notice
from tests.pipelines.alerts.test_sinks import receiver


@pytest.fixture
def url(tmp_path) -> str:
    """A fresh ledger."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


def failing(times: int):
    """A sink that does not take its first ``times`` notices, and the list of those that it was asked to take."""
    asked = []

    def sink(one):
        asked.append(one.id)
        if len(asked) <= times:
            raise sinks.Undelivered("it is away")

    return sink, asked


def events(url: str) -> list[tuple[str, int, str]]:
    """Sink, attempt and event of every row."""
    return [(row["sink"], row["attempt"], row["event"]) for row in ledger.deliveries(url, "loans")]


def test_what_is_delivered_is_not_sent_again(url):
    """Running again sends nothing that a sink has taken."""
    sink, asked = failing(0)
    for _ in range(3):
        delivery.deliver(url, "loans", [notice()], [], {"webhook": sink}, "info")
    assert asked == ["n1"]
    assert events(url) == [("webhook", 1, "claimed"), ("webhook", 1, "delivered")]
    assert ledger.undelivered(url, "loans") == {}


def test_what_failed_is_sent_by_the_next_run(url):
    """A notice that a sink did not take is tried again by later runs.

    Meanwhile the sink counts as broken, and other sinks get theirs.
    """
    webhook, asked = failing(2)
    log, logged = failing(0)
    both = {"log": log, "webhook": webhook}
    delivery.deliver(url, "loans", [notice()], [], both, "info")
    assert ledger.undelivered(url, "loans") == {"webhook": 1}
    delivery.deliver(url, "loans", [notice("n2")], [notice()], both, "info")
    assert ledger.undelivered(url, "loans") == {}
    delivery.deliver(url, "loans", [], [notice(), notice("n2")], both, "info")
    assert asked == ["n1", "n1", "n2", "n1"]
    assert logged == ["n1", "n2"]


def test_a_sink_is_given_up_on(url):
    """After the last attempt a notice is left alone; the sink stays broken until it takes another."""
    sink, asked = failing(delivery.MAX_ATTEMPTS)
    for _ in range(delivery.MAX_ATTEMPTS + 3):
        delivery.deliver(url, "loans", [], [notice()], {"webhook": sink}, "info")
    assert asked == []  # an old notice that this sink was never asked to take is none of its business
    for _ in range(delivery.MAX_ATTEMPTS + 3):
        delivery.deliver(url, "loans", [notice()], [], {"webhook": sink}, "info")
    assert len(asked) == delivery.MAX_ATTEMPTS
    assert ledger.undelivered(url, "loans") == {"webhook": 1}
    delivery.deliver(url, "loans", [notice("n2")], [notice()], {"webhook": sink}, "info")
    assert ledger.undelivered(url, "loans") == {}


def test_a_sink_with_a_fault_stops_nobody(url):
    """An error that no sink should raise is a failed attempt, kept by its kind alone: its words may hold a secret."""

    def broken(_):
        raise KeyError("https://hooks/secret")

    sink, asked = failing(0)
    delivery.deliver(url, "loans", [notice()], [], {"webhook": broken, "mail": sink}, "info")
    assert asked == ["n1"]
    assert [row["detail"] for row in ledger.deliveries(url, "loans") if row["event"] == "failed"] == ["KeyError"]


def test_a_claim_that_was_left_behind_expires(url, monkeypatch):
    """While somebody has claimed a notice nobody else sends it.

    A claim without an answer expires, and the notice is sent then.
    """
    sink, asked = failing(0)
    ledger.note_delivery(url, case="loans", notice="n1", sink="webhook", attempt=1, event="claimed")
    delivery.deliver(url, "loans", [notice()], [], {"webhook": sink}, "info")
    assert asked == []
    now = delivery.wall_time()
    monkeypatch.setattr(delivery, "wall_time", lambda: now + delivery.LEASE + timedelta(seconds=1))
    delivery.deliver(url, "loans", [notice()], [], {"webhook": sink}, "info")
    assert asked == ["n1"]


def test_little_is_pushed_to_nobody(url):
    """The log takes notices of every severity, the other sinks those that the case pushes."""
    log, logged = failing(0)
    sink, asked = failing(0)
    given = [notice(severity, severity=severity) for severity in ("info", "warning", "critical")]
    delivery.deliver(url, "loans", given, [], {"log": log, "webhook": sink}, "warning")
    assert (logged, asked) == (["info", "warning", "critical"], ["warning", "critical"])


def _race(url: str, hook: str, barrier) -> None:
    barrier.wait(60)
    delivery.deliver(
        url, "loans", [notice(), notice("n2", "resolved")], [], {"webhook": sinks.webhook(hook, ALERTS)}, "info"
    )


def test_racing_runs_deliver_once(url, monkeypatch):
    """Of four processes that send the same two notices to a real server at once, each notice arrives exactly once."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ledger.deliveries(url, "loans")
    context = multiprocessing.get_context(
        "spawn"
    )  # gRPC, which other tests use in this process, does not survive a fork
    barrier = context.Barrier(4)
    with receiver(200) as (hook, bodies):
        racers = [context.Process(target=_race, args=(url, hook, barrier)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert sorted(body["text"].partition(" ")[0] for _, body in bodies) == ["*CRITICAL*", "*RESOLVED*"]
    assert sorted(events(url)) == [("webhook", 1, "claimed")] * 2 + [("webhook", 1, "delivered")] * 2
