"""`python -m embedded up | down | status`: what `make` and `perennial` call."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedded import http, stack, triton
from embedded.airflow import client
from embedded.answers import answered
from embedded.live import open_live_cases
from embedded.ports import Ports
from embedded.services import PROFILES, settings_of
from pipelines import ledger
from pipelines.cases.surveying import survey
from pipelines.errors import PerennialError
from pipelines.installation import CHECKOUT, PROGRAM, typed
from pipelines.places import PRIVATE
from pipelines.settings import read_settings

RUNNING, STOPPED, SICK = 0, 3, 1
"""Exit codes of status, as init scripts have them: all healthy, nothing runs, something is wrong."""
WIDE = 160


def main(arguments: list[str] | None = None, prog: str = "python -m embedded") -> int:
    """Do one command; the exit code is 0, or the error's own."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("up", "start everything and print where it is"),
        ("down", "stop everything"),
        ("status", "what runs, and does it work"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument(
            "--home", type=Path, default=None, help="state folder (default: PERENNIAL_HOME, else runs/local)"
        )
        if name == "up":
            command.add_argument(
                "--profile",
                choices=PROFILES,
                default="embedded",
                help="embedded (default), or full: what docker-compose.yaml starts",
            )
            command.add_argument("--no-traffic", action="store_true", help="no trickle of requests on the live cases")
    options = parser.parse_args(arguments)
    # Into a file or a pipe a table is as wide as it needs to be.
    os.umask(PRIVATE)
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=WIDE)
    try:
        home = _home(options)
        with _led_to(home):
            if options.command == "up":
                return up(home, console, traffic=not options.no_traffic, profile=options.profile)
            if options.command == "down":
                return down(home, console)
            return status(home, console)
    except PerennialError as error:
        print(f"{typed(options.command)}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{typed(options.command)}: interrupted; what was started is stopped", file=sys.stderr)
        return 130


def _home(options: argparse.Namespace) -> Path:
    """The state folder.

    Raises ConfigError if the settings cannot be read, but where they are not needed to stop a stack.
    """
    if options.command == "down" and options.home:
        return Path(options.home).expanduser().resolve()
    if options.home:
        return read_settings(home=options.home).root
    return read_settings().root


@contextmanager
def _led_to(home: Path) -> Iterator[None]:
    """Cases are looked for as this state has them, whatever the environment says of another."""
    before = os.environ.get("PERENNIAL_HOME")
    os.environ["PERENNIAL_HOME"] = str(home)
    try:
        yield
    finally:
        os.environ.pop("PERENNIAL_HOME")
        if before is not None:
            os.environ["PERENNIAL_HOME"] = before


def up(home: Path, console: Console, *, traffic: bool = True, profile: str = "embedded") -> int:
    """Start the stack, let the live cases' DAGs run, print the addresses."""
    triton.bring(lambda line: console.print(escape(line)))
    console.print(f"starting on {home}; logs in {home / 'logs'}")
    running = stack.start(
        home,
        Ports.from_environment(),
        traffic=traffic,
        profile=profile,
        on_ready=lambda name, seconds: console.print(f"  {seconds:5.1f} s  {name}"),
    )
    known = settings_of(home, running.env)
    for problem in running.broken:
        console.print(f"[yellow]not serving[/]  {problem}")
    try:
        airflow = client(known) if profile == "full" else None
        live = open_live_cases(
            known.airflow_url, home, lambda line: console.print(escape(line)), airflow, known, traffic_runs=traffic
        )
    except PerennialError as error:
        raise PerennialError(
            f"the services are up, but the live cases' DAGs could not be set going: {error}; "
            f"try again after `{typed('down')}`"
        ) from error
    console.print(addresses(running.env, home))
    console.print(
        f"API key: {known.key_file}   by hand: PERENNIAL_HOME={home} {'.venv/bin/' if CHECKOUT else ''}{PROGRAM} "
        "history --case ..."
    )
    paused = [case.name for case in survey() if not case.problem and case.name not in live]
    console.print(
        f"live, with {'a trickle of traffic' if traffic else 'no traffic'}: {', '.join(live) or 'no case'}; paused: "
        f"{', '.join(paused) or 'none'}"
    )
    return RUNNING


