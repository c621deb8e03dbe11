"""The files of a case, written of what was found: schema.py, source.py, params.yaml and a test."""

from __future__ import annotations

import ast
import json
import keyword
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError
from pipelines.fields import Attribute, Binary, Categorical, Classes, Field, Flag, Moment, Number, Numeric, Text, Vector
from pipelines.inspection.reading import READS
from pipelines.inspection.table import Found
from pipelines.inspection.volume import CRON, DAYS

WIDTH = 118


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Leave the folder of a case whole or not at all. Raises ConfigError if there is one already, or it cannot be."""
    if folder.exists():
        raise ConfigError(f"{folder} is there already: remove it, or name the case otherwise; nothing was written")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, text in files.items():
                (made / name).write_text(text, encoding="utf-8")
                (made / name).chmod(0o644)  # code, as a checkout has it; state is its owner's alone
            made.chmod(0o755)
            os.rename(made, folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error}): name another folder with --to") from error


def check_name(case: str) -> None:
    """Raises ConfigError if no case can be named so."""
    if (
        not (case.isidentifier() and case.isascii())
        or case.startswith("_")
        or keyword.iskeyword(case)
        or len(case) > 64
    ):
        raise ConfigError(f"{case!r} is no name for a case: use a letter, then letters, digits and _, as in churn_eu")


def files(found: Found, path: Path) -> dict[str, str]:
    """The texts of a case's files, by name; ``path`` is where its rows are."""
    case = found.fields.case
    return {
        "__init__.py": f'"""The case {case}."""\n',
        "schema.py": schema(found, path),
        "source.py": source(found, path),
        "params.yaml": params(found, path),
        f"test_{case}.py": own_test(case),
    }


# --- schema.py ------------------------------------------------------------------------------------


def schema(found: Found, path: Path) -> str:
    """The declared fields, with what was guessed of each and why."""
    fields, target = found.fields, found.fields.target
    kinds = sorted({type(part).__name__ for part in (*fields.fields, target)} | {"Fields"})
    lines = [
        f'"""What a row of {fields.case} has, and what is predicted.',
        "",
        *_wrapped(
            f"Guessed from {_plain(path.name)}: {_plain(fields.about)}. Read it through: what you know better, change."
        ),
        '"""',
        "",
        *_imports(kinds),
        "",
        "FIELDS = Fields(",
        f"    case={_quoted(fields.case)},",
        *_comment(f"the label: {found.label.why}", 4),
        f"    label={_quoted(fields.label)},",
        *_call("target=" + _target(target)[0], _target(target)[1], 4),
        "    fields=(",
    ]
    for guess in found.guesses:
        if guess.field is None:
            continue
        begin = "" if guess.column == guess.field.name else f"the column {guess.column}: "
        lines += _comment(begin + guess.why, 8)
        lines += _call(type(guess.field).__name__, _arguments(guess.field), 8)
    lines += ["    ),", ")"]
    if found.left_out:
        lines += ["", "# Left out:"]
        for column, why in found.left_out.items():
            lines += _comment(f"- {column}: {why}", 0)
    return "\n".join(lines) + "\n"


def _imports(kinds: Iterable[str]) -> list[str]:
    line = f"from pipelines.fields import {', '.join(kinds)}"
    if len(line) <= WIDTH:
        return [line]
    return ["from pipelines.fields import (", *(f"    {kind}," for kind in kinds), ")"]


def _target(target: Binary | Classes | Number) -> tuple[str, list[str]]:
    if isinstance(target, Classes):
        return "Classes", [_texts(target.values)]
    if isinstance(target, Number):
        return "Number", [_quoted(target.unit), repr(target.low), repr(target.high)]
    return "Binary", []


def _arguments(field: Field) -> list[str]:
    found = [_quoted(field.name)]
    if isinstance(field, Categorical):
        found.append(_texts(field.values))
    elif isinstance(field, Numeric):
        found += [repr(field.low), repr(field.high)]
    elif isinstance(field, Moment):
        found.append(_texts(field.parts))
    elif isinstance(field, Vector):
        found.append(repr(field.size))
    elif isinstance(field, Text | Attribute):
        found.append(f"max_chars={field.max_chars}")
    else:
        assert isinstance(field, Flag)
    options = [name for name in ("integer", "missing", "other") if name in vars(field) and vars(field)[name] is True]
    return [*found, *(f"{name}=True" for name in options)]


