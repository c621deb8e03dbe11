"""A drift run's own proof: a sample of the window's rows, scored again. What does not come out is told to people."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import polars as pl

from pipelines.contracts import ELSEWHERE, Window
from pipelines.data import log as prediction_log
from pipelines.errors import PerennialError
from pipelines.params import Params
from pipelines.rescoring import diagnosis
from pipelines.rescoring.replay import replay, tolerance_of
from pipelines.settings import Settings

ROWS = 2_000
"""Rows that are scored again, spread over the versions that answered: a second's work, of texts some seconds."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skew:
    """How many rows were scored again, of how many the score did not come out, and what is wrong."""

    rows: int = 0
    differ: int = 0
    problems: tuple[str, ...] = ()


def check(params: Params, settings: Settings, window: Window) -> Skew:
    """Score a sample of the rows of ``window`` again, unless the case has switched its rule off.

    Whatever is in the way is a problem that is told, and no error.
    """
    if "scores_differ" in params.alerts.off:
        return Skew()
    try:
        return _checked(params, settings, window)
    except PerennialError as error:
        return Skew(problems=(f"nothing could be scored again: {error}",))
    except Exception as error:  # whatever is wrong with the check, people hear of the rest
        log.exception("%s: the check of logged scores has failed", params.case)
        return Skew(problems=(f"the check itself has failed ({type(error).__name__}: {error}): see the task's log",))


def _checked(params: Params, settings: Settings, window: Window) -> Skew:
    tolerance = tolerance_of(params)
    replayed, _ = replay(settings, params.case, [sample(settings, params.case, window)], tolerance)
    problems = diagnosis.problems(settings, params.case, replayed.values(), tolerance)
    return Skew(
        sum(one.rows for one in replayed.values()),
        sum(one.differ + one.contradict + one.unfit for one in replayed.values()),
        tuple(f"{one.cause}: {one.told}" for one in problems),
    )


def sample(settings: Settings, case: str, window: Window, most: int = ROWS) -> pl.DataFrame:
    """About ``most`` rows of the window that models answered, evenly spaced in time, as many of each version."""
    answered = (pl.col("version") != ELSEWHERE) & pl.col("score").is_not_null()
    rows = prediction_log.read_predictions(settings, case, window, each=lambda scan: scan.filter(answered))
    own = [one for _, one in sorted(rows.partition_by("version", as_dict=True, maintain_order=True).items())]
    each = most // max(1, len(own))
    return pl.concat([rows.clear(), *(one.gather_every(-(-one.height // each)) for one in own)])
