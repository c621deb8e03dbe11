"""The line on a case's history, from ingest to gate and without services: `perennial try`."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from typing import TYPE_CHECKING, Any

from pipelines.cases import load_fields, part
from pipelines.cases.delivery import from_source
from pipelines.cases.homes import share
from pipelines.contracts import Manifest, Window
from pipelines.errors import TooFewRows
from pipelines.line import facts, order, runner
from pipelines.line.step import Run, Step
from pipelines.params import Params
from pipelines.provenance import wall_time
from pipelines.settings import Settings, read_settings

if TYPE_CHECKING:
    from rich.console import Console

PLAYED = tuple(step for step in order.TRAINING[: order.TRAINING.index(order.GATE) + 1] if isinstance(step, Step))
"""The steps that need no service: up to the verdict."""


def play(params: Params, settings: Settings, as_of: datetime | None) -> dict[str, Any]:
    """Run the steps in a folder of their own, ``<state>/try/<case>``, which is emptied first, and say what came out.

    ``as_of`` is the newest that the history allows if none is given. Raises what the steps raise.
    """
    from rich.console import Console

    home = settings.root / "try" / params.case
    shutil.rmtree(home, ignore_errors=True)
    # Nothing of what runs is touched: neither ledger nor MLflow of the state that this is asked in.
    apart = read_settings(**{**settings.model_dump(), "home": home, "ledger_url": "", "mlflow_url": ""})
    share(params, settings, home)
    console = Console(stderr=True, markup=False, highlight=False)
    run = Run(params, apart, as_of or newest(params, apart), trigger="initial")
    console.print(f"{params.case} as of {run.as_of.isoformat()}, in {home}")
    made: dict[str, Manifest] = {}
    seconds: dict[str, float] = {}
    with _bar(console) as at:
        for number, step in enumerate(PLAYED, start=1):
            at(step.name)
            begun = time.perf_counter()
            with _quiet():
                made[step.name] = runner.run(step, run)
            seconds[step.name] = round(time.perf_counter() - begun, 2)
            console.print(f"{number}/{len(PLAYED)} {step.name:9}{seconds[step.name]:7.1f} s  {_said(step.name, made)}")
    return _answer(run, made, seconds)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str], None]]:
    """A bar below the lines that says how many steps are done and which one runs; nothing where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(PLAYED))
        begun = 0

        def at(step: str) -> None:
            nonlocal begun
            progress.update(task, completed=begun, description=step)
            begun += 1

        yield at


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings alone between the lines of progress, unless somebody wants all."""
    root, without_mlflow = logging.getLogger(), logging.getLogger("pipelines.registry.live")
    before = root.level
    if before > logging.DEBUG:
        root.setLevel(max(before, logging.WARNING))
        without_mlflow.setLevel(logging.ERROR)  # there is none here, and that is as it should be
    try:
        yield
    finally:
        root.setLevel(before)
        without_mlflow.setLevel(logging.NOTSET)


def newest(params: Params, settings: Settings) -> datetime:
    """The first midnight by which all labels of the source's rows are there. Raises TooFewRows if it has no rows."""
    origin = from_source(part(params.case, "source"), load_fields(params.case), params, settings)
    since, until = params.period
    end = until or wall_time()
    days = params.dataset.window_days
    while True:
        start = max(since, end - timedelta(days=days))
        found = origin.read(Window(start=start, end=end))
        last = found.rows["event_time"].max()
        if last is None and found.times is not None and since <= found.times[1] < end:
            last = found.times[1]
        if isinstance(last, datetime):
            known = last + timedelta(days=params.label_delay_days)
            return datetime.combine(known.date() + timedelta(days=1), clock(0), UTC)
        if start <= since:
            raise TooFewRows(f"{params.case}: the source has no row from {since.isoformat()} to {end.isoformat()}")
        days *= 4


def _said(step: str, made: Mapping[str, Manifest]) -> str:
    """What a step did, in a few words."""
    found = made[step]
    if step == order.INGEST.name:
        rows = facts.IngestFacts.of(found)
        return f"{rows.rows:,} rows, {rows.labelled:,} with a label"
    if step == order.VALIDATE.name:
        kept = facts.ValidateFacts.of(found)
        return f"{kept.rows:,} rows kept, {kept.bad:,} refused"
    if step == order.DATASET.name:
        split = facts.DatasetFacts.of(found)
        return f"{split.train_rows:,} rows to learn from, {split.holdout_rows:,} to judge by"
    if step == order.EXPORT.name:
        return f"ONNX answers as the model does within {facts.ExportFacts.of(found).parity:.1g}"
    if step == order.GATE.name:
        return facts.GateFacts.of(found).decision
    return ""


def _answer(run: Run, made: Mapping[str, Manifest], seconds: Mapping[str, float]) -> dict[str, Any]:
    evaluated = facts.EvaluateFacts.of(made[order.EVALUATE.name])
    verdict = facts.GateFacts.of(made[order.GATE.name])
    split = facts.DatasetFacts.of(made[order.DATASET.name])
    kept = facts.ValidateFacts.of(made[order.VALIDATE.name])
    metrics = [
        {"metric": name, "model": value, "baseline": evaluated.base_rate.get(name)}
        for name, value in evaluated.challenger.items()
        if isinstance(value, int | float)
    ]
    return {
        "case": run.case,
        "as_of": run.as_of.isoformat(),
        "folder": str(run.settings.root),
        "rows": {"kept": kept.rows, "refused": kept.bad, "train": split.train_rows, "holdout": split.holdout_rows},
        "baseline": evaluated.baseline,
        "judged_by": run.params.gate.metric,
        "metrics": metrics,
        "decision": verdict.decision,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "seconds": dict(seconds),
    }


def table(answer: dict[str, Any]) -> Any:
    """Rows, metrics beside the baseline's, the verdict and its reason."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = answer["rows"]
    found = Table(title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in (f"holdout, {rows['holdout']:,} rows", "model", answer["baseline"] or "baseline"):
        found.add_column(column, justify="left" if column.startswith("holdout") else "right")
    for one in answer["metrics"]:
        simple = one["baseline"]
        marked = one["metric"] + (" (decides)" if one["metric"] == answer["judged_by"] else "")
        found.add_row(marked, f"{one['model']:.4g}", "-" if simple is None else f"{simple:.4g}")
    took = ", ".join(f"{step} {seconds:.1f}" for step, seconds in answer["seconds"].items())
    return Group(
        Text(f"{answer['case']} as of {answer['as_of']}", style="bold"),
        Text(f"{rows['kept']:,} rows kept, {rows['refused']:,} refused; {rows['train']:,} to learn from"),
        found,
        Text(f"{answer['decision']}: {answer['reason']}", style="bold"),
        Text(f"seconds: {took}"),
    )
