"""One trial: fit the probes on older rows, let them answer the window's, and compare. Plain functions on frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.drift.labels.arrived import days_of
from pipelines.drift_report import Headroom, HeadroomCode
from pipelines.faults import said
from pipelines.fields import SCORES, Fields
from pipelines.headroom import gain, probe
from pipelines.measures import MISSING, cut
from pipelines.params import GateParams, HeadroomParams

ANSWERED = "_answered"
"""The column that says whether the champion answered a row."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows, oldest first: those of the window, and what the probes learn from.

    Of the ``served`` rows of the window that might be judged so many are ``labelled``. ``judged`` holds what was
    logged: ``score``, with classes ``scores`` of all, and whether the champion ``ANSWERED``. ``past`` (None: gone) is
    what the champion was trained on; no row of the window is as old.
    """

    judged: pl.DataFrame
    learned: pl.DataFrame
    past: pl.DataFrame | None
    served: int
    labelled: int


def lacking(rows: Rows, fields: Fields, least: int) -> tuple[HeadroomCode, str] | None:
    """Why these rows give no figure, as a code and a sentence; None: they do."""
    judged, learned = rows.judged[fields.label], rows.learned[fields.label]
    if judged.is_empty() and rows.served:
        return "no_labels", f"none of the {rows.served:,} rows that the champion could be judged by has a label yet"
    if judged.len() < least:
        told = f"{judged.len():,} labelled rows that are newer than what the champion was trained on"
        return "few_rows", f"{told} are fewer than the {least:,} that are needed"
    if learned.len() < least:
        return "few_to_learn", f"{learned.len():,} older labelled rows are fewer than the {least:,} that a probe needs"
    if judged.n_unique() < 2 or learned.n_unique() < 2:
        side = "the window" if judged.n_unique() < 2 else "the rows before it"
        alike = "of one class" if fields.number is None else "equal"
        return "one_class", f"all labels of {side} are {alike}: nothing can be told apart"
    return None


def trial(rows: Rows, fields: Fields, family: str, gate: GateParams, params: HeadroomParams) -> Headroom:
    """What a probe of the ``family`` would have saved on ``rows.judged``, by the slices of the gate, too.

    A probe that fails in any way is an answer, ``probe_failed``, with the error's words.
    """
    try:
        return gain.measured(_answered(rows, fields, family, gate), params)
    except Exception as error:  # noqa: BLE001 - a case's own probe may raise anything, and nothing waits for a probe
        return Headroom(code="probe_failed", why=f"the probe failed: {said(error)}", rows=rows.judged.height)


def _answered(rows: Rows, fields: Fields, family: str, gate: GateParams) -> gain.Sample:
    judged = rows.judged
    asked = judged.select(fields.reads)
    groups = cut(judged, gate.bins)
    past = None
    if rows.past is not None and rows.past[fields.label].n_unique() > 1:
        past = probe.answers(rows.past, asked, fields, family)
    return gain.Sample(
        label=judged[fields.label].cast(pl.Int64 if fields.number is None else pl.Float64).to_numpy(),
        days=days_of(judged),
        champion=_logged(judged, fields),
        probe=probe.answers(rows.learned, asked, fields, family),
        past=past,
        groups={name: groups[name].cast(pl.String).fill_null(MISSING).to_numpy() for name in gate.slice_fields},
        number=fields.number is not None,
    )


def _logged(judged: pl.DataFrame, fields: Fields) -> NDArray[Any]:
    """What the champion answered, ``[n]`` or ``[n, K]``, NaN where it did not."""
    own = judged[ANSWERED].to_numpy()
    answers = np.full((judged.height, len(fields.classes) or 1), np.nan)
    told = judged.filter(ANSWERED)
    if fields.classes:
        answers[own] = np.array(told[SCORES].to_list(), np.float64).reshape(told.height, -1)
        return answers
    answers[own, 0] = told["score"].to_numpy()
    return answers[:, 0]