def addresses(env: dict[str, str], home: Path) -> Table:
    """Where everything is and what to look at."""
    table = Table(box=None, pad_edge=False)
    for column in ("what", "where", "look at"):
        table.add_column(column)
    table.add_row("Airflow", env["PERENNIAL_AIRFLOW_URL"], "<case>_training, <case>_drift")
    table.add_row("MLflow", env["PERENNIAL_MLFLOW_URL"], "one run and one model version per candidate")
    table.add_row("gateway", f"{env['PERENNIAL_GATEWAY_URL']}/docs", "/readyz, /metrics, /v1/cases/<case>/predict")
    table.add_row("Triton", env["PERENNIAL_TRITON_GRPC"], f"http://{env['PERENNIAL_TRITON_METRICS']}/metrics")
    if (home / "secrets").is_dir() and "PERENNIAL_LEDGER_URL_FILE" in env:
        table.add_row(
            "logins",
            str(home / "secrets"),
            "Airflow: admin, airflow_admin_password; MLflow: perennial, mlflow_password",
        )
    table.add_row("state", str(home), "artefacts/<case>/<as_of>/<step>/")
    return table


def down(home: Path, console: Console) -> int:
    """Stop the stack; exit code 1 if a process could not be ended."""
    was = stack.read(home)
    left = stack.stop(home)
    if left:
        raise PerennialError(
            f"{left} process(es) of {home} could not be ended: look at them with `{typed('status')}`, end them "
            "as the user who started them"
        )
    if was:
        console.print(f"stopped: {', '.join(process.name for process in was.processes)}")
    else:
        console.print(f"nothing was running on {home}")
    return 0


def status(home: Path, console: Console) -> int:
    """Print a table of the services, and below it the cases that are broken, retired or gone.

    0 if all services are healthy, 1 if one is not, 3 if nothing runs.
    """
    rows = stack.status(home)
    if not rows:
        lost = stack.strays(home)
        if lost:
            console.print(f"{lost} stray process(es) of {home}: end them with `{typed('down')}`")
            return SICK
        console.print(f"nothing runs on {home}: start it with `{typed('up')}`")
        return STOPPED
    table = Table(box=None, pad_edge=False, title=f"{home}", title_justify="left")
    for column in ("service", "state", "address", "pid", "log"):
        table.add_column(column, overflow="fold")
    for row in rows:
        colour = "green" if row["state"] == "healthy" else "red"
        log = Path(row["log"])
        table.add_row(
            row["service"],
            f"[{colour}]{row['state']}[/]",
            row["address"],
            row["pid"],
            str(log.relative_to(home)) if log.is_relative_to(home) else row["log"],
        )
    console.print(table)
    for row in rows:
        if row["service"] == "gateway" and row["address"]:
            _print_answers(row["address"], console)
    _print_cases(home, console)
    if all(row["state"] == "healthy" for row in rows):
        return RUNNING
    return SICK


def _print_answers(gateway: str, console: Console) -> None:
    """Say how fast each version of a case has answered, red where the case promises more; nothing if nobody asked."""
    try:
        found = answered(http.text(f"{gateway}/metrics"))
    except PerennialError:
        return  # the gateway is not healthy: the table above says so
    if not found:
        return
    table = Table(box=None, pad_edge=False, title="answers since the gateway's start", title_justify="left")
    for column in ("case", "version", "answers", "p50", "p95", "p99", "no answer"):
        table.add_column(column)
    for one in found:
        times = [
            _promised(f"{1000 * seconds:.0f} ms", one.promised.get(quantile, math.inf), seconds, "{:.0f} ms", 1000)
            for quantile, seconds in one.seconds.items()
        ]
        lost = _promised(f"{one.failed:.2%}", one.may_fail, one.failed, "{:.2%}", 1)
        table.add_row(one.case, one.version or "(known rows)", f"{one.answers:,}", *times, lost)
    console.print(table)


def _promised(shown: str, most: float, value: float, form: str, unit: float) -> str:
    """What is shown of a value: red, and beside what is promised, if it is more."""
    return shown if value <= most else f"[red]{shown}[/] (promised: {form.format(unit * most)})"


def _print_cases(home: Path, console: Console) -> None:
    """Say which cases are broken, which are retired, and of which the folder is gone; a ledger that is away is told."""
    found = survey()
    for case in found:
        if case.problem:
            console.print(f"[yellow]broken case[/]  {case.name}: {escape(case.problem)}")
    url = read_settings(home=home).ledger
    try:
        for retirement in ledger.retired(url).now.values():
            console.print(f"[yellow]retired[/]  {escape(str(retirement))}")
        for name, release in ledger.gone(url, {case.name for case in found}).items():
            console.print(
                f"[red]gone case[/]  {name}: version {release.champion} is its champion, and it has no folder: put it "
                f"back, or say that it is not to serve any more: `perennial retire {name} --reason ...`"
            )
    except PerennialError as error:
        console.print(f"[red]ledger[/]  {escape(str(error))}")


if __name__ == "__main__":
    sys.exit(main())
