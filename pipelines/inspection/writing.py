"""The files of a case, written of what was found: schema.py, features.py, params.yaml, profile.json and a test.

A source.py only where no declared source can say how rows are read.
"""

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
from pipelines.fields import (
    Attribute,
    Binary,
    Categorical,
    Classes,
    Field,
    Fields,
    Flag,
    Moment,
    Number,
    Numeric,
    Text,
    Vector,
)
from pipelines.inspection.declaring import Declared, Place
from pipelines.inspection.table import Found
from pipelines.inspection.volume import CRON, DAYS, ENOUGH, Volume

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
        raise ConfigError(
            f"{case!r} is no name for a case: use a letter, then letters, digits and _, as in churn_eu, "
            "and none of Python's own words"
        )


def files(found: Found, place: Place, how: Declared, profile: str) -> dict[str, str]:
    """The texts of a case's files, by name; ``profile`` is that of its profile.json, "" without one."""
    case = found.fields.case
    made = {
        "__init__.py": f'"""The case {case}."""\n',
        "schema.py": schema(found, place),
        "features.py": features(found.fields),
        "params.yaml": params(found, place, None if how.why_not else how.options),
        "profile.json": profile,
        f"test_{case}.py": own_test(case),
    }
    if how.why_not:
        made["source.py"] = source(found, place, how.why_not)
    return {name: text for name, text in made.items() if text}


# --- schema.py ------------------------------------------------------------------------------------


