"""The command line: one subcommand per step, and commands about a case's releases.

stdout carries one line of JSON (a table where a person asks for the history), logs go to stderr. Exit codes: 0 ok,
1 an error or an answer of no, 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipelines import ledger
from pipelines.config import Params, Settings, case_names, load_params
from pipelines.contracts import Manifest, Trigger
from pipelines.errors import ConfigError, PerennialError
from pipelines.steps import DRIFT, TRAINING
from pipelines.storage import MANIFEST, canonical_json

STEPS = Path(__file__).parent / "steps"
DEFAULT_POLICIES = "never,monthly,quarterly,drift,performance,oracle"
ORDER = (*TRAINING[:-1], *DRIFT)
"""How help lists the steps; those that are in no line follow by name."""


def _history(params: Params, settings: Settings) -> dict[str, Any]:
    """The releases of a case: which version, since when, by whom, why, and on which verdict."""
    from pipelines.reports import history

    return {"case": params.case, "releases": history.releases(settings, params.case)}


def _history_table(answer: dict[str, Any]) -> Any:
    from pipelines.reports import history

    return history.table(answer["case"], answer["releases"])


def _reproduce(params: Params, settings: Settings, *, version: int) -> dict[str, Any]:
    """Train a registered version again from its record, and name the first layer that differs if its weights do."""
    from pipelines.reproduction import retrain

    return retrain.reproduce(settings, params.case, version)


def _replay(params: Params, settings: Settings, **asked: Any) -> dict[str, Any]:
    """Replay history under several retrain policies, and show loss against cost: JSON, a picture and a page."""
    from pipelines.replay import command

    return command.run(params, settings, asked)


def _replay_table(answer: dict[str, Any]) -> Any:
    from pipelines.replay import command

    return command.table(answer)


def _replay_options(command: argparse.ArgumentParser) -> None:
    own = "default: the case's own, replay in params.yaml"
    command.add_argument("--policies", default=DEFAULT_POLICIES, metavar="LIST", help=f"with commas, of {DEFAULT_POLICIES} (default: all)")
    command.add_argument("--since", type=parse_day, metavar="DAY", help=f"the first champion learns from the rows before it; {own}")
    command.add_argument("--until", type=parse_day, metavar="DAY", help=f"where it ends; {own}")
    command.add_argument("--months", type=int, metavar="N", help="so many calendar months from the start instead of --until")
    command.add_argument("--price", type=float, metavar="NATS", help=f"what a retraining must save to have paid: mean log-loss of one tick; {own}")
    command.add_argument(
        "--seeds", type=parse_seeds, default=(), metavar="LIST", help="training seeds with commas, to show means over them; default: the case's"
    )


COMMANDS: dict[str, Callable[..., Any]] = {"history": _history, "reproduce": _reproduce, "replay": _replay}
"""Commands about a case that are no steps; the first line of the docstring is their help, the answer is printed."""
OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {"replay": _replay_options}
"""Commands with options of their own; the command gets all of them by name."""
HOLDS: dict[str, Callable[[Any], bool]] = {"reproduce": lambda answer: answer["identical"]}
"""Commands that answer a question: exit code 1 says no."""
TABLES: dict[str, Callable[[Any], Any]] = {"history": _history_table, "replay": _replay_table}
"""What a person at a terminal gets instead of the JSON line, unless ``--json`` asks for it."""


def step_names() -> list[str]:
    """The steps there are, in the order of the line."""
    found = {path.stem for path in STEPS.glob("*.py")} - {"__init__"}
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def parse_as_of(text: str) -> datetime:
    """A date or an ISO 8601 time as an instant in UTC; without a zone it is meant in UTC.

    Raises argparse's own error if it is neither, or not a whole second.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a date nor an ISO 8601 time: write 2009-05-01 or 2009-05-01T02:00:00Z") from error
    if moment.microsecond:
        raise argparse.ArgumentTypeError(f"{text!r} has a fraction of a second: a run is named by whole seconds")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def parse_day(text: str) -> date:
    """A date; raises argparse's own error if it is none."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date: write 2009-05-01") from error


def parse_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers with commas, each once; raises argparse's own error if one is none.

    >>> parse_seeds("2,3,2")
    (2, 3)
    """
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers: write 0,1,2") from error


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports no step, so that help and mistakes are answered at once."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description="Perennial's loop by hand: each step reads what the step before it left, and running it again changes nothing.",
        epilog=f"cases: {', '.join(case_names())}. State lies in PERENNIAL_HOME (runs/local), see pipelines/config.py for all settings.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name in step_names():
        tree = ast.parse((STEPS / f"{name}.py").read_text())
        command = _command(commands, name, _first_line(ast.get_docstring(tree)).removeprefix(f"{name}: "))
        takes = _arguments_of_run(tree)
        if "as_of" in takes:
            # A step's folder is named by its as_of; what leaves no folder may know a default of its own.
            needed, about = ("run_dir" in takes), "a date or ISO 8601 time, UTC if no zone is given"
            command.add_argument("--as-of", required=needed, type=parse_as_of, metavar="TIME", help=f"the run's clock: {about}")
        if "trigger" in takes:
            command.add_argument("--trigger", choices=get_args(Trigger), help="what started the run: initial before the first champion, else manual")
        if "reason" in takes:
            command.add_argument("--reason", required=True, metavar="TEXT", help="why; kept in the ledger for good")
    for name, function in COMMANDS.items():
        command = _command(commands, name, _first_line(function.__doc__))
        if "version" in inspect.signature(function).parameters:
            command.add_argument("--version", required=True, type=int, metavar="NUMBER", help="a model version, as MLflow, Triton and the history number it")
        if name in OPTIONS:
            OPTIONS[name](command)
        if name in TABLES:
            command.add_argument("--json", action="store_true", help="one line of JSON, also on a terminal")
    return parser


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.add_argument("--case", required=True, metavar="CASE", help=f"one of {', '.join(case_names())}")
    command.add_argument("--debug", action="store_true", help="show debug logs, and the traceback of an error")
    return command


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _arguments_of_run(tree: ast.Module) -> set[str]:
    runs = [node.args for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    return {argument.arg for arguments in runs for argument in (*arguments.args, *arguments.kwonlyargs)}


def run_command(given: argparse.Namespace, params: Params, settings: Settings) -> Any:
    """Run the step or command that was asked for; a step gets those arguments that its ``run`` names.

    A step's manifest is described as ``{step, case, as_of, key, manifest, facts}``; other answers are given as they are.
    """
    if given.command in COMMANDS:
        common = {"command", "case", "debug", "json"}
        more = {name: value for name, value in vars(given).items() if name not in common}
        return COMMANDS[given.command](params, settings, **more)
    run = import_module(f"pipelines.steps.{given.command}").run
    takes = set(inspect.signature(run).parameters)
    offers: dict[str, Any] = {"params": params, "settings": settings, "actor": settings.who, "reason": getattr(given, "reason", None)}
    if getattr(given, "as_of", None) is not None:
        offers |= {"as_of": given.as_of, "run_dir": settings.run_dir(params.case, given.as_of)}
    if "trigger" in takes:
        champion = ledger.champion_before(settings.ledger, params.case, given.as_of)
        offers["trigger"] = given.trigger or ("initial" if champion is None else "manual")
    answer = run(**{name: value for name, value in offers.items() if name in takes})
    if not isinstance(answer, Manifest):
        return answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
    manifest = settings.run_dir(params.case, answer.as_of) / given.command / MANIFEST
    return answer.model_dump(mode="json", include={"step", "case", "as_of", "key", "facts"}) | {"manifest": str(manifest)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if arguments.debug else logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        # What libraries print must not get between the reader of stdout and the one line meant for it.
        with redirect_stdout(sys.stderr):
            settings = _settings()
            answer = run_command(arguments, load_params(arguments.case), settings)
    except Exception as error:  # noqa: BLE001 - the last place that can turn an error into one clear line
        known = isinstance(error, PerennialError)
        if arguments.debug:
            traceback.print_exc()
        hint = "" if known or arguments.debug else "; this is a mistake in the program: run again with --debug and report it"
        print(f"{type(error).__name__}: {error}{hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code if isinstance(error, PerennialError) else 1
    if arguments.command in TABLES and not arguments.json and sys.stdout.isatty():
        from rich.console import Console

        Console().print(TABLES[arguments.command](answer))
    else:
        print(canonical_json(answer))  # noqa: T201
    return 0 if arguments.command not in HOLDS or HOLDS[arguments.command](answer) else 1


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        mistakes = "; ".join(f"PERENNIAL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False))
        raise ConfigError(f"the environment has {error.error_count()} mistake(s): {mistakes}") from error
