"""The command line: one subcommand per step, and commands about a case's releases.

stdout carries one line of JSON, on a terminal tables (``--json`` gives the line there too); logs go to stderr. Exit
codes: 0 ok, 1 an error or an answer of no, 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import inspect
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from typing import Any, get_args

from pydantic import BaseModel

from pipelines import ledger, moments, places
from pipelines.case_files import case_names
from pipelines.cases import Case, load_case
from pipelines.cases.surveying import survey
from pipelines.contracts import AlertRule, Trigger
from pipelines.errors import ConfigError, PerennialError
from pipelines.faults import of_case, of_disk, told
from pipelines.files import write_atomic
from pipelines.line import facts, order, runner
from pipelines.line.step import Action, Run, Step
from pipelines.params import Params
from pipelines.settings import Settings, read_settings
from pipelines.storage import MANIFEST, canonical_json

DEFAULT_POLICIES = "never,monthly,quarterly,drift,performance,oracle"
WHY = "why; kept for good"


def _history(params: Params, settings: Settings) -> dict[str, Any]:
    """The releases of a case: which version, since when, by whom, why, and on which verdict.

    And the verdicts that released nothing.
    """
    from pipelines.reports import history

    return {
        "case": params.case,
        "releases": history.releases(settings, params.case),
        "verdicts": history.verdicts(settings, params.case),
    }


def _history_table(answer: dict[str, Any]) -> Any:
    from pipelines.reports import history

    return history.table(answer["case"], answer["releases"], answer["verdicts"])


def _reproduce(params: Params, settings: Settings, *, version: int) -> dict[str, Any]:
    """Train a registered version again from its record, and name the first layer that differs if its weights do."""
    from pipelines.reproduction import retrain

    return retrain.reproduce(settings, params.case, version)


def _replay(
    params: Params,
    settings: Settings,
    *,
    policies: str = DEFAULT_POLICIES,
    since: datetime | None = None,
    until: datetime | None = None,
    months: int | None = None,
    price: float | None = None,
    seeds: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Replay history under several retrain policies, and show loss against cost: JSON, a picture and a page."""
    from pipelines.replay import command

    asked = {
        "policies": policies,
        "since": since and since.date(),
        "until": until and until.date(),
        "months": months,
        "price": price,
        "seeds": seeds,
    }
    return command.run(params, settings, asked)


def _replay_table(answer: dict[str, Any]) -> Any:
    from pipelines.replay import command

    return command.table(answer)


def _retrain(params: Params, settings: Settings, *, as_of: datetime, reason: str) -> dict[str, Any]:
    """Train, judge and release a candidate by hand: the whole line, as the training DAG runs it."""
    run = Run(params, settings, as_of, trigger=_trigger(params, settings, as_of), reason=reason)
    made = {step.name: runner.run(step, run) for step in order.TRAINING if isinstance(step, Step)}
    verdict, release = facts.GateFacts.of(made["gate"]), facts.RolloutFacts.of(made["rollout"])
    return {
        "case": params.case,
        "as_of": as_of.isoformat(),
        "version": release.version,
        "decision": verdict.decision,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "outcome": release.outcome,
        "champion": runner.act(order.RECONCILE, params, settings, {})["champion"],
    }


def _alerts(params: Params, settings: Settings) -> dict[str, Any]:
    """The alerts that a case had: since when, how often found, open or resolved; and the silences in force."""
    found = ledger.alerts(settings.ledger, params.case)
    newest = ledger.alert_runs(settings.ledger, params.case, last=1)
    silences = (
        ledger.silences(settings.ledger, params.case, datetime.fromisoformat(newest[0]["as_of"])) if newest else []
    )
    return {"case": params.case, "alerts": [alert.model_dump(mode="json") for alert in found], "silences": silences}


def _silence(params: Params, settings: Settings, *, rule: str, until: datetime, reason: str) -> dict[str, Any]:
    """Tell nobody of a rule's alerts until a time; they are still counted."""
    ledger.silence(settings.ledger, case=params.case, rule=rule, until=until, reason=reason, actor=settings.who)
    return {"case": params.case, "rule": rule, "until": until.isoformat(), "actor": settings.who}