def _texts(values: Iterable[str]) -> str:
    quoted = [_quoted(value) for value in values]
    return f"({', '.join(quoted)}{',' if len(quoted) == 1 else ''})"


def _call(name: str, arguments: list[str], indent: int) -> list[str]:
    """A call on one line, or with an argument a line where that is too long."""
    before = " " * indent
    line = f"{before}{name}({', '.join(arguments)}),"
    if len(line) <= WIDTH:
        return [line]
    found = [f"{before}{name}("]
    for argument in arguments:
        if len(argument) + indent + 5 <= WIDTH or not argument.startswith("("):
            found.append(f"{before}    {argument},")
            continue
        found.append(f"{before}    (")
        found += _packed(argument[1:-1], indent + 8)
        found.append(f"{before}    ),")
    return [*found, f"{before}),"]


def _packed(listed: str, indent: int) -> list[str]:
    """The quoted texts of a list, as many on a line as it has room for."""
    lines: list[str] = []
    for value in ast.literal_eval(f"({listed},)" if not listed.endswith(",") else f"({listed})"):
        quoted = f"{_quoted(value)},"
        if lines and len(lines[-1]) + len(quoted) < WIDTH:
            lines[-1] += f" {quoted}"
        else:
            lines.append(" " * indent + quoted)
    return lines


def _quoted(text: str) -> str:
    """A text as Python has it, in double quotes."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f").replace("\u2028", "\\u2028")


def _plain(text: str) -> str:
    """A text that may stand in a comment or docstring: one line, without what would end it."""
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def _comment(text: str, indent: int) -> list[str]:
    before = " " * indent + "# "
    return textwrap.wrap(
        _plain(text), WIDTH, initial_indent=before, subsequent_indent=f"{before}  ", break_on_hyphens=False
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


# --- source.py ------------------------------------------------------------------------------------

SOURCE = '''"""Where the rows of {case} are, and how the declared fields are made of its columns."""

from pathlib import Path

import polars as pl

from pipelines.cases.sources import Source, canonical
from pipelines.errors import DataError
{digest}
from .schema import FIELDS

COLUMNS = {{
{columns}
}}


def resolve(settings, params):
    """The file that the case was made of, or one of its name in PERENNIAL_DATA_DIR."""
    path = Path(params.source["file"])
    if settings.data_dir is not None and (settings.data_dir / path.name).exists():
        path = settings.data_dir / path.name
    if not path.exists():
        raise DataError(f"{{path}} is not there: put it there, or write its place into params.yaml (source.file)")
    return Source(name=path.name, kind="real", why=f"the file {{path}}", notice="none", path=path)


def rows(source, window, params):
    """The rows of a window."""
    frame = {read}
    return canonical(frame.select(**COLUMNS), FIELDS, window, params)
'''


def source(found: Found, path: Path) -> str:
    """The code that reads the file, as it was read to be looked at."""
    columns = "\n".join(f"    {_quoted(name)}: {reads}," for name, reads in found.reads.items())
    needs = any("digest" in reads for reads in found.reads.values())
    return SOURCE.format(
        case=found.fields.case,
        columns=columns,
        digest="from pipelines.storage import digest\n" if needs else "",
        read=READS[path.suffix.lower()].format(path="source.path"),
    )


# --- params.yaml ----------------------------------------------------------------------------------


def model_of(target: Binary | Classes | Number) -> tuple[dict[str, Any], str]:
    """The model's parameters, and why: LightGBM where it is installed, else a linear one."""
    if find_spec("lightgbm") and find_spec("onnxmltools"):
        parameters: dict[str, Any] = {"n_estimators": 200, "num_leaves": 15, "learning_rate": 0.05}
        return {"kind": "estimator", "family": "lightgbm", "parameters": parameters}, "under the family's own names"
    why = "LightGBM is not installed here"
    if isinstance(target, Number):
        return {"kind": "estimator", "family": "sklearn:Ridge", "parameters": {"alpha": 1.0}}, why
    return {"kind": "estimator", "family": "sklearn:LogisticRegression", "parameters": {"max_iter": 500}}, why


