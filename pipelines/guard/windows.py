"""The windows of a rollout, of the lines that the gateway left: pure, and a repeated look gives the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts import TrafficLine
from pipelines.guard.evidence import Mirrored, Seen, Side
from pipelines.measures import decided
from pipelines.moments import parse_utc

LATE = timedelta(seconds=6)
"""So long after its end a window is complete: an answer takes its time, and a mirrored row's comes after the reply."""
FAILED = ("fallback", "error", "timeout")


class Loss(NamedTuple):
    """A labelled row, when its label was received: of both versions the challenger's loss minus the champion's."""

    at: datetime
    of: Literal["both", "champion", "challenger"]
    loss: float


class Trial(NamedTuple):
    """Of whom the windows are, and since when; ``weights`` are the shares of keys, each from its moment on."""

    champion: int
    challenger: int
    opened: datetime
    window: timedelta
    weights: Sequence[tuple[datetime, int]]


def seen(
    of: Trial,
    traffic: Iterable[TrafficLine],
    pairs: pl.DataFrame,
    losses: Iterable[Loss],
    now: datetime,
    *,
    number: bool = False,
) -> tuple[Seen, ...]:
    """The complete windows since the rollout was opened, oldest first.

    A line counts where it ends, a row of ``pairs`` (the columns of a ShadowLine, times as moments) where it was
    received, a loss where its label counts. What a version did counts as its own, whatever arm it is now: in a soak the
    challenger has become the champion. ``number``: the two disagree where their answers differ at all; else where they
    decide differently.
    """
    count = max(0, (now - LATE - of.opened) // of.window)
    sides: dict[tuple[int, int], list[TrafficLine]] = defaultdict(list)
    dropped: Counter[int] = Counter()
    for line in traffic:
        # The end of a line is the last moment of its window.
        at = -((of.opened - parse_utc(line["end"])) // of.window) - 1
        if line["arm"] == "shadow":
            dropped[at] += line["outcomes"].get("dropped", 0)
        else:
            sides[at, line["version"]].append(line)
    lost: dict[tuple[int, str], list[float]] = defaultdict(list)
    for one in losses:
        lost[(one.at - of.opened) // of.window, one.of].append(one.loss)
    place = (pl.col("received_at") - of.opened).dt.total_microseconds() // (of.window // timedelta(microseconds=1))
    mirrored = _of(pairs, of).with_columns(window=place).partition_by("window", as_dict=True)
    found = []
    for at in range(count):
        begin = of.opened + at * of.window
        rows = mirrored.get((at,))
        found.append(
            Seen(
                begin=begin,
                end=begin + of.window,
                weight=[weight for since, weight in of.weights if since <= begin][-1],
                champion=_side(sides[at, of.champion]),
                challenger=_side(sides[at, of.challenger]),
                mirrored=Mirrored(dropped=dropped[at]) if rows is None else _mirrored(rows, dropped[at], number=number),
                losses=tuple(lost[at, "both"]),
                champion_losses=tuple(lost[at, "champion"]),
                challenger_losses=tuple(lost[at, "challenger"]),
            )
        )
    return tuple(found)


def answered_since(of: Trial, traffic: Iterable[TrafficLine], pairs: pl.DataFrame, since: datetime) -> int:
    """Rows that the challenger answered since a moment, in the reply or after it."""
    own = sum(
        line["outcomes"].get("ok", 0)
        for line in traffic
        if line["version"] == of.challenger and line["arm"] != "shadow" and parse_utc(line["end"]) > since
    )
    beside = pl.col("challenger_score").is_not_null() & (pl.col("arm") == "champion") & (pl.col("received_at") >= since)
    return own + _of(pairs, of).filter(beside).height


def _of(pairs: pl.DataFrame, of: Trial) -> pl.DataFrame:
    """The rows that this rollout's versions were both asked."""
    return pairs.filter((pl.col("champion") == of.champion) & (pl.col("challenger") == of.challenger))


def _side(lines: Sequence[TrafficLine]) -> Side:
    outcomes = _added(line["outcomes"] for line in lines)
    return Side(
        answered=outcomes["ok"],
        failed=sum(outcomes[name] for name in FAILED),
        refused=outcomes["refused"],
        latency={int(name): n for name, n in sorted(_added(line["latency"] for line in lines).items())},
        scores={int(name): n for name, n in sorted(_added(line["scores"] for line in lines).items())},
    )


def _added(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return found


def _mirrored(rows: pl.DataFrame, dropped: int, *, number: bool) -> Mirrored:
    answered = {side: pl.col(f"{side}_score").is_not_null() for side in ("champion", "challenger")}
    both = rows.filter(answered["champion"] & answered["challenger"])
    disagreed = 0
    if both.height:
        one, other = (_decisions(both, side, number=number) for side in ("champion", "challenger"))
        disagreed = int((one != other).sum())
    return Mirrored(
        answered=both.height,
        disagreed=disagreed,
        champion_failed=rows.filter(~answered["champion"] & answered["challenger"]).height,
        challenger_failed=rows.filter(answered["champion"] & ~answered["challenger"]).height,
        dropped=dropped,
    )


def _decisions(rows: pl.DataFrame, side: str, *, number: bool) -> NDArray[Any]:
    """What a version decided, of each row; the answer itself where it is a number."""
    scores = rows[f"{side}_score"].to_numpy()
    if number:
        return scores
    if rows[f"{side}_scores"].null_count() == 0:
        scores = np.array(rows[f"{side}_scores"].to_list())
    return decided(scores)