def _metrics(
    params: Params | None, settings: Settings, *, port: int | None = None, host: str = "127.0.0.1"
) -> dict[str, Any]:
    """Write what Prometheus may know to metrics.prom in the state folder, or serve it at /metrics on a port."""
    from pipelines.reports import metrics

    def asked() -> tuple[list[Params], dict[str, str]]:
        found = survey(settings) if params is None else [Case(params.case, params)]
        return [case.params for case in found if case.params is not None], {
            case.name: case.problem for case in found if case.problem
        }

    if port is not None:
        metrics.serve(settings, asked, host, port)
    path = settings.root / "metrics.prom"
    readable, broken = asked()
    text = metrics.render(settings, readable, broken)
    write_atomic(path, text.encode())
    return {"file": str(path), "series": sum(not line.startswith("#") for line in text.splitlines()), "broken": broken}


def _audit(params: Params | None, settings: Settings) -> dict[str, Any]:
    """Check the ledger: every row against its hashes and the journal, what refers to what.

    And the files that releases go by.
    """
    from pipelines import audit

    return audit.audit(settings, params.case if params else None)


COMMANDS: dict[str, Callable[..., Any]] = {
    "history": _history,
    "audit": _audit,
    "reproduce": _reproduce,
    "retrain": _retrain,
    "alerts": _alerts,
    "silence": _silence,
    "metrics": _metrics,
    "replay": _replay,
}
"""Commands about a case that are no steps; the first line of the docstring is their help, the answer is printed."""
EVERY_CASE = {"metrics", "audit"}
"""Commands that speak of all cases unless one is named."""
HOLDS: dict[str, Callable[[Any], bool]] = {
    "reproduce": lambda answer: answer["identical"],
    "audit": lambda answer: answer["ok"],
}
"""Commands that answer a question: exit code 1 says no."""
TABLES: dict[str, Callable[[Any], Any]] = {"history": _history_table, "replay": _replay_table}
"""What a person at a terminal gets of these commands.

The answers of all others are drawn alike (reports/answers.py).
"""


