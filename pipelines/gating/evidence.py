"""What the rows of a holdout say of two models: lift, slices, floors, and how many rows would decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts import Evidence, FloorEvidence, SliceEvidence
from pipelines.gating.compare import fewest, level, lift
from pipelines.gating.paired import Answers, Label, paired
from pipelines.gating.power import SIMULATED, rows_by_resampling
from pipelines.params import MORE_IS_BETTER, GateParams, Metric


def compared(
    known: Evidence,
    gate: GateParams,
    label: Label,
    opponent: Answers,
    challenger: Answers,
    masks: Mapping[str, NDArray[np.bool_]],
) -> Evidence:
    """The evidence with all that labels and both models' answers add to what is ``known``.

    ``masks`` ``[n]`` are the slices by name. A slice with some rows that differ, and fewer than can be sure, says
    nothing. Without a lift where the metric is not defined on these rows.
    """
    metric = gate.metric
    pair = paired(metric, label, opponent, challenger, gate)
    if pair is None:
        return known
    confidence = level(metric, gate.confidence)
    interval = partial(lift, confidence=confidence, draws=gate.draws, seed=gate.seed)
    whole = interval(pair)
    more = None
    wanted = gate.first_lift if known.opponent == "base_rate" else gate.min_lift
    if metric in SIMULATED and whole.low <= wanted <= whole.high:
        more = rows_by_resampling(pair, min_lift=wanted, confidence=confidence, seed=gate.seed)
    large = {name: mask for name, mask in masks.items() if mask.sum() >= gate.min_slice_rows}
    pieces = {name: paired(metric, label[mask], opponent[mask], challenger[mask], gate) for name, mask in large.items()}
    found = tuple(
        SliceEvidence(name=name, n=int(large[name].sum()), lift=interval(one))
        for name, one in pieces.items()
        if one is not None and not 0 < one.differ < fewest(confidence)
    )
    told: dict[str, Any] = {
        "lift": whole,
        "lift_sd": pair.se * math.sqrt(len(label)),
        "differ": pair.differ,
        "more_rows": more,
        "slices": found,
        "unchecked": tuple(
            name for name in gate.slice_fields if not any(one.name.startswith(f"{name}=") for one in found)
        ),
        "floors": tuple(_floor(name, limit, label, challenger, gate) for name, limit in gate.floors.items()),
        "challenger": {metric: pair.challenger, **known.challenger},
        "champion": {metric: pair.opponent, **known.champion},
    }
    return known.model_copy(update=told)


def _floor(metric: Metric, limit: float, label: Label, challenger: Answers, gate: GateParams) -> FloorEvidence:
    """The challenger's metric beside what it has to reach."""
    own = paired(metric, label, challenger, challenger, gate)
    if own is None:
        return FloorEvidence(metric=metric, value=None, limit=limit, holds=False)
    holds = own.challenger >= limit if metric in MORE_IS_BETTER else own.challenger <= limit
    return FloorEvidence(metric=metric, value=own.challenger, limit=limit, holds=holds)
