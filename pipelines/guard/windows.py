"""The windows of a rollout, of the lines that the gateway left: pure, and a repeated look gives the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from pipelines.contracts import ShadowLine, TrafficLine
from pipelines.guard.evidence import Mirrored, Seen, Side
from pipelines.measures import decided
from pipelines.moments import parse_utc

LATE = timedelta(seconds=2)
"""So long after its end a window is complete: a mirrored row is answered after its receipt."""
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
    shadow: Iterable[ShadowLine],
    losses: Iterable[Loss],
    now: datetime,
    *,
    number: bool = False,
) -> tuple[Seen, ...]:
    """The complete windows since the rollout was opened, oldest first.

    A line counts where it ends, a mirrored row where it was received, a loss where its label was. What a version did
    counts as its own, whatever arm it is now: in a soak the challenger has become the champion. ``number``: the two
    disagree where their answers differ at all; else where they decide differently.
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
    mirrored: dict[int, list[ShadowLine]] = defaultdict(list)
    for row in shadow:
        if (row["champion"], row["challenger"]) == (of.champion, of.challenger):
            mirrored[(parse_utc(row["received_at"]) - of.opened) // of.window].append(row)
    lost: dict[tuple[int, str], list[float]] = defaultdict(list)
    for one in losses:
        lost[(one.at - of.opened) // of.window, one.of].append(one.loss)
    found = []
    for at in range(count):
        begin = of.opened + at * of.window
        found.append(
            Seen(
                begin=begin,
                end=begin + of.window,
                weight=[weight for since, weight in of.weights if since <= begin][-1],
                champion=_side(sides[at, of.champion]),
                challenger=_side(sides[at, of.challenger]),
                mirrored=_mirrored(mirrored[at], dropped[at], number=number),
                losses=tuple(lost[at, "both"]),
                champion_losses=tuple(lost[at, "champion"]),
                challenger_losses=tuple(lost[at, "challenger"]),
            )
        )
    return tuple(found)


def answered_since(of: Trial, traffic: Iterable[TrafficLine], shadow: Iterable[ShadowLine], since: datetime) -> int:
    """Rows that the challenger answered since a moment, in the reply or after it."""
    own = sum(
        line["outcomes"].get("ok", 0)
        for line in traffic
        if line["version"] == of.challenger and line["arm"] != "shadow" and parse_utc(line["end"]) > since
    )
    return own + sum(
        row["arm"] == "champion" and row["challenger_score"] is not None
        for row in shadow
        if row["challenger"] == of.challenger and parse_utc(row["received_at"]) >= since
    )


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


def _mirrored(rows: Sequence[ShadowLine], dropped: int, *, number: bool) -> Mirrored:
    both = [row for row in rows if row["champion_score"] is not None and row["challenger_score"] is not None]
    champions = _decisions([(row["champion_score"], row.get("champion_scores")) for row in both], number)
    challengers = _decisions([(row["challenger_score"], row.get("challenger_scores")) for row in both], number)
    return Mirrored(
        answered=len(both),
        disagreed=sum(one != other for one, other in zip(champions, challengers, strict=True)),
        champion_failed=sum(row["champion_score"] is None and row["challenger_score"] is not None for row in rows),
        challenger_failed=sum(row["challenger_score"] is None and row["champion_score"] is not None for row in rows),
        dropped=dropped,
    )


def _decisions(answers: Sequence[tuple[float | None, list[float] | None]], number: bool) -> list[float]:
    """What a version decided, of each row; the answer itself where it is a number."""
    import numpy as np

    if number or not answers:
        return [score for score, _ in answers if score is not None]
    found: list[float] = decided(
        np.array([score if classes is None else classes for score, classes in answers])
    ).tolist()
    return found
