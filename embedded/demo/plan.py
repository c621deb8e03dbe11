"""What the demo replays: the case's demo.yaml turned into a list of ticks, and its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from pipelines.case_files import folder_of
from pipelines.contracts import Window
from pipelines.errors import ConfigError
from pipelines.files import write_atomic
from pipelines.params import Params, Strict, not_below
from pipelines.params_file import load_params, read_yaml


class _Fast(Strict):
    start: date = Field(alias="from")
    until: Annotated[date, not_below("start", strictly=True)]


class _Demo(Strict):
    first_as_of: date
    tick: str = Field(pattern="^(day|week|month|quarter)$")
    until: Annotated[date, not_below("first_as_of", strictly=True)]
    scheduled_every: int = Field(gt=0)
    min_month_rows: int = Field(gt=0)
    fast: _Fast
    sample_per_month: int | None = Field(default=None, gt=0)
    params: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A replay: the first champion's ``as_of``, then one window of traffic per tick.

    ``sample_per_month`` is the most rows of a calendar month that are sent, evenly spaced; ``params`` are
    overrides of the case's own parameters. ``release``: rollouts in stages follow (release.py).
    """

    case: str
    first_as_of: datetime
    windows: tuple[Window, ...]
    scheduled_every: int
    min_month_rows: int
    tick: str
    sample_per_month: int | None
    params: dict[str, Any]
    release: bool


def load_plan(case: str, *, fast: bool, ticks: int | None = None) -> Plan:
    """Read a case's demo.yaml; ``fast`` takes its shorter stretch, ``ticks`` ends it after so many.

    Raises ConfigError for a plan that cannot be read, and for fewer ticks than one.
    """
    if ticks is not None and ticks < 1:
        raise ConfigError(f"a replay of {ticks} ticks replays nothing: give TICKS=1 or more")
    path = folder_of(case) / "demo.yaml"
    if not path.exists():
        raise ConfigError(f"{path} does not exist: a case needs one to be replayed by the demo")
    try:
        demo = _Demo.model_validate_json(json.dumps(read_yaml(path), default=str))
    except ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    start = demo.first_as_of
    until = demo.until
    if fast:
        start = demo.fast.start
        until = demo.fast.until
    return Plan(
        case=case,
        first_as_of=_midnight(demo.first_as_of),
        windows=tuple(_windows(start, until, demo.tick))[:ticks],
        scheduled_every=demo.scheduled_every,
        min_month_rows=demo.min_month_rows,
        tick=demo.tick,
        sample_per_month=demo.sample_per_month,
        params=demo.params,
        release=not fast,
    )


def write_params(plan: Plan, folder: Path) -> Params:
    """The case's parameters with the plan's overrides, as ``folder/<case>.yaml`` if there are any.

    ConfigError if they cannot work.
    """
    if not plan.params:
        return load_params(plan.case)
    own = read_yaml(folder_of(plan.case) / "params.yaml")
    path = folder / f"{plan.case}.yaml"
    write_atomic(path, yaml.safe_dump(_over(own, plan.params), sort_keys=False).encode())
    return load_params(plan.case, path)


def _over(own: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``own`` with ``changes``, block by block."""
    return own | {
        name: _over(own[name], value) if isinstance(value, dict) and isinstance(own.get(name), dict) else value
        for name, value in changes.items()
    }


def scope(plan: Plan, params: Params) -> dict[str, Any]:
    """What of the case is replayed, in numbers: it is printed, and stands in summary.json."""
    most = params.dataset.max_rows
    rows = None
    if most is not None:
        rows = most - round(most * params.dataset.holdout_share)
    minutes = params.train.budget_minutes
    seconds = None
    if minutes is not None:
        seconds = round(60 * minutes)
    return {
        "from": plan.windows[0].start.isoformat(),
        "until": plan.windows[-1].end.isoformat(),
        "tick": plan.tick,
        "traffic_rows_per_month": plan.sample_per_month,
        "rows_per_training": rows,
        "seconds_per_training": seconds,
        "params": dict(_flat(plan.params)),
    }


def _flat(changes: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _windows(start: date, until: date, tick: str) -> Iterator[Window]:
    day = start
    while day < until:
        following = {
            "day": day + timedelta(days=1),
            "week": day + timedelta(days=7),
            "month": (day.replace(day=1) + timedelta(days=32)).replace(day=1),
            "quarter": (day.replace(day=1) + timedelta(days=95)).replace(day=1),
        }[tick]
        yield Window(start=_midnight(day), end=_midnight(following))
        day = following


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
