"""An episode made on purpose: predictions that are mostly wrong, until the drift step asks for training."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta

import polars as pl
from sqlalchemy import create_engine, text

from embedded.demo import traffic
from pipelines import cases
from pipelines.contracts import Window
from pipelines.errors import PerennialError
from pipelines.line import runner
from pipelines.line.order import DRIFT, PROFILE
from pipelines.line.step import Run
from pipelines.params import Params
from pipelines.settings import Settings

DAYS = 21
"""Predictions that are mostly wrong must ask for training within so many days, the delay of the labels included."""


def provoke(settings: Settings, params: Params, start: datetime) -> tuple[datetime, str]:
    """Sends days of rows whose labels contradict the champion through the gateway.

    Returns when training was asked for, and the episode. Raises PerennialError if rows are refused, or nothing is asked
    for within ``DAYS``.
    """
    case = params.case
    part = cases.part(case, "source")
    fields = cases.load_fields(case)
    rows = part.rows(part.resolve(settings, params), Window(start=start, end=start + timedelta(days=DAYS)), params)
    rows = rows.with_columns((1 - pl.col(fields.label)).alias(fields.label))
    tally = traffic.Tally()
    with traffic.client(settings.gateway_url, settings.key_file) as gateway:
        traffic.send_rows(gateway, fields, rows, tally)
        traffic.send_labels(gateway, fields, rows, tally)
    traffic.wait_for_closed_segments(settings.prediction_log, case)
    if (tally.errors, len(tally.answers)) != (0, rows.height):
        raise PerennialError(
            f"{tally.errors} requests failed, {len(tally.answers)} of {rows.height} rows were answered: "
            "look at the gateway's log"
        )
    for number in range(1, DAYS + 1):
        as_of = start + timedelta(days=number)
        run = Run(params, settings, as_of)
        runner.run(PROFILE, run)
        facts = runner.run(DRIFT, run).facts
        if facts["action"] == "retrain":
            return as_of, facts["episode"]
    raise PerennialError(f"no training was asked for within {DAYS} days of wrong predictions; the last day: {facts}")


def forget(settings: Settings, case: str, as_of: datetime) -> None:
    """Takes the decision of ``as_of`` back, so that the runs to come race for it.

    Its state, its episode, its report.
    """
    take_back(settings.ledger, case, "drift_chain")
    shutil.rmtree(settings.run_dir(case, as_of) / "drift")


def take_back(url: str, case: str, since: str) -> None:
    """Leaves the ledger of a case as it was before its newest row of a table.

    That row and all written after it go, with their entries.
    """
    with create_engine(url).begin() as connection:
        newest = 'SELECT max(number) FROM journal WHERE "case" = :case AND about = :since'
        entries = text(f'SELECT about, row_key FROM journal WHERE "case" = :case AND number >= ({newest})')
        for about, key in connection.execute(entries, {"case": case, "since": since}).all():
            row = {"case": case, **json.loads(key)}
            where = " AND ".join(f'"{name}" = :{name}' for name in row)
            connection.execute(text(f'DELETE FROM "{about}" WHERE {where}'), row)
        connection.execute(
            text(f'DELETE FROM journal WHERE "case" = :case AND number >= ({newest})'), {"case": case, "since": since}
        )
