"""The command line: one subcommand per step (line/order.py), and commands about a case's releases (commands.py).

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
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from pydantic import BaseModel

from pipelines import objects, places
from pipelines.cases import load_case
from pipelines.cli import rolling
from pipelines.cli.commands import COMMANDS, trigger
from pipelines.cli.options import PROGRAM, build_parser
from pipelines.errors import ConfigError, PerennialError
from pipelines.faults import of_case, of_disk, told
from pipelines.line import order, runner
from pipelines.line.step import Action, Run
from pipelines.params import Params
from pipelines.settings import Settings, read_settings
from pipelines.storage import MANIFEST, canonical_json

__all__ = ["build_parser", "main", "run_command"]


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM, also: str = "") -> int:
    """Run one command and return its exit code; ``prog`` and ``also`` are for its help."""
    arguments = build_parser(prog, also).parse_args(argv)
    level = logging.INFO
    if arguments.debug:
        level = logging.DEBUG
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        # What libraries print must not get between the reader of stdout and the one line meant for it.
        with redirect_stdout(sys.stderr):
            answer = _asked(arguments)
    except Exception as error:  # noqa: BLE001 - the last place that can turn an error into one clear line
        if arguments.debug:
            traceback.print_exc()
        return _failed(error, debug=arguments.debug)
    try:
        _print(arguments, answer)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough; what was asked for is done
        _close_stdout()
    except OSError as error:
        _close_stdout()
        mend = "make room, and run again"
        said = f"the answer of {arguments.command} cannot be written to stdout ({error}): {mend}"
        print(said, file=sys.stderr)  # noqa: T201
        return 1
    if arguments.command in COMMANDS and not COMMANDS[arguments.command].holds(answer):
        return 1
    return 0


def _asked(arguments: argparse.Namespace) -> Any:
    settings = read_settings()
    places.keep_closed(settings.root)
    objects.attach(settings)
    params = None
    if arguments.case is not None and (arguments.command not in COMMANDS or COMMANDS[arguments.command].reads):
        params = load_case(arguments.case).params
    return run_command(arguments, params, settings)


def run_command(given: argparse.Namespace, params: Params | None, settings: Settings) -> Any:
    """Run the step or command that was asked for; a step and an action get what they declare.

    A step's manifest is described as ``{step, case, as_of, key, manifest, facts}``; other answers are given as they
    are.
    """
    if given.command in COMMANDS:
        function = COMMANDS[given.command].run
        more = {name: getattr(given, name) for name in inspect.signature(function).parameters if hasattr(given, name)}
        return function(params, settings, **more)
    assert params is not None
    step = order.BY_NAME[given.command]
    if step is order.ROLLOUT:
        if given.verb is not None:
            return rolling.run(params, settings, given.verb, given.reason)
        if given.as_of is None:
            raise ConfigError(f"rollout needs --as-of, the run's clock, or one of {', '.join(rolling.VERBS)}")
    if isinstance(step, Action):
        answer = runner.act(step, params, settings, {**vars(given), "actor": settings.who})
        if isinstance(answer, BaseModel):
            return answer.model_dump(mode="json")
        return answer
    said = {name: value for name in step.takes if (value := getattr(given, name)) is not None}
    if "trigger" in step.takes:
        said.setdefault("trigger", trigger(params, settings, given.as_of))
    made = runner.run(step, Run(params, settings, given.as_of, **said))
    path = settings.run_dir(params.case, made.as_of) / step.name / MANIFEST
    return made.model_dump(mode="json", include={"step", "case", "as_of", "key", "facts"}) | {"manifest": str(path)}


def _failed(error: Exception, *, debug: bool) -> int:
    """Say on stderr what went wrong, in one line, and give the exit code."""
    known = error if isinstance(error, PerennialError) else of_disk(error) or of_case(error)
    if known is not None:
        print(f"{type(known).__name__}: {told(known)}", file=sys.stderr)  # noqa: T201
        return known.exit_code
    hint = "" if debug else "; this is a mistake in the program: run again with --debug and report it"
    print(f"{type(error).__name__}: {error}{hint}", file=sys.stderr)  # noqa: T201
    return 1


def _print(arguments: argparse.Namespace, answer: Any) -> None:
    """Tables for a person on a terminal, else one line of JSON."""
    if not sys.stdout.isatty() or arguments.json:
        print(canonical_json(answer))  # noqa: T201
        return
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few characters shows "?" for the others
        sys.stdout.reconfigure(errors="replace")
    # What stands in square brackets is somebody's text, not markup.
    Console(markup=False, highlight=False).print(_table(arguments.command, answer))


def _table(name: str, answer: Any) -> Any:
    from pipelines.reports import answers

    command = COMMANDS.get(name)
    if name == order.ROLLOUT.name and "says" in answer:
        return rolling.table(answer)
    if command is None or command.table is None:
        return answers.tables(name, answer)
    return command.table(answer)


def _close_stdout() -> None:
    """Send what is left in the buffer nowhere, or the interpreter would fail with it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