def parse_as_of(text: str) -> datetime:
    """A date or an ISO 8601 time as an instant in UTC, as Airflow reads it too; argparse's own error if it is none."""
    try:
        return moments.parse_as_of(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers with commas, each once; raises argparse's own error if one is none.

    >>> parse_seeds("2,3,2")
    (2, 3)
    """
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers: write 0,1,2") from error


_MOMENT = "a date or ISO 8601 time, UTC if no zone is given"
OPTIONS: dict[str, dict[str, Any]] = {
    "as_of": {"type": parse_as_of, "metavar": "TIME", "help": f"the run's clock: {_MOMENT}"},
    "until": {"type": parse_as_of, "metavar": "TIME", "help": _MOMENT},
    "rule": {"choices": get_args(AlertRule), "help": "whose alerts"},
    "reason": {"metavar": "TEXT", "help": WHY},
    "trigger": {
        "choices": get_args(Trigger),
        "help": "what started the run: initial before the first champion, else manual",
    },
    "host": {"metavar": "ADDRESS", "help": "where to listen (127.0.0.1)"},
    "port": {"type": int, "metavar": "PORT", "help": "listen until the process is ended"},
    "since": {
        "type": parse_as_of,
        "metavar": "TIME",
        "help": f"the first champion learns from the rows before it: {_MOMENT}; default: the case's own",
    },
    "policies": {"metavar": "LIST", "help": f"with commas, of {DEFAULT_POLICIES}; default: all"},
    "months": {"type": int, "metavar": "N", "help": "so many calendar months from the start instead of --until"},
    "price": {
        "type": float,
        "metavar": "NATS",
        "help": "what a retraining must save to have paid: mean log-loss of one tick; default: the case's own",
    },
    "seeds": {
        "type": parse_seeds,
        "metavar": "LIST",
        "help": "training seeds with commas, to show means over them; default: the case's",
    },
    "from_version": {
        "type": int,
        "metavar": "NUMBER",
        "help": (
            "the version to take back: nothing changes if another one serves; default: what was promoted last, once"
        ),
    },
    "despite_verdict": {
        "action": "store_true",
        "help": "release a version that the gate did not promote: the row says who did so and why",
    },
    "version": {
        "type": int,
        "metavar": "NUMBER",
        "help": "a model version, as MLflow, Triton and the history number it",
    },
}
"""What the commands take beside the case, by the names of their functions' arguments.

What has a default need not be given.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports no step, so that help and mistakes are answered at once."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description=(
            "Perennial's loop by hand: each step reads what the step before it left, and running it again "
            "changes nothing."
        ),
        epilog=(
            f"cases: {', '.join(case_names())}. State lies in PERENNIAL_HOME (runs/local), "
            "see pipelines/settings.py for all settings."
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for step in order.ALL:
        command = _command(commands, step.name, step.about)
        must = ("as_of",) if isinstance(step, Step) else step.needs
        for option in (*must, *step.takes):
            command.add_argument(f"--{option.replace('_', '-')}", **_option(option, required=option in must))
    for name, function in COMMANDS.items():
        command = _command(commands, name, _first_line(function.__doc__))
        for option, argument in inspect.signature(function).parameters.items():
            if option in OPTIONS:
                needed = argument.default is argument.empty
                command.add_argument(
                    f"--{option.replace('_', '-')}",
                    required=needed,
                    default=None if needed else argument.default,
                    **OPTIONS[option],
                )
    return parser


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.add_argument(
        "--case", required=name not in EVERY_CASE, metavar="CASE", help=f"one of {', '.join(case_names())}"
    )
    command.add_argument("--debug", action="store_true", help="show debug logs, and the traceback of an error")
    command.add_argument("--json", action="store_true", help="one line of JSON, also on a terminal")
    return command


def _option(name: str, *, required: bool) -> dict[str, Any]:
    """An option of a step or an action, as argparse takes it."""
    return {**OPTIONS[name], **({"required": True} if required else {})}


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def run_command(given: argparse.Namespace, params: Params | None, settings: Settings) -> Any:
    """Run the step or command that was asked for; a step and an action get what they declare.

    A step's manifest is described as ``{step, case, as_of, key, manifest, facts}``; other answers are given as they
    are.
    """
    if given.command in COMMANDS:
        function = COMMANDS[given.command]
        more = {name: getattr(given, name) for name in inspect.signature(function).parameters if hasattr(given, name)}
        return function(params, settings, **more)
    assert params is not None
    step = order.BY_NAME[given.command]
    if isinstance(step, Action):
        answer = runner.act(step, params, settings, {**vars(given), "actor": settings.who})
        return answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
    said = {name: value for name in step.takes if (value := getattr(given, name)) is not None}
    if "trigger" in step.takes:
        said.setdefault("trigger", _trigger(params, settings, given.as_of))
    made = runner.run(step, Run(params, settings, given.as_of, **said))
    path = settings.run_dir(params.case, made.as_of) / step.name / MANIFEST
    return made.model_dump(mode="json", include={"step", "case", "as_of", "key", "facts"}) | {"manifest": str(path)}


def _trigger(params: Params, settings: Settings, as_of: datetime) -> Trigger:
    """What a run by hand is: the case's first, or one that somebody wanted."""
    return "initial" if ledger.champion_before(settings.ledger, params.case, as_of) is None else "manual"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        # What libraries print must not get between the reader of stdout and the one line meant for it.
        with redirect_stdout(sys.stderr):
            settings = read_settings()
            places.keep_closed(settings.root)
            answer = run_command(
                arguments, None if arguments.case is None else load_case(arguments.case).params, settings
            )
    except Exception as error:  # noqa: BLE001 - the last place that can turn an error into one clear line
        known = error if isinstance(error, PerennialError) else of_disk(error) or of_case(error)
        if arguments.debug:
            traceback.print_exc()
        if known is not None:
            print(f"{type(known).__name__}: {told(known)}", file=sys.stderr)  # noqa: T201
            return known.exit_code
        hint = "" if arguments.debug else "; this is a mistake in the program: run again with --debug and report it"
        print(f"{type(error).__name__}: {error}{hint}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        _answer(arguments, answer)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough; what was asked for is done
        _close_stdout()
    except OSError as error:
        _close_stdout()
        mend = "make room, and run again"
        said = f"the answer of {arguments.command} cannot be written to stdout ({error}): {mend}"
        print(said, file=sys.stderr)  # noqa: T201
        return 1
    return 0 if arguments.command not in HOLDS or HOLDS[arguments.command](answer) else 1


def _answer(arguments: argparse.Namespace, answer: Any) -> None:
    """Tables for a person on a terminal, else one line of JSON."""
    if sys.stdout.isatty() and not arguments.json:
        from rich.console import Console

        from pipelines.reports import answers

        drawn = (
            TABLES[arguments.command](answer)
            if arguments.command in TABLES
            else answers.tables(arguments.command, answer)
        )
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few characters shows "?" for the others
            sys.stdout.reconfigure(errors="replace")
        # What stands in square brackets is somebody's text, not markup.
        Console(markup=False, highlight=False).print(drawn)
    else:
        print(canonical_json(answer))  # noqa: T201


def _close_stdout() -> None:
    """Send what is left in the buffer nowhere, or the interpreter would fail with it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
