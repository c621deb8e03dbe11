"""The command line: one subcommand per step, and commands about a case's releases.

stdout carries one line of JSON, logs go to stderr. Exit codes: 0 ok, 1 an error, 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pipelines.config import Params, Settings, case_names, load_params
from pipelines.contracts import Manifest, Trigger
from pipelines.errors import ConfigError, PerennialError

STEPS = Path(__file__).parent / "steps"
ORDER = ("ingest", "validate", "dataset", "train", "export", "evaluate", "gate", "register", "rollout", "profile", "drift")
"""How help lists the steps; steps that are not named here follow by name."""
TRIGGERED = ("gate", "register", "rollout")
"""Steps that record what started the run."""


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


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports no step, so that help and mistakes are answered at once."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description="Perennial's loop by hand: each step reads what the step before it left, and running it again changes nothing.",
        epilog=f"cases: {', '.join(case_names())}. State lies in PERENNIAL_HOME (runs/local), see pipelines/config.py for all settings.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name in step_names():
        about = _about(STEPS / f"{name}.py").removeprefix(f"{name}: ")
        command = _command(commands, name, about)
        command.add_argument(
            "--as-of", required=True, type=parse_as_of, metavar="TIME", help="the run's clock: a date or ISO 8601 time, UTC if no zone is given"
        )
        if name in TRIGGERED:
            command.add_argument("--trigger", choices=get_args(Trigger), default="manual", help="what started the run (manual)")
    return parser


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.add_argument("--case", required=True, metavar="CASE", help=f"one of {', '.join(case_names())}")
    command.add_argument("--debug", action="store_true", help="show debug logs, and the traceback of an error")
    return command


def _about(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def run_step(name: str, params: Params, settings: Settings, as_of: datetime, trigger: str | None) -> Mapping[str, Any]:
    """Run one step at ``as_of`` and describe its manifest: ``{step, case, as_of, key, manifest, facts}``."""
    run_dir = settings.run_dir(params.case, as_of)
    extra = {} if trigger is None else {"trigger": trigger}
    manifest: Manifest = import_module(f"pipelines.steps.{name}").run(params, settings, run_dir, as_of, **extra)
    described = manifest.model_dump(mode="json", include={"step", "case", "as_of", "key", "facts"})
    return described | {"manifest": str(run_dir / name / "manifest.json")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if arguments.debug else logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        # What libraries print must not get between the reader of stdout and the one line meant for it.
        with redirect_stdout(sys.stderr):
            answer = run_step(arguments.command, load_params(arguments.case), _settings(), arguments.as_of, getattr(arguments, "trigger", None))
    except Exception as error:  # noqa: BLE001 - the last place that can turn an error into one clear line
        known = isinstance(error, PerennialError)
        if arguments.debug:
            traceback.print_exc()
        hint = "" if known or arguments.debug else "; this is a mistake in the program: run again with --debug and report it"
        print(f"{type(error).__name__}: {error}{hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code if isinstance(error, PerennialError) else 1
    print(json.dumps(answer, sort_keys=True))  # noqa: T201
    return 0


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        mistakes = "; ".join(f"PERENNIAL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_url=False))
        raise ConfigError(f"the environment has {error.error_count()} mistake(s): {mistakes}") from error
