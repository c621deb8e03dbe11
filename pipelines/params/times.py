"""When a case's DAGs come, and which event times its rows may state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator

from pipelines.params.base import Days, Strict


def _cron(value: str) -> str:
    """A schedule that comes at some time.

    The plain ones are seen to be right without croniter, whose import takes a tenth of a second.
    """
    fields = value.split()
    if len(fields) == len(_PLAIN) and all(_plain(field, *most) for field, most in zip(fields, _PLAIN, strict=True)):
        return value
    from croniter import CroniterBadDateError, CroniterError, croniter

    try:
        croniter(CRON_NAMES.get(value, value), datetime(2000, 1, 1, tzinfo=UTC)).get_next()
    except CroniterBadDateError as error:
        raise ValueError(f"{value!r} never comes: there is no such date") from error
    except (CroniterError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{value!r} is no cron expression ({error}): write minute, hour, day, month and weekday, as in 0 2 * * *"
        ) from error
    return value


CRON_NAMES = {"@quarterly": "0 0 1 */3 *"}
"""What Airflow knows and croniter does not."""
_PLAIN = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))
"""First and last number of a cron expression's fields; every month has 28 days."""


def _plain(field: str, first: int, last: int) -> bool:
    return field == "*" or all(part.isdecimal() and first <= int(part) <= last for part in field.split(","))


Cron = Annotated[str, AfterValidator(_cron)]


class Schedule(Strict):
    """Cron expressions (UTC) of the case's DAGs; ``None`` leaves a DAG to triggers and people.

    ``live`` cases follow today's clock and are unpaused by `make up`; the others replay history.
    """

    training: Cron | None
    drift: Cron | None
    live: bool = False


class EventTimes(Strict):
    """Which event times rows and labels may state, seen from the moment of their receipt, in days.

    None: any from 1900 to 2199.
    """

    max_age_days: Days | None = 3650.0
    max_ahead_days: Days | None = 31.0
    """Room for clocks that differ, and for what holds from a day that is yet to come."""

    def mistake(self, moment: datetime, received: datetime) -> str | None:
        """What is wrong with an event time, without repeating it; None: nothing."""
        day = 86_400.0
        age = (received - moment).total_seconds() / day
        if self.max_age_days is not None and age > self.max_age_days:
            return (
                f"must not lie more than {self.max_age_days:g} days before its receipt (event_times.max_age_days "
                "in the case's parameters)"
            )
        if self.max_ahead_days is not None and -age > self.max_ahead_days:
            return (
                f"must not lie more than {self.max_ahead_days:g} days after its receipt "
                "(event_times.max_ahead_days in the case's parameters)"
            )
        return None


def too_high(revision: int, received: datetime) -> bool:
    """Whether a label's revision is above the time of receipt in seconds since 1970.

    Then no later correction could be sure to stand above it. Counters and times of correction stay below; what they say
    can always be corrected a second later.
    """
    return revision > received.timestamp() + 1
