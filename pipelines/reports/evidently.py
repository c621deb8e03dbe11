"""The drift page for people, drawn by Evidently. No decision is made here, and none depends on it.

Evidently's own PSI bins reference and current pooled and equally wide, so one outlier can hide a drift; its
numbers on the page are therefore its own, and the decision's stand in report.json.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from pipelines.fields import Fields
from pipelines.params import DriftParams

log = logging.getLogger(__name__)


def page(
    path: Path,
    sides: Callable[[], tuple[pl.DataFrame, pl.DataFrame]],
    columns: Sequence[str],
    fields: Fields,
    params: DriftParams,
) -> tuple[str | None, str | None]:
    """Draw ``columns`` of the training rows and the window's, which ``sides`` reads, at ``path``.

    Gives back the page's name, or an error as a sentence, as no decision hangs on it; neither without columns.
    """
    if not columns:
        return None, None
    try:
        before, now = (sample(frame, params.report_rows) for frame in sides())
        draw(path, now, before, list(columns), fields, params.severe_psi)
    except Exception as error:
        log.exception("the drift page could not be drawn")
        path.unlink(missing_ok=True)
        return None, f"could not be drawn ({type(error).__name__})"
    return path.name, None


def draw(
    path: Path, current: pl.DataFrame, reference: pl.DataFrame, columns: list[str], fields: Fields, threshold: float
) -> None:
    """Write a self-contained HTML page (about 4 MB) with one panel per column of ``columns``.

    Both frames hold them all.
    """
    # Imported here: it takes seconds and pulls in pandas, scikit-learn and plotly.
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    categorical = {*(field.name for field in fields.categorical), *fields.shares}
    definition = DataDefinition(
        numerical_columns=[name for name in columns if name not in categorical],
        categorical_columns=[name for name in columns if name in categorical],
    )
    metrics = [ValueDrift(column=name, method="psi", threshold=threshold) for name in columns]
    sides = (_folded(frame.select(columns), fields).to_pandas() for frame in (current, reference))
    now, before = (Dataset.from_pandas(side, definition) for side in sides)
    Report(metrics, include_tests=True).run(now, before).save_html(str(path))


def _folded(frame: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """One name for all values outside of a vocabulary that is open: there is no end of them."""
    return frame.with_columns(
        pl.when(pl.col(field.name).is_in(field.values) | pl.col(field.name).is_null())
        .then(pl.col(field.name))
        .otherwise(pl.lit("(other)"))
        .alias(field.name)
        for field in fields.categorical
        if field.other and field.name in frame.columns
    )


def sample(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """At most ``rows`` rows, evenly spread over the frame: the same every time.

    >>> sample(pl.DataFrame({"x": [0, 1, 2, 3, 4, 5]}), 3)["x"].to_list()
    [0, 2, 4]
    """
    if frame.height <= rows:
        return frame
    return frame[[position * frame.height // rows for position in range(rows)]]
