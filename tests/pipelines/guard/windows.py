"""Windows of rollouts for the guard's tests."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from pipelines.guard.evidence import Seen, Side

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def window(place: int, weight: int = 500, **more: Any) -> Seen:
    """The window at a position, of five minutes."""
    begin = BEGIN + timedelta(minutes=5 * place)
    return Seen(begin=begin, end=begin + timedelta(minutes=5), weight=weight, **more)


def side(n: int, failed: int = 0, *, slow: int = 0, scores: dict[int, int] | None = None, requests: int = 0) -> Side:
    """An arm of ``n`` rows, of which some failed; its requests took 10 ms, the ``slow`` ones 300 ms."""
    requests = requests or n
    latency = {22: requests - slow, 46: slow}
    return Side(
        answered=n - failed,
        failed=failed,
        latency={place: count for place, count in latency.items() if count},
        scores=scores or {},
    )


def arms(
    windows: int,
    weight: int = 500,
    *,
    total: int = 5000,
    errors: tuple[float, float] = (0.003, 0.003),
    slow: tuple[float, float] = (0.002, 0.002),
    first: int = 0,
    seed: int = 0,
) -> list[Seen]:
    """Windows in which champion and challenger fail, and are slow, with these chances."""
    generator = np.random.default_rng(seed)
    found = []
    for place in range(first, first + windows):
        n = total * weight // 10_000
        sides = [
            side(rows, int(generator.binomial(rows, bad)), slow=int(generator.binomial(rows, late))) if rows else Side()
            for rows, bad, late in zip((total - n, n), errors, slow, strict=True)
        ]
        found.append(window(place, weight, champion=sides[0], challenger=sides[1]))
    return found


def shuffled(windows: Sequence[Seen], seed: int) -> list[Seen]:
    """The same windows in another order."""
    return [windows[place] for place in np.random.default_rng(seed).permutation(len(windows))]
