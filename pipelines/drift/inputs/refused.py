"""Rows of a window that the gateway refused: their share of all that came, as a whole and where it was largest.

Who is refused is not who is answered: what is left of a stream of which a part breaks upstream is another population,
though its volume may stay within its band. An hour is lost in a month, so hours are looked at, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

from pipelines.contracts import Arrived, Window
from pipelines.drift_report import Quality, Refused, RefusedFor, Remark, Stretch
from pipelines.params import DriftParams

FEWEST = 10
"""Refused rows that say something of a stretch: somebody who tries a request by hand sends fewer."""
MOST_REASONS = 20
"""Reasons that a stretch keeps, those of the most rows; a message names ``TOLD`` of them."""
TOLD = 3
HOUR = timedelta(hours=1)


def refused(arrived: Arrived, window: Window, least: int) -> Refused:
    """What of the rows that ``arrived`` in ``window`` was refused.

    ``worst`` is the one of the window and its stretches of which the largest share was refused, of those with
    ``FEWEST`` refused rows; a stretch is made of hours that follow each other, as many as hold ``least`` rows.
    """
    if not arrived.refused:
        return Refused()
    whole = _stretch(arrived, window.start, window.end)
    told = [one for one in (whole, *_stretches(arrived, window, least)) if one.refused >= FEWEST]
    worst = max(told, key=lambda one: (one.share, one.refused), default=None)
    return Refused(rows=whole.refused, share=whole.share, reasons=whole.reasons, worst=worst)


def remarks(found: Refused, params: DriftParams) -> tuple[list[Remark], list[Remark]]:
    """Problems, which block, and warnings: what is to be said of refused rows, if anything is."""
    worst = found.worst
    if worst is None or worst.share < params.warn_refused_share:
        return [], []
    remark = Remark(code="refused", field=worst.reasons[0].field or None, message=sentence(worst))
    if worst.share >= params.block_refused_share:
        return [remark], []
    return [], [remark]


def alone(found: Refused, params: DriftParams) -> Quality:
    """The quality of a window of which nothing else is known, as nothing in it was answered."""
    problems, warnings = remarks(found, params)
    return Quality(problems=tuple(problems), warnings=tuple(warnings), refused=found)


def sentence(worst: Stretch) -> str:
    """A stretch in words: when, how many rows, and what they were refused for."""
    reasons = Counter[tuple[str, str]]()
    for one in worst.reasons:
        reasons[one.field, one.reason] += one.rows
    most = reasons.most_common(TOLD)
    told = [f"{field or 'no declared field'}: {reason} ({rows:,})" for (field, reason), rows in most]
    if len(reasons) > TOLD:
        told.append(f"{len(reasons) - TOLD} more reasons")
    end = f"{worst.end:%H:%M}" if worst.end.date() == worst.start.date() else _time(worst.end)
    share = f"{worst.share:.1%} of the rows from {_time(worst.start)} to {end} UTC"
    return f"{share} were refused ({worst.refused:,} of {worst.came:,}): {', '.join(told)}"


def _time(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y %H:%M}"


def _stretches(arrived: Arrived, window: Window, least: int) -> Iterator[Stretch]:
    came = Counter(arrived.answered)
    for one in arrived.refused:
        came[one.hour] += one.rows
    start, rows = window.start, 0
    for hour in sorted(came):
        if not rows:
            start = hour
        rows += came[hour]
        if rows >= least:
            yield _stretch(arrived, start, hour + HOUR)
            rows = 0


def _stretch(arrived: Arrived, start: datetime, end: datetime) -> Stretch:
    answered = sum(rows for hour, rows in arrived.answered.items() if start <= hour < end)
    reasons = Counter[tuple[str, str, str, int | None]]()
    for one in arrived.refused:
        if start <= one.hour < end:
            reasons[one.field, one.reason, one.arm, one.version] += one.rows
    return Stretch(
        start=start,
        end=end,
        came=answered + reasons.total(),
        refused=reasons.total(),
        reasons=tuple(
            RefusedFor(field=field, reason=reason, arm=arm, version=version, rows=rows)
            for (field, reason, arm, version), rows in reasons.most_common(MOST_REASONS)
        ),
    )
