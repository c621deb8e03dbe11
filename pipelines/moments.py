"""Points in time and their texts: the one home of reading them, and of writing a day for people.

Everything that is read comes out aware and in UTC.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from pipelines.errors import ConfigError


def parse_moment(text: str) -> datetime:
    """An ISO 8601 time with a zone. Raises ValueError if the text is none, or has no zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time has no time zone")
    return _in_utc(moment)


def parse_utc(text: str) -> datetime:
    """A date or an ISO 8601 time; without a zone it is meant in UTC. Raises ValueError if the text is neither.

    >>> parse_utc("2009-05-01").isoformat()
    '2009-05-01T00:00:00+00:00'
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return _in_utc(moment)


def parse_as_of(text: str) -> datetime:
    """What a person gave as a run's clock, as :func:`parse_utc` reads it.

    Raises ConfigError if the text is neither a date nor a time, or no whole second: a run's folder is named by seconds.
    """
    try:
        moment = parse_utc(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is neither a date nor an ISO 8601 time: write 2009-05-01 or 2009-05-01T02:00:00Z"
        ) from error
    if moment.microsecond:
        raise ConfigError(f"{text!r} has a fraction of a second: a run is named by whole seconds")
    return moment


def day(found: date) -> str:
    """A day for people, in sentences and on pages.

    >>> day(date(2020, 6, 4)), day(datetime(2020, 6, 4, 2, tzinfo=UTC))
    ('4 Jun 2020', '4 Jun 2020')
    """
    return f"{found.day} {found:%b %Y}"


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{moment.isoformat()} is before the year 1 or after 9999 in UTC") from error
