"""`python -m embedded.demo`: start from an empty state, replay history, sum up, stop everything."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from embedded import stack, triton
from embedded.demo.plan import load_plan, scope, write_params
from embedded.demo.progress import TEXTS, Progress
from embedded.demo.run import replayed
from embedded.ports import Ports
from embedded.services import PARAMS, PROFILES
from pipelines import cases
from pipelines.errors import DataError, PerennialError
from pipelines.files import write_atomic
from pipelines.installation import typed
from pipelines.params_file import load_params
from pipelines.places import PRIVATE
from pipelines.settings import Settings, read_settings

HOME = Path("runs/demo")
SEGMENT_SECONDS = 0.5
"""The demo closes log segments at once: its months last seconds."""


def main(arguments: list[str] | None = None, prog: str = "python -m embedded.demo") -> int:
    """Run the demo; exit code 0 if it did what it promises, 1 with a clear error otherwise."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "--case",
        default=None,
        help="bank, triage, triage_fields, loans, flights or flights_late; "
        "default: bank where its data can be had, else loans",
    )
    parser.add_argument("--fast", action="store_true", help="a shorter stretch of history")
    parser.add_argument("--ticks", type=int, default=None, help="end after so many ticks of it")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default="embedded",
        help="embedded (default), or full: what docker-compose.yaml starts",
    )
    parser.add_argument("--keep", action="store_true", help="leave the stack running at the end")
    parser.add_argument("--home", type=Path, default=HOME, help="state folder (the last one is moved aside)")
    options = parser.parse_args(arguments)
    os.umask(PRIVATE)
    progress = Progress()
    # A plain kill must stop the stack too: turn it into the exception that ends the with-blocks in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _demo(options, progress)
    except PerennialError as error:
        print(f"{typed('demo')}: {error}", file=sys.stderr)
        return error.exit_code


def _demo(options: argparse.Namespace, progress: Progress) -> int:
    began = time.monotonic()
    home: Path = options.home.resolve()
    _move_aside(home, progress)
    case, source = _choose(options.case, read_settings(home=home))
    progress.say(f"[bold]case {case}[/]: {source.kind} data, {source.name}: {source.why}")
    plan = load_plan(case, fast=options.fast, ticks=options.ticks)
    params = write_params(plan, home / PARAMS)
    if cases.load_fields(case).text is not None:
        progress.budget = TEXTS
    if plan.params:
        # For what this process and its pool read themselves; the stack finds the folder in its state.
        os.environ["PERENNIAL_PARAMS_DIR"] = str(home / PARAMS)
        progress.say(_scope(scope(plan, params)))
    finished = False
    try:
        with progress.shown():
            with progress.phase("start"):
                progress.say(
                    f"starting Airflow, MLflow, Triton and the gateway on free ports; state and logs in {home}"
                )
                triton.bring(progress.say)
                extra = {
                    "PERENNIAL_LOG_SEGMENT_SECONDS": str(SEGMENT_SECONDS),
                    "PERENNIAL_GATEWAY_TRAFFIC_SECONDS": str(SEGMENT_SECONDS),
                    "PERENNIAL_SCHEDULES": "0",
                    "PERENNIAL_CONNECTIONS": "none",
                }
                running = stack.start(home, Ports.free(), profile=options.profile, extra_env=extra)
            summary = replayed(plan, params, source, _settings_of(running.env), progress)
        finished = True
    finally:
        if not (options.keep and finished):
            with progress.phase("stop"):
                left = stack.stop(home)
    summary |= {
        "processes_left": 0 if options.keep else left,
        "seconds": round(time.monotonic() - began, 1),
        "seconds_by_phase": {name: round(seconds, 1) for name, seconds in progress.seconds.items()},
    }
    return _report(summary, home, progress, kept=options.keep)


def _choose(wanted: str | None, settings: Settings) -> tuple[str, Any]:
    """The case to replay and its resolved source: the real data where it can be had, the stream otherwise."""
    if wanted is not None:
        return wanted, cases.part(wanted, "source").resolve(settings, load_params(wanted))
    try:
        return "bank", cases.part("bank", "source").resolve(settings, load_params("bank"))
    except DataError as error:
        print(f"the bank data cannot be had ({error}); taking the generated loans stream", file=sys.stderr)
        return "loans", cases.part("loans", "source").resolve(settings, load_params("loans"))


def _move_aside(home: Path, progress: Progress) -> None:
    if not home.exists():
        return
    stack.refuse_if_running(home)
    stamp = datetime.fromtimestamp(home.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    aside = home.with_name(f"{home.name}.{stamp}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}x")
    home.rename(aside)
    progress.say(f"the last demo's state is now {aside}")


def _settings_of(environment: dict[str, str]) -> Settings:
    os.environ.update({name: value for name, value in environment.items() if name.startswith("PERENNIAL_")})
    return read_settings()


def _report(summary: dict[str, Any], home: Path, progress: Progress, *, kept: bool) -> int:
    from pipelines.reports.replay import page

    write_atomic(home / "summary.json", json.dumps(summary, indent=1).encode())
    write_atomic(home / "report.html", page(summary).encode())
    _print_table(summary, progress)
    progress.say(f"report   {home / 'report.html'}\nsummary  {home / 'summary.json'}")
    if kept:
        progress.say(f"still running: {typed('status', home)}; {typed('down', home)}")
    else:
        progress.say(f"reopen it in Airflow, MLflow and the gateway: {typed('up', home)}")
    broken = [name for name in ("errors", "answers_unequal", "processes_left") if summary[name]]
    if summary["airflow"]["dag_runs_failed"]:
        broken.append("airflow.dag_runs_failed")
    if not summary["rows_sent"] == summary["rows_acknowledged"] == summary["rows_logged"]:
        broken.append("rows sent, acknowledged and logged differ")
    if broken:
        print(
            f"{typed('demo')}: not clean: {', '.join(broken)}; see {home / 'summary.json'} and {home / 'logs'}",
            file=sys.stderr,
        )
        return 1
    return 0


def _scope(found: dict[str, Any]) -> str:
    """The scope of a reduced replay in one sentence."""
    limits = (
        ("traffic_rows_per_month", "sampled rows of traffic a month"),
        ("rows_per_training", "rows per training"),
        ("seconds_per_training", "seconds per training"),
    )
    most = ", ".join(f"{found[name]:,} {about}" for name, about in limits if found[name] is not None)
    return f"scope: {found['from'][:10]} to {found['until'][:10]}, a tick is a {found['tick']}; at most {most}"


def _print_table(summary: dict[str, Any], progress: Progress) -> None:
    from rich.table import Table

    from pipelines.reports.replay import METRICS

    metrics = summary["metrics"]
    table = Table(
        title=f"{summary['case']}: mean over {len(next(iter(metrics.values()))['per_month'])} {summary['tick']}s",
        title_justify="left",
    )
    for column in ("", "frozen", "ungated", "Perennial"):
        table.add_column(column, justify="left" if not column else "right")
    for metric, found in metrics.items():
        means = [found[f"{name}_mean"] for name in ("frozen", "ungated", "perennial")]
        table.add_row(METRICS[metric], *("-" if mean is None else f"{mean:.3f}" for mean in means))
    progress.console.print(table)
    counts = ", ".join(f"{count} {decision}" for decision, count in summary["verdicts"].items())
    progress.say(
        f"{summary['rows_acknowledged']:,} rows answered and logged, {summary['drift_runs']} drift runs, "
        f"{sum(summary['training_runs_by_trigger'].values())} training runs ({counts}), {summary['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