def schema(found: Found, place: Place) -> str:
    """The declared fields, with what was guessed of each and why."""
    fields, target = found.fields, found.fields.target
    kinds = sorted({type(part).__name__ for part in (*fields.fields, target)} | {"Fields"})
    lines = [
        f'"""What a row of {fields.case} has, and what is predicted.',
        "",
        *_wrapped(
            f"Guessed from {_plain(place.shown)}: {_plain(fields.about)}. Read it through, and change what you know "
            "better."
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
    line = f"from perennial import {', '.join(kinds)}"
    if len(line) <= WIDTH:
        return [line]
    return ["from perennial import (", *(f"    {kind}," for kind in kinds), ")"]


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

SOURCE = '''"""Where the rows of {case} are, and how the declared fields are made of the columns there.

A declared source does not say all of this:
{why}
"""

import polars as pl

from perennial import canonical
from pipelines.cases import declared_files
from pipelines.params import FilesSource
{digest}
from .schema import FIELDS

COLUMNS = {{
{columns}
}}


def files(params):
    """The files, as they are read: source.url is in params.yaml."""
    return FilesSource({files})


def resolve(settings, params):
    """Find the files, and copy here what lies elsewhere."""
    return declared_files.resolve(files(params), settings, params.case)


def rows(source, window, params):
    """The rows of a window."""
    frame = declared_files.whole(source, files(params), params.case).select(**COLUMNS)
    return canonical(frame.collect(engine="streaming"), FIELDS, window, params)
'''


def source(found: Found, place: Place, why: Iterable[str]) -> str:
    """The code that reads the files, as they were read to be looked at; ``why`` no declaration can."""
    columns = "\n".join(f"    {_quoted(name)}: {reads}," for name, reads in found.reads.items())
    needs = any("digest" in reads for reads in found.reads.values())
    given = {name: value for name, value in place.block.items() if name not in {"kind", "url"}}
    options = ['kind="files"', 'url=str(params.source["url"])', *(f"{name}={value!r}" for name, value in given.items())]
    return SOURCE.format(
        case=found.fields.case,
        why="\n".join(line for one in why for line in _bullet(one)),
        columns=columns,
        files=", ".join(options),
        digest="from pipelines.storage import digest\n" if needs else "",
    )


def _bullet(text: str) -> list[str]:
    return textwrap.wrap(
        _plain(text), WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


# --- features.py ----------------------------------------------------------------------------------

FEATURES = '''"""Features that are computed of the declared fields, as polars expressions: none yet.

One more is declared in schema.py and given here (docs/cases.md#derived-features):

    derived=({declared},)            # in FIELDS, after fields
    FEATURES = {{{given}}}

A profile.json that lies beside it has to have its scale: as long as nothing is trained, remove that file, and the first
training makes one.
"""

FEATURES = {{}}
'''


def features(fields: Fields) -> str:
    """A file of no derived features, with how to write one of the fields that there are."""
    numbers = [field.name for field in fields.fields if isinstance(field, Numeric)]
    words = [field for field in fields.fields if isinstance(field, Categorical)]
    declared, given = 'Flag("night")', '"night": pl.from_epoch(pl.col("sent"), time_unit="s").dt.hour() < 6'
    if len(numbers) > 1:
        name = f"{numbers[0]}_by_{numbers[1]}"[:64]
        declared = f'Numeric("{name}", missing=True)'
        given = f'"{name}": pl.col("{numbers[0]}") / pl.col("{numbers[1]}")'
    elif numbers:
        name = f"log_{numbers[0]}"[:64]
        declared, given = f'Numeric("{name}", missing=True)', f'"{name}": pl.col("{numbers[0]}").log1p()'
    elif words and not words[0].missing:
        name, value = f"is_{words[0].name}"[:64], words[0].values[0]
        declared, given = f'Flag("{name}")', _plain(f'"{name}": pl.col("{words[0].name}") == {value!r}')
    return FEATURES.format(declared=declared, given=given)


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


def params(found: Found, place: Place, options: Mapping[str, Any] | None) -> str:
    """How the case is trained, judged and watched; ``options`` are its declared source's, None: there is a source.py.

    What has a default that fits is not said.
    """
    volume, fields = found.volume, found.fields
    model, why_model = model_of(fields.target)
    schedule = {"training": "0 3 * * 1", "drift": CRON[volume.drift], "live": True}
    blocks = [
        f"# How {fields.case} is trained, judged and watched. What is not said has a default: docs/cases.md.",
        *_comment(f"Guessed from {place.shown}: {fields.about}; {volume.per_day:,.1f} rows a day.", 0),
        f"case: {fields.case}",
        f"period: [{volume.first:%Y-%m-%d}T00:00:00Z, null]  # from the day of the first row on",
        f"label_delay_days: {volume.delay}  # {_why_delay(found)}",
        f"schedule: {_flow(schedule)}  # UTC: a training a week, a look at drift a {volume.drift}",
        f"dataset: {_flow(_dataset(volume))}  # about {_in_window(found):,} of {volume.labelled:,} labelled rows",
        "model:",
        f"  kind: {model['kind']}",
        f"  family: {model['family']}",
        f"  parameters: {_flow(model['parameters'])}  # {why_model}",
        *_judged(found),
    ]
    if (replay := _replay(found)) is not None:
        blocks.append(f"replay: {_flow(replay)}  # what `replay` plays: from the first training window on")
    blocks.append("source:")
    declared: dict[str, Any] = {"url": place.block["url"]} if options is None else {**place.block, **options}
    for name, value in declared.items():
        blocks += _entry(name, value, _why_option(name, value, found))
    return "\n".join(blocks) + "\n"


def _why_delay(found: Found) -> str:
    volume = found.volume
    if volume.guessed:
        return f"a guess: no row of {volume.looked_at:,} shows it"
    if found.asked.label_time is not None:
        return f"95% of the labels are there by then ({found.asked.label_time} in {volume.looked_at:,} rows)"
    return f"the newest of {volume.looked_at:,} rows have had none for so long"


def _dataset(volume: Volume) -> dict[str, Any]:
    found: dict[str, Any] = {"window_days": volume.window_days}
    if volume.holdout < ENOUGH:
        found |= {"min_rows": min(1000, volume.labelled), "min_holdout": volume.holdout}
    if volume.max_rows is not None:
        found["max_rows"] = volume.max_rows
    return found


def _judged(found: Found) -> list[str]:
    """The gate's and drift's blocks, and of a number what a retraining has to save."""
    volume, fields = found.volume, found.fields
    gate: dict[str, Any] = {"metric": "log_loss", "min_lift": 0.002}
    drift: dict[str, Any] = {"window": volume.drift}
    if volume.drift_rows != ENOUGH:
        drift["min_rows"] = volume.drift_rows
    if volume.drift != "day":
        drift["partition"] = "day"
    why_lift, why_drop = "", f"the shortest window with {ENOUGH} rows"
    if fields.number is not None:
        gate = {"metric": "rmse", "min_lift": _rounded(0.002 * found.spread**0.5)}
        why_lift = "  # min_lift: 0.2% of the label's standard deviation"
        drift["min_metric_drop"] = _rounded(0.01 * found.spread)
        why_drop += "; min_metric_drop is squared: 1% of the label's variance"
    if slices := _slices(fields.fields):
        gate["slices"] = slices
        why_lift += f"{';' if why_lift else '  #'} no {slices[0]} may become worse"
    if volume.holdout < ENOUGH:
        gate["min_differing"] = min(100, volume.holdout)
    lines = [f"gate: {_flow(gate)}{why_lift}", f"drift: {_flow(drift)}  # {why_drop}"]
    if fields.number is not None:
        price = {"price": drift["min_metric_drop"]}
        lines.append(f"headroom: {_flow(price)}  # what a retraining has to save, squared: 1% of the variance")
    return lines


def _entry(name: str, value: Any, why: str) -> list[str]:
    """A key of the block source, on one line or, where that is too long, with a line for every value."""
    line = f"  {name}: {_flow(value)}"
    if len(line) <= WIDTH or not isinstance(value, list | dict):
        return [f"{line}  # {why}" if why else line]
    inner = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000).splitlines()
    return [f"  {name}:{f'  # {why}' if why else ''}", *(f"    {one}" for one in inner)]


def _why_option(name: str, value: Any, found: Found) -> str:
    rows = f"{found.volume.looked_at:,} rows"
    if name == "url" and isinstance(value, str) and Path(value).is_absolute():
        return "or below PERENNIAL_DATA_DIR, by its place there"
    if name == "columns" and value.get("id", "") is None:
        return "no id was named: one is made of a row's time and fields, and equal rows are one"
    if name == "time_zone" and found.asked.zone is None:
        return f"assumed: the times of {rows} have none; days begin at midnight there"
    if name == "time_unit" and found.asked.unit is None:
        return f"assumed: so the times of {rows} lie from 1990 to 2100"
    if name == "nulls":
        return f"stand for a missing value in columns of numbers and times, of {rows}"
    return ""


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _flow(value: Any) -> str:
    text = str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True))
    return text.removesuffix("...\n").strip()


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
from pipelines.cli.trying import newest
from pipelines.contracts import Window
from pipelines.data.contract import count_reasons, split
from pipelines.settings import read_settings


def test_the_case_can_be_loaded() -> None:
    """Nothing is wrong with its files."""
    assert [case.problem for case in survey(names=["{case}"])] == [""]


def test_its_rows_keep_the_contract() -> None:
    """Of the rows of the newest training window as many can be used as dataset.max_bad_share asks for."""
    case, settings = load_case("{case}"), read_settings()
    origin = from_source(part("{case}", "source"), case.fields, case.params, settings)
    end = newest(case.params, settings)
    found = origin.read(Window(start=end - timedelta(days=case.params.dataset.window_days), end=end))
    good, bad = split(found.rows, case.fields)
    refused = bad.height + found.refused.height
    why = count_reasons(bad) | count_reasons(found.refused)
    assert refused <= case.params.dataset.max_bad_share * (good.height + refused), why
'''


def own_test(case: str) -> str:
    """A test for the repository that the case lies in."""
    return TEST.format(case=case)
