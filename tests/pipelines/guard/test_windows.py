"""pipelines/guard/windows.py: lines of the gateway become windows, whoever wrote them first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipelines.data.traffic import _PAIRS
from pipelines.guard.windows import LATE, Loss, Trial, answered_since, seen

T0 = datetime(2026, 11, 30, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OF = Trial(1, 2, T0, 5 * MINUTE, [(T0, 500), (T0 + 11 * MINUTE, 10_000)])


def line(minute: float, arm: str, version: int, **outcomes: int):
    """Counts of ten seconds that end so many minutes after the opening."""
    end = T0 + minute * MINUTE
    begin = end - timedelta(seconds=10)
    counts = {"requests": 1, "outcomes": outcomes, "latency": {"7": 1}, "scores": {"3": outcomes.get("ok", 0)}}
    return {"begin": begin.isoformat(), "end": end.isoformat(), "arm": arm, "version": version, **counts}


def pair(minute: float, champion: float | None, challenger: float | None, arm: str = "champion", of: int = 2):
    """A row that both versions were asked."""
    moment = T0 + minute * MINUTE
    return {
        "prediction_id": f"p{minute}",
        "event_time": moment,
        "received_at": moment,
        "arm": arm,
        "champion": 1,
        "challenger": of,
        "champion_score": champion,
        "challenger_score": challenger,
        "ms": 1.0,
    }


def frame(*pairs) -> pl.DataFrame:
    """Pairs as the reader gives them."""
    return pl.DataFrame([{name: one.get(name) for name in _PAIRS} for one in pairs], schema=_PAIRS)


LINES = [
    line(1, "champion", 1, ok=90, refused=2),
    line(1, "challenger", 2, ok=4, fallback=1, timeout=2, error=3),
    line(5, "champion", 1, ok=10),
    line(5.5, "champion", 1, ok=7, late=9),
    line(6, "shadow", 2, ok=5, dropped=4),
    line(12, "champion", 2, ok=50),
    line(1, "champion", 9, ok=1),
]
PAIRS = frame(pair(0, 0.4, 0.6), pair(4.99, 0.1, 0.2), pair(5, None, 0.6), pair(6, 0.6, None), pair(7, 0.1, 0.9, of=3))


def test_what_counts_where():
    """A line counts where it ends, by its version, a pair by its receipt; rows of other rollouts and load do not."""
    first, second = seen(OF, LINES, PAIRS, [], T0 + 10 * MINUTE + LATE)
    assert (first.champion.answered, first.champion.refused, first.champion.latency) == (100, 2, {7: 2})
    assert (first.challenger.answered, first.challenger.failed, first.challenger.scores) == (4, 6, {3: 4})
    assert (second.champion.answered, second.champion.failed) == (7, 0)
    assert (first.mirrored.answered, first.mirrored.disagreed) == (2, 1)
    assert (second.mirrored.champion_failed, second.mirrored.challenger_failed, second.mirrored.dropped) == (1, 1, 4)
    assert answered_since(OF, LINES, PAIRS, T0) == 50 + 4 + 3
    assert seen(OF, LINES, PAIRS, [], T0 + 10 * MINUTE)[0] == first
    assert len(seen(OF, LINES, PAIRS, [], T0 + 10 * MINUTE)) == 1


def test_the_order_of_lines_does_not_matter():
    """Segments are read in any order: the windows are the same."""
    now = T0 + 16 * MINUTE
    assert seen(OF, LINES[::-1], PAIRS[::-1], [], now) == seen(OF, LINES, PAIRS, [], now)


def test_in_a_soak_the_new_champion_is_the_challenger():
    """What a version answers is its own, whatever arm it has become; the weight is that of the window's beginning."""
    *_, before, soak = seen(OF, [*LINES, line(16, "champion", 2, ok=60)], PAIRS, [], T0 + 21 * MINUTE)
    assert (before.weight, before.challenger.answered, before.champion.answered) == (500, 50, 0)
    assert (soak.weight, soak.challenger.answered, soak.champion.answered) == (10_000, 60, 0)


def test_losses_count_when_their_labels_do():
    """Of both, or of one arm alone, in the order in which they came."""
    losses = [Loss(T0 + minute * MINUTE, of, loss) for minute, of, loss in ((6, "both", 0.1), (7, "champion", 0.2))]
    first, second = seen(OF, [], PAIRS, [*losses, Loss(T0 + 8 * MINUTE, "both", -0.1)], T0 + 11 * MINUTE)
    assert (first.losses, second.losses, second.champion_losses) == ((), (0.1, -0.1), (0.2,))


@pytest.mark.parametrize(("number", "disagreed"), [(False, 1), (True, 2)])
def test_numbers_disagree_where_they_differ(number, disagreed):
    """Of a number every difference is another decision; of a probability only one across a half is."""
    assert seen(OF, [], PAIRS, [], T0 + 6 * MINUTE, number=number)[0].mirrored.disagreed == disagreed
