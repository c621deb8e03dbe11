"""A new case from a look at a file: `python -m pipelines init`."""

from __future__ import annotations

import os
from collections import Counter
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import case_files
from pipelines.cases.receiving import Received, count_reasons, receive
from pipelines.contracts import Window
from pipelines.data import contract
from pipelines.errors import ConfigError, DataError
from pipelines.inspection import reading, writing
from pipelines.inspection.guesses import expression
from pipelines.inspection.table import Asked, Found, inspect
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings


def init(asked: dict[str, Any], file: str, to: str | None, settings: Settings) -> dict[str, Any]:
    """Look at a file, write a case of it, and say what was guessed and what to do next.

    Nothing is written unless the case works: its parameters can be read, and its rows keep its contract. Raises what
    :func:`pipelines.inspection.table.inspect` raises, ConfigError if the name is taken, and DataError if too few rows
    can be used.
    """
    case = Asked(**asked)
    folder = _home(to) / case.case
    _check_free(case.case, folder)
    path = Path(file)
    frame = reading.read(path)
    found = inspect(frame, case)
    files = writing.files(found, path)
    params = _checked(files["params.yaml"], case.case, settings)
    counts = _kept(frame, found, params)
    writing.write(folder, files)
    return {
        "case": case.case,
        "folder": str(folder),
        "rows": counts,
        "label": f"{found.fields.label}: {found.label.kind}, {found.label.why}",
        "fields": dict(Counter(type(field).__name__ for field in found.fields.fields)),
        "model": writing.model_of(found.fields.target)[0]["family"],
        "left_out": found.left_out,
        "look_at": list(found.notes),
        "next": _next(case.case, folder),
    }


def _home(to: str | None) -> Path:
    """The folder that the case's own folder is put into."""
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


def _checked(text: str, case: str, settings: Settings) -> Params:
    """The parameters as they can be read from what will be written."""
    settings.root.mkdir(parents=True, exist_ok=True)
    path = settings.root / f".{case}.params.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        return load_params(case, path)
    finally:
        path.unlink()


def _kept(frame: pl.DataFrame, found: Found, params: Params) -> dict[str, int]:
    """What becomes of the file's rows as the written source delivers them; DataError if too many are refused."""
    columns = {name: expression(text) for name, text in found.reads.items()}
    since = params.period[0]
    window = Window(start=since, end=found.volume.last + timedelta(days=1))
    received = receive(frame.select(**columns), found.fields, window, params)
    good, bad = contract.split(received.rows, found.fields)
    refused = bad.height + received.refused.height
    if refused > params.dataset.max_bad_share * (good.height + refused):
        raise DataError(
            f"{refused:,} of {good.height + refused:,} rows would be refused: {_reasons(bad, received)}: mend them in "
            "the file, or leave such a column out with --without"
        )
    return {"read": frame.height, "kept": good.height, "refused": refused, "repeats": received.repeats}


def _reasons(bad: pl.DataFrame, received: Received) -> str:
    counts = Counter(contract.count_reasons(bad)) + Counter(count_reasons(received.refused))
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common(5))


def _next(case: str, folder: Path) -> list[str]:
    """The three commands that follow."""
    commands = [f"python -m pipelines try {case}", f"python -m pipelines replay --case {case}", "make up"]
    known = [root.resolve() for root in case_files.roots()]
    if folder.parent.resolve() not in {*known, case_files.CASES_ROOT.resolve()}:
        roots = os.pathsep.join(map(str, [*known, folder.parent]))
        commands[0] = f"export {case_files.FOLDERS}={roots} && {commands[0]}"
    return commands


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
        Text(f"label    {answer['label']}"),
        Text(f"fields   {kinds}; schema.py says why, and from how many rows"),
        Text(f"model    {answer['model']}"),
    ]
    for heading, items in (
        ("Left out", [f"{column}: {why}" for column, why in answer["left_out"].items()]),
        ("Look at", answer["look_at"]),
    ):
        if items:
            lines += [Text(f"\n{heading}", style="bold"), *(Text(f"  {item}") for item in items)]
    lines += [Text("\nNext", style="bold"), *(Text(f"  {command}") for command in answer["next"])]
    return Group(*lines)
