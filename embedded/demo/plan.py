"""What the demo replays: the case's demo.yaml turned into a list of ticks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import yaml
from pydantic import Field, ValidationError

from pipelines.config import CASES_ROOT, Strict
from pipelines.contracts import Window
from pipelines.errors import ConfigError


class _Fast(Strict):
    start: date = Field(alias="from")
    until: date


class _Demo(Strict):
    first_as_of: date
    tick: str = Field(pattern="^(day|week|month)$")
    until: date
    scheduled_every: int = Field(gt=0)
    min_month_rows: int = Field(gt=0)
    fast: _Fast


@dataclass(frozen=True)
class Plan:
    """A replay: the first champion's ``as_of``, then one window of traffic per tick."""

    case: str
    first_as_of: datetime
    windows: tuple[Window, ...]
    scheduled_every: int
    min_month_rows: int
    tick: str


def load_plan(case: str, *, fast: bool) -> Plan:
    """Read ``cases/<case>/demo.yaml``; ``fast`` takes its shorter stretch."""
    path = CASES_ROOT / case / "demo.yaml"
    try:
        demo = _Demo.model_validate_json(json.dumps(yaml.safe_load(path.read_text()), default=str))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: a case needs one to be replayed by the demo") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    start, until = (demo.fast.start, demo.fast.until) if fast else (demo.first_as_of, demo.until)
    return Plan(
        case=case,
        first_as_of=_midnight(demo.first_as_of),
        windows=tuple(_windows(start, until, demo.tick)),
        scheduled_every=demo.scheduled_every,
        min_month_rows=demo.min_month_rows,
        tick=demo.tick,
    )


def _windows(start: date, until: date, tick: str) -> Iterator[Window]:
    day = start
    while day < until:
        following = {"day": day + timedelta(days=1), "week": day + timedelta(days=7), "month": (day.replace(day=1) + timedelta(days=32)).replace(day=1)}[tick]
        yield Window(start=_midnight(day), end=_midnight(following))
        day = following


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
