"""Evidently's default rule on the windows of the table of false alarms: DataDriftPreset, without its drawings.

The preset takes about two seconds a window, nearly all of it for figures. What it decides by is called here
directly: the test that it chooses for a column, at that test's threshold. One window of every cell goes through
the whole preset and must say the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.alarms.rules import NAMES, frame
from benchmarks.alarms.traffic import NUMBERS, Counts
from pipelines.errors import PerennialError
from pipelines.reports.evidently import sample

REFERENCE_ROWS = 10_000
"""At most; evenly spread over the reference.

Its default tests at this size are distances with a threshold, not p-values.
"""
SHARE = 0.5
"""The preset calls a data set drifted when this share of its columns is."""


def judge(days: Counts, windows: Counts) -> NDArray[np.bool_]:
    """Which columns ``[W, F]`` the default finds drifted.

    Raises PerennialError if the whole preset says otherwise of the first window.
    """
    from evidently.legacy.calculations.stattests import get_stattest

    train = pl.concat(
        [frame(days, day).sample(fraction=1.0, shuffle=True, seed=day) for day in range(len(days.numbers))]
    )
    reference = sample(train, REFERENCE_ROWS).to_pandas()
    found = np.zeros((len(windows.numbers), len(NAMES)), np.bool_)
    values: list[float] = []
    for window in range(len(found)):
        current = frame(windows, window).to_pandas()
        for place, name in enumerate(NAMES):
            kind = "num" if place < NUMBERS else "cat"
            test = get_stattest(reference[name], current[name], kind, None)
            result = test(reference[name], current[name], kind, None)
            found[window, place] = result.drifted
            values += [float(result.drift_score)] if window == 0 else []
    whole = _preset(reference, frame(windows, 0).to_pandas())
    if not np.allclose(values, whole):
        raise PerennialError(
            f"Evidently's preset says {whole}, its tests called alone {values}: look at what changed in Evidently"
        )
    return found


def _preset(reference: Any, current: Any) -> list[float]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=list(NAMES[:NUMBERS]), categorical_columns=list(NAMES[NUMBERS:]))
    before, now = (Dataset.from_pandas(rows, definition) for rows in (reference, current))
    metrics = Report([DataDriftPreset()]).run(now, before).dict()["metrics"]
    by_column = {
        metric["config"]["column"]: float(metric["value"]) for metric in metrics if "column" in metric["config"]
    }
    return [by_column[name] for name in NAMES]