def params(found: Found, path: Path) -> str:
    """How the case is trained, judged and watched."""
    volume, fields = found.volume, found.fields
    model, why_model = model_of(fields.target)
    window = volume.drift
    guess = "a guess: no row shows it" if volume.guessed else "as long as the newest rows have none"
    gate: dict[str, Any] = {"metric": "log_loss", "min_lift": 0.002}
    drift: dict[str, Any] = {"window": window, "min_rows": volume.drift_rows}
    headroom: dict[str, Any] = {}
    if fields.number is not None:
        gate = {"metric": "rmse", "min_lift": _rounded(0.002 * found.spread**0.5)}
        drift["min_metric_drop"] = headroom["price"] = _rounded(0.01 * found.spread)
    gate["slices"] = _slices(fields.fields)
    if volume.holdout < 200:
        gate["min_differing"] = min(100, volume.holdout)
    dataset: dict[str, Any] = {"window_days": volume.window_days}
    if volume.holdout < 200:
        dataset |= {"min_rows": min(1000, volume.labelled), "min_holdout": volume.holdout}
    if volume.max_rows is not None:
        dataset["max_rows"] = volume.max_rows
    if window != "day":
        drift["partition"] = "day"
    schedule = {"training": "0 3 * * 1", "drift": CRON[window], "live": True}
    period = f"[{volume.first:%Y-%m-%d}T00:00:00Z, null]"
    blocks = [
        f"# How {fields.case} is trained, judged and watched. What is not said has a default: docs/cases.md.",
        *_comment(f"Guessed from {path.name}: {fields.about}, {volume.per_day:,.1f} rows a day.", 0),
        f"case: {fields.case}",
        f"period: {period}",
        f"label_delay_days: {volume.delay}  # {guess}",
        f"schedule: {_flow(schedule)}",
        f"dataset: {_flow(dataset)}  # about {_in_window(found):,} labelled rows",
        "model:",
        f"  kind: {model['kind']}",
        f"  family: {model['family']}",
        f"  parameters: {_flow(model['parameters'])}  # {why_model}",
        f"gate: {_flow(gate)}",
        f"drift: {_flow(drift)}{_squared(fields.number)}",
    ]
    if headroom:
        blocks.append(f"headroom: {_flow(headroom)}  # what a retraining has to save, squared: 1% of the variance")
    if (replay := _replay(found)) is not None:
        blocks.append(f"replay: {_flow(replay)}")
    blocks += ["source:", f"  file: {json.dumps(str(path.resolve()))}"]
    return "\n".join(blocks) + "\n"


def _squared(number: Number | None) -> str:
    return "" if number is None else "  # min_metric_drop is squared: 1% of the label's variance"


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()


def _slices(fields: Iterable[Field]) -> list[str]:
    """The first category of few values: a model must not become worse for one of them."""
    return [field.name for field in fields if isinstance(field, Categorical) and 2 <= len(field.values) <= 8][:1]


def _in_window(found: Found) -> int:
    volume = found.volume
    days = max(0.0, min(volume.days, volume.window_days - volume.delay))
    return round(volume.labelled / volume.days * days)


def _replay(found: Found) -> dict[str, str] | None:
    """What a replay plays: the history behind the first training window; None if too short."""
    volume = found.volume
    first = volume.first + timedelta(days=min(volume.window_days, 0.4 * volume.days))
    start, end = _midnight(first + timedelta(days=1)), _midnight(volume.last + timedelta(days=1))
    if (end - start).days < 2 * DAYS[volume.drift]:
        return None
    return {"first_as_of": f"{start:%Y-%m-%d}", "until": f"{end:%Y-%m-%d}"}


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


# --- test_<case>.py --------------------------------------------------------------------------------

TEST = '''"""The case {case} can be loaded, and its rows keep its contract."""

from datetime import timedelta

from pipelines.cases import load_case, part
from pipelines.cases.delivery import from_source
from pipelines.cases.surveying import survey
from pipelines.contracts import Window
from pipelines.data.contract import count_reasons, split
from pipelines.settings import read_settings


def test_the_case_can_be_loaded() -> None:
    """Nothing is wrong with its files."""
    assert [case.problem for case in survey(names=["{case}"])] == [""]


def test_its_rows_keep_the_contract() -> None:
    """Of all rows of its source as many can be used as dataset.max_bad_share asks for."""
    case = load_case("{case}")
    origin = from_source(part("{case}", "source"), case.fields, case.params, read_settings())
    since, until = case.params.period
    found = origin.read(Window(start=since, end=until or since + timedelta(days=36_500)))
    good, bad = split(found.rows, case.fields)
    refused = bad.height + found.refused.height
    why = count_reasons(bad) | count_reasons(found.refused)
    assert refused <= case.params.dataset.max_bad_share * (good.height + refused), why
'''


def own_test(case: str) -> str:
    """A test for the repository that the case lies in."""
    return TEST.format(case=case)
