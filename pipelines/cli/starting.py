"""A new case from a look at data: `perennial init`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import case_files
from pipelines.cases.receiving import Received, count_reasons, receive
from pipelines.cli import looking
from pipelines.contracts import Window
from pipelines.data import contract
from pipelines.drift.profile import spec
from pipelines.errors import ConfigError, DataError
from pipelines.inspection import declaring, writing
from pipelines.inspection.declaring import Declared
from pipelines.inspection.guesses import expression
from pipelines.inspection.table import Asked, Found, inspect
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.provenance import wall_time
from pipelines.settings import Settings

PROFILED = 20_000
"""Rows of which the scales of profile.json are made, evenly spaced in time."""
MANY = 0.05
"""From this share on repeats are told, where nothing names a row."""


def init(
    asked: Asked, where: looking.Where, settings: Settings, *, to: str | None, pin: bool, program: str
) -> dict[str, Any]:
    """Look at data, write a case of it, and say what was guessed and what to do next.

    ``to`` is the folder that the case's own is put into, ``pin`` asks DVC to pin the file, ``program`` is how the
    command was called. Nothing is written unless the case works: its parameters can be read, and its rows keep its
    contract. Raises what :func:`pipelines.inspection.table.inspect` raises, ConfigError if the name is taken, and
    DataError if too few rows can be used.
    """
    folder = _home(to) / asked.case
    _check_free(asked.case, folder)
    if pin:
        _check_dvc(Path(where.address))
    look = looking.look_at(asked, where, settings)
    found = inspect(look.frame, asked, look.extent)
    how = declaring.declared(found, look.frame, look.place)
    if how.why_not and look.place.block["kind"] == "sql":
        raise DataError(f"{'; '.join(how.why_not)}: mend it in the database, or by --query with casts")
    files = writing.files(found, look.place, how, spec.of_rows(found.fields, _spread(found.rows)))
    params = _checked(files["params.yaml"], asked.case, settings)
    counts = _kept(look, found, how, params)
    writing.write(folder, files)
    pinned = _pin(Path(where.address)) if pin else ""
    return {
        "case": asked.case,
        "folder": str(folder),
        "rows": counts,
        "looked_at": look.frame.height,
        "source": "source.py: " + "; ".join(how.why_not) if how.why_not else "declared in params.yaml, no code",
        "label": f"{found.fields.label}: {found.label.kind}, {found.label.why}",
        "fields": dict(Counter(type(field).__name__ for field in found.fields.fields)),
        "model": writing.model_of(found.fields.target)[0]["family"],
        "left_out": found.left_out,
        "look_at": [*found.notes, *_strange(found, counts)],
        "pinned": pinned,
        "next": _next(asked.case, folder, params, program),
    }


def _home(to: str | None) -> Path:
    """The folder that the case's own folder is put into.

    Without a name it is the first of ``PERENNIAL_CASES``, in a checkout its own cases, and else ``cases`` here: an
    installed package is nobody's place for code.
    """
    if to:
        return Path(to).expanduser().resolve()
    return case_files.for_new()


def _check_free(case: str, folder: Path) -> None:
    writing.check_name(case)
    if folder.exists() or case in case_files.case_names():
        where = folder if folder.exists() else case_files.folder_of(case)
        raise ConfigError(f"{where} is there already: remove it, or name the case otherwise; nothing was written")
    if find_spec(f"pipelines.cases.{case}") is not None:
        raise ConfigError(f"{case!r} is the name of a module of pipelines/cases: name the case otherwise")


def _spread(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.gather_every(1 + rows.height // PROFILED)


def _checked(text: str, case: str, settings: Settings) -> Params:
    """The parameters as they can be read from what will be written."""
    settings.root.mkdir(parents=True, exist_ok=True)
    path = settings.root / f".{case}.params.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        return load_params(case, path)
    finally:
        path.unlink()


def _kept(look: looking.Look, found: Found, how: Declared, params: Params) -> dict[str, int]:
    """What becomes of the rows as the written source delivers them; DataError if too many are refused.

    Of more rows than were looked at, those of the newest days.
    """
    volume = found.volume
    end = volume.last + timedelta(days=1)
    since = params.period[0]
    if look.extent is not None:
        since = max(since, end - timedelta(days=max(2, volume.looked_at // max(1, round(volume.per_day)))))
    window = Window(start=since, end=end)
    if how.why_not:
        frame = look.frame.select(**{name: expression(text) for name, text in found.reads.items()})
    else:
        frame = looking.read(look, how.options, found.fields, window)
    received = receive(frame, found.fields, window, params)
    good, bad = contract.split(received.rows, found.fields)
    refused = bad.height + received.refused.height
    counts = {"read": received.delivered, "kept": good.height, "refused": refused, "repeats": received.repeats}
    if refused > params.dataset.max_bad_share * (good.height + refused):
        reasons = _reasons(bad, received)
        mend = "mend them in the data, or leave such a column out with --without"
        if found.asked.id is None and "id: not unique" in reasons:
            mend = "rows that are equal in time and fields have different labels: name what tells them apart with --id"
        raise DataError(f"{refused:,} of {good.height + refused:,} rows would be refused: {reasons}: {mend}")
    return counts


def _reasons(bad: pl.DataFrame, received: Received) -> str:
    counts = Counter(contract.count_reasons(bad)) + Counter(count_reasons(received.refused))
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common(5))


def _strange(found: Found, counts: dict[str, int]) -> list[str]:
    """What of the rows is to be told: repeats that may be none, and times that are still to come."""
    told = []
    if found.asked.id is None and counts["repeats"] > MANY * counts["read"]:
        told.append(
            f"{counts['repeats']:,} of {counts['read']:,} rows are equal to another in time and all fields and count "
            "once: if each is an event of its own, name what tells them apart with --id"
        )
    if found.volume.last > wall_time() + timedelta(days=1):
        told.append(
            f"{found.asked.time} goes to {found.volume.last:%Y-%m-%d}, which is still to come: is it the event's time?"
        )
    return told


# --- DVC ----------------------------------------------------------------------------------------


def _check_dvc(path: Path) -> None:
    """Raises ConfigError if DVC cannot pin the file: it is not installed, or the file lies in no repository of it."""
    if find_spec("dvc") is None:
        raise ConfigError("--pin needs DVC, which is not installed: pip install dvc, or leave out --pin")
    if not path.is_file():
        raise ConfigError(f"--pin takes a file on this machine, and {path} is none: leave out --pin")
    if not any((folder / ".dvc").is_dir() for folder in path.resolve().parents):
        raise ConfigError(
            f"--pin: {path} lies in no repository of DVC: run `git init` and `dvc init` there, or leave out --pin"
        )


def _pin(path: Path) -> str:
    """Let DVC pin the file; what it wrote. Raises ConfigError with what DVC says."""
    path = path.resolve()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "add", "--quiet", path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise ConfigError(f"the case is written, and DVC did not pin {path} ({words}): mend it, and run `dvc add`")
    return f"{path}.dvc"


# --- what comes next ----------------------------------------------------------------------------


def _next(case: str, folder: Path, params: Params, program: str) -> list[str]:
    """The three commands that follow, as they can be typed where one stands."""
    command = _typed(program)
    history = f"{command} replay {case}"
    if params.replay is None:  # too short a history for it
        history = f"{shlex.quote(_interpreter())} -m pytest {shlex.quote(str(folder / f'test_{case}.py'))}"
    up = f"{command} up"
    if program.startswith("python"):
        up = "make up" if Path("Makefile").exists() else f"{command.removesuffix('pipelines')}embedded up"
    commands = [f"{command} try {case}", history, up]
    known = [root.resolve() for root in case_files.roots()]
    if folder.parent.resolve() not in {*known, case_files.CASES_ROOT.resolve()}:
        roots = os.pathsep.join(map(str, [*known, folder.parent]))
        commands[0] = f"export {case_files.FOLDERS}={shlex.quote(roots)} && {commands[0]}"
    return commands


def _typed(program: str) -> str:
    """The program as a shell finds it that does not know this environment."""
    if program.startswith("python"):
        return f"{shlex.quote(_interpreter())} -m pipelines"
    found = shutil.which(program)
    called = Path(sys.argv[0])
    if called.name == program and called.exists() and (found is None or not called.samefile(found)):
        return shlex.quote(str(called))
    return program


def _interpreter() -> str:
    found = shutil.which("python")
    if found is not None and os.path.realpath(found) == os.path.realpath(sys.executable) and sys.prefix in found:
        return "python"
    own = Path(sys.executable)
    return str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else str(own)


def table(answer: dict[str, Any]) -> Any:
    """What was written, what to look at, and the next commands."""
    from rich.console import Group
    from rich.text import Text

    rows = answer["rows"]
    read, kept, refused, repeats = (f"{rows[name]:,}" for name in ("read", "kept", "refused", "repeats"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in answer["fields"].items())
    lines = [
        Text(f"{answer['case']} lies in {answer['folder']}", style="bold"),
        Text(f"rows     {kept} of {read} kept, {refused} refused, {repeats} repeats"),
        Text(f"source   {answer['source']}"),
        Text(f"label    {answer['label']}"),
        Text(f"fields   {kinds}; schema.py says why, and from how many rows"),
        Text(f"model    {answer['model']}"),
    ]
    if answer["pinned"]:
        lines.append(Text(f"pinned   {answer['pinned']}: commit it"))
    for heading, items in (
        ("Left out", [f"{column}: {why}" for column, why in answer["left_out"].items()]),
        ("Look at", answer["look_at"]),
    ):
        if items:
            lines += [Text(f"\n{heading}", style="bold"), *(Text(f"  {item}") for item in items)]
    lines += [Text("\nNext", style="bold"), *(Text(f"  {command}") for command in answer["next"])]
    return Group(*lines)
