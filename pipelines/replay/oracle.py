"""The best that hindsight could have done: which candidate to serve in every tick, by dynamic programming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def best(
    losses: Mapping[str, Sequence[float | None]], since: Mapping[str, int], first: str, price: float
) -> tuple[list[str], float]:
    """The candidates of least loss and price, one per tick, and that least sum.

    ``losses[c][t]`` is the loss of candidate ``c`` in tick ``t`` (None in all candidates: the tick does not
    count), ``since[c]`` the first tick it can serve. ``first`` serves at the start for nothing, every change costs
    ``price``: with ``V_t(c) = loss_t(c) + min(V_{t-1}(c), min_c' V_{t-1}(c') + price)`` the answer is ``min_c V_T(c)``
    (Bellman, Dynamic Programming, 1957; of switching costs: the metrical task systems of Borodin, Linial and Saks,
    JACM 39(4), 1992). Of equal answers the one that changes least, and then the older candidate, is taken.

    >>> best({"a": [1.0, 1.0, 1.0], "b": [9.0, 0.5, 0.5]}, {"a": 0, "b": 1}, "a", price=0.2)
    (['a', 'b', 'b'], 2.2)
    >>> best({"a": [1.0, 1.0, 1.0], "b": [9.0, 0.5, 0.5]}, {"a": 0, "b": 1}, "a", price=2.0)
    (['a', 'a', 'a'], 3.0)
    """
    names = sorted(losses, key=lambda name: (since[name], name))
    table = np.array([[0.0 if loss is None else loss for loss in losses[name]] for name in names])
    ticks = table.shape[1]
    for row, name in enumerate(names):
        table[row, : since[name]] = np.inf
    value = np.array([0.0 if name == first else np.inf for name in names])
    came = np.zeros((ticks, len(names)), np.intp)
    for tick in range(ticks):
        # The first champion is there before the first tick; whoever replaces it is paid for.
        cheapest = int(np.argmin(value))
        stay, change = value, value[cheapest] + price
        came[tick] = np.where(stay <= change, np.arange(len(names)), cheapest)
        value = np.minimum(stay, change) + table[:, tick]
    at = int(np.argmin(value))
    total, path = float(value[at]), []
    for tick in range(ticks - 1, -1, -1):
        path.append(names[at])
        at = int(came[tick, at])
    return path[::-1], total
