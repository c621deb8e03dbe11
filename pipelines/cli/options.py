"""What the command line takes: the options by name, and the parser that is made of what steps and commands declare."""

from __future__ import annotations

import argparse
import inspect
from datetime import datetime
from typing import Any, get_args

from pipelines import moments
from pipelines.case_files import case_names
from pipelines.cli.commands import COMMANDS, LENGTHS, POLICIES
from pipelines.cli.rolling import VERBS
from pipelines.contracts import AlertRule, Trigger
from pipelines.errors import ConfigError
from pipelines.line import order
from pipelines.line.step import Step

WHY = "why; kept for good"


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
        return _whole_numbers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers: write 0,1,2") from error


def parse_lengths(text: str) -> tuple[int, ...]:
    """Days with commas, each once; raises argparse's own error if one is no whole number above 0.

    >>> parse_lengths("90,30,90")
    (90, 30)
    """
    try:
        return _whole_numbers(text, least=1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of days: write 30,90,365") from error


def _whole_numbers(text: str, least: int | None = None) -> tuple[int, ...]:
    """Whole numbers with commas, each once; ValueError if one is none, or below the ``least``."""
    found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if least is not None and min(found) < least:
        raise ValueError(f"{min(found)} is below {least}")
    return found


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
    "policies": {"metavar": "LIST", "help": f"with commas, of {POLICIES} or headroom at any price; default: these"},
    "months": {"type": int, "metavar": "N", "help": "so many calendar months from the start instead of --until"},
    "price": {
        "type": float,
        "metavar": "LOSS",
        "help": "what a retraining must save to have paid: mean log-loss of one tick in nats, or of a number "
        "mean squared error; default: the case's own",
    },
    "seeds": {
        "type": parse_seeds,
        "metavar": "LIST",
        "help": "training seeds with commas, to show means over them; default: the case's",
    },
    "lengths": {
        "type": parse_lengths,
        "metavar": "LIST",
        "help": "days with commas, to compare with dataset.window_days; default: " + ",".join(map(str, LENGTHS)),
    },
    "from_version": {
        "type": int,
        "metavar": "NUMBER",
        "help": (
            "the version to take back: nothing changes if another one serves; default: what was promoted last, once"
        ),
    },
    "undo": {"action": "store_true", "help": "take it back into service: its champion serves again"},
    "despite_verdict": {
        "action": "store_true",
        "help": "release a version that the gate did not promote: the row says who did so and why",
    },
    "from_": {
        "metavar": "WHERE",
        "help": "a Parquet, CSV or JSON lines file with a row for each event, a pattern of several in quotes, or an "
        "address: https://, s3://, gs://, abfs://; with --table or --query where the database's address is, env:NAME, "
        "file:PATH or connection:ID",
    },
    "table": {"metavar": "NAME", "help": "a table of a database"},
    "query": {"metavar": "SQL", "help": "a query of a database"},
    "format_": {"choices": ("parquet", "csv", "json"), "help": "what the files are; default: what their ending says"},
    "label_time": {"metavar": "COLUMN", "help": "when the label became known"},
    "zone": {"metavar": "ZONE", "help": "of times without one, like Europe/Berlin; default: UTC, and it is told"},
    "unit": {"choices": ("s", "ms", "us", "ns"), "help": "of times that are numbers since 1970; default: what fits"},
    "pin": {"action": "store_true", "help": "let DVC pin the file"},
    "label": {"metavar": "COLUMN", "help": "what is predicted; empty where it is not known yet"},
    "time": {"metavar": "COLUMN", "help": "when the event happened"},
    "id_": {
        "metavar": "COLUMN",
        "help": "what names a row; default: made of what the row holds, for an import id (- makes one)",
    },
    "target": {"choices": ("number", "binary", "classes"), "help": "what the label is; default: what it looks like"},
    "known": {
        "action": "append",
        "metavar": "COLUMN",
        "help": "known when the answer is asked for, however much it tells: no leak; may be given several times",
    },
    "without": {"action": "append", "metavar": "COLUMN", "help": "leave it out; may be given several times"},
    "score": {
        "metavar": "COLUMN",
        "help": "what was answered: the probability of 1, or the number; of classes a list of all probabilities",
    },
    "column": {
        "action": "append",
        "metavar": "NAME=COLUMN",
        "help": "a field that the file calls otherwise; may be given several times",
    },
    "label_values": {"metavar": "LIST", "help": "texts of the label with commas, that of 0 first, like no,yes"},
    "to": {
        "metavar": "FOLDER",
        "help": "where the case's folder is put; default: the first of PERENNIAL_CASES, else pipelines/cases of a "
        "checkout, else cases here",
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


PROGRAM = "python -m pipelines"


def build_parser(prog: str = PROGRAM, also: str = "") -> argparse.ArgumentParser:
    """The parser; it imports no step, so that help and mistakes are answered at once.

    ``also`` is one more sentence of its help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(
            "Perennial's loop by hand: each step reads what the step before it left, and running it again "
            f"changes nothing. {also}"
        ),
        epilog=(
            f"cases: {', '.join(case_names())}. State lies in PERENNIAL_HOME (runs/local), "
            "see pipelines/settings.py for all settings."
        ),
    )
    parser.set_defaults(program=prog)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for step in order.ALL:
        must: tuple[str, ...] = ("as_of",)
        if not isinstance(step, Step):
            must = step.needs
        parser_of_step = _command(commands, step.name, step.about)
        if step is order.ROLLOUT:
            _add_verbs(parser_of_step)
            must = ()
        for name in (*must, *step.takes):
            _add(parser_of_step, name, required=name in must)
    for name, command in COMMANDS.items():
        about = (command.run.__doc__ or "").partition("\n")[0]
        parser_of_command = _command(commands, name, about, needs_case=not command.every_case, named=command.about)
        for option, argument in inspect.signature(command.run).parameters.items():
            if option not in OPTIONS:
                continue
            if argument.default is argument.empty:
                _add(parser_of_command, option, required=True)
            else:
                _add(parser_of_command, option, default=argument.default)
    return parser


def _add_verbs(rollout: argparse.ArgumentParser) -> None:
    """What a person may say to a rollout instead of running the step."""
    rollout.add_argument(
        "verb",
        metavar="VERB",
        nargs="?",
        choices=VERBS,
        help=f"look at a rollout in stages, or move it: {', '.join(VERBS)}; without it the step is run",
    )
    _add(rollout, "as_of")
    _add(rollout, "reason", default="")


def _command(
    commands: Any, name: str, about: str, *, needs_case: bool = True, named: str = "option"
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    known = f"one of {', '.join(case_names())}"
    if named == "new":
        command.add_argument("name", metavar="NAME", help="of the new case: a letter, then letters, digits and _")
        command.set_defaults(case=None)
    elif named == "place":
        command.add_argument("case", metavar="NAME", help=known)
    elif named == "either":
        one = command.add_mutually_exclusive_group(required=True)
        one.add_argument("case", metavar="NAME", nargs="?", default=argparse.SUPPRESS, help=known)
        one.add_argument("--case", metavar="CASE", default=argparse.SUPPRESS, help="the same")
    else:
        command.add_argument("--case", required=needs_case, metavar="CASE", help=known)
    command.add_argument("--debug", action="store_true", help="show debug logs, and the traceback of an error")
    command.add_argument("--json", action="store_true", help="one line of JSON, also on a terminal")
    return command


def _add(command: argparse.ArgumentParser, name: str, **more: Any) -> None:
    """Add the option of that name; ``more`` says whether it must be given, or what stands for it.

    A name that Python has for itself has a _ behind it, which the option lacks.
    """
    command.add_argument(f"--{name.rstrip('_').replace('_', '-')}", dest=name, **OPTIONS[name], **more)
