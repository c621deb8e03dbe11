"""The replay itself: the first champion, then tick after tick of traffic, drift and training."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from embedded.demo import scoring, traffic
from embedded.demo.replay import Replay
from embedded.demo.summary import tick_record
from pipelines import cases, ledger
from pipelines.contracts import Window
from pipelines.deploy.scheduler import KINDS
from pipelines.errors import PerennialError
from pipelines.installation import typed

if TYPE_CHECKING:
    import polars as pl

RUN_SECONDS = 900.0
"""What one DAG run may take: far more than any does on an idle machine."""


def play(replay: Replay) -> pl.DataFrame:
    """The first champion, then tick after tick; returns the canonical rows of all windows."""
    import polars as pl

    plan = replay.plan
    progress = replay.progress
    whole = cases.part(plan.case, "source").rows(
        replay.source, Window(start=plan.windows[0].start, end=plan.windows[-1].end), replay.params
    )
    rows = traffic.sampled(whole, plan.sample_per_month)
    dags = [f"{plan.case}_{kind}" for kind in KINDS]
    replay.airflow.wait_for_dags(dags)
    for dag in dags:
        replay.airflow.unpause(dag)
    with progress.phase("first champion"):
        _train(replay, plan.first_as_of, "initial")
    if ledger.head(replay.settings.ledger, plan.case) is None:
        [verdict, *_] = ledger.verdicts(replay.settings.ledger, plan.case)
        raise PerennialError(
            f"the first candidate was not promoted ({verdict['verdict']['reason']}): without a champion there is "
            "nothing to replay"
        )
    progress.say(f"first champion: trained on the rows before {plan.first_as_of:%Y-%m-%d}")
    previous = plan.first_as_of
    number = 0
    for window in plan.windows:
        month = rows.filter(pl.col("event_time").is_between(window.start, window.end, closed="left"))
        if month.is_empty():
            continue
        number += 1
        _tick(replay, number, window, month, rows.filter(pl.col("event_time") < window.end), previous)
        previous = window.end
    return rows


def _tick(
    replay: Replay, number: int, window: Window, month: pl.DataFrame, so_far: pl.DataFrame, previous: datetime
) -> None:
    """One window of traffic, its due labels, one drift run, the training runs that follow."""
    import polars as pl

    plan = replay.plan
    progress = replay.progress
    as_of = window.end
    fields = cases.load_fields(plan.case)
    earlier = [plan.first_as_of, *(datetime.fromisoformat(tick["as_of"]) for tick in replay.ticks)]
    replay.compared.append(replay.pool.submit(scoring.compare, plan.case, replay.settings.root, earlier, month))
    with progress.phase("traffic"):
        traffic.send_rows(replay.gateway, fields, month, replay.tally)
        due = so_far.filter((pl.col("label_time") <= as_of) & ((pl.col("label_time") > previous) | pl.lit(number == 1)))
        traffic.send_labels(replay.gateway, fields, due, replay.tally)
        traffic.wait_for_closed_segments(replay.settings.prediction_log, plan.case)
    with progress.phase("drift"):
        _run(replay, "drift", f"demo__{as_of:%Y%m%dT%H%M%SZ}", {"as_of": as_of.isoformat()})
    with progress.phase("training"):
        replay.airflow.wait_quiet([f"{plan.case}_training"], RUN_SECONDS)
        last = window == plan.windows[-1]  # what is trained after it would answer nothing
        if number % plan.scheduled_every == 0 and not last:
            _train(replay, as_of, "schedule")
    if not last:
        replay.ungated.append(replay.pool.submit(scoring.retrain_ungated, plan.case, replay.settings.root, as_of))
    record = tick_record(replay, window, month)
    replay.ticks.append(record)
    progress.say(record["line"])


def _train(replay: Replay, as_of: datetime, trigger: str) -> None:
    _run(replay, "training", f"{trigger}__{as_of:%Y%m%dT%H%M%SZ}", {"as_of": as_of.isoformat(), "trigger": trigger})


def _run(replay: Replay, kind: str, run_id: str, conf: dict[str, Any]) -> None:
    """One DAG run from trigger to end; PerennialError with the failed task's last lines if it is not green."""
    dag = f"{replay.plan.case}_{kind}"
    run = replay.airflow.wait(dag, replay.airflow.trigger_dag(dag, run_id, conf), RUN_SECONDS)
    if run["state"] == "success":
        return
    for task in replay.airflow.tasks(dag, run_id):
        if task["state"] == "failed":
            lines = replay.airflow.log(dag, run_id, task["task_id"], task["try_number"]).splitlines()
            raise PerennialError(
                f"{dag} {run_id}: task {task['task_id']} failed; its last lines:\n" + "\n".join(lines[-15:])
            )
    raise PerennialError(
        f"{dag} {run_id} ended as {run['state']}: look at it in Airflow ({typed('up', replay.settings.root)})"
    )
