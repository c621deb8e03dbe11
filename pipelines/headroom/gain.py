"""What the probe would have saved: pure functions on labels and answers of the same rows.

Row by row ``d_i = loss(champion, i) - loss(probe, i)``, in nats or of a number in squared units: positive where the
probe is better. The mean of d is the gain of a retraining, as the probe sees it; rows of one day are one cluster. An
e-value says how much the days speak against "it gains no more than its price", however often one looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contracts import Mean
from pipelines.drift_report import Beside, Headroom, SliceGain
from pipelines.measures import (
    around,
    clustered_mean,
    confusion,
    macro_f1,
    roc_auc,
    row_errors,
    row_loss,
    row_squared_error,
)
from pipelines.params import HeadroomParams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BETS = (1.0, 2.0, 3.0)
"""By how many standard errors of a window's mean the gain lies above its price: alternatives, bet on in equal parts."""
MOST_FREEDOM = 60
"""More degrees of freedom than these, or a normal mean, are taken as so many: tails a little heavier than needed."""
REACH = (-10.0, 20.0)
"""A mean further from its price, in standard errors, says no more: what is bet on has long won or lost."""

NO_PAST = "what the champion was trained on is gone, or of one class, so that no probe of its time can be fitted"


@dataclass(frozen=True)
class Sample:
    """The rows of a window that have a label: ``label`` and UTC ``days`` ``[n]``, and what was answered for them.

    Answers (probabilities, or predicted numbers) of ``champion``, ``probe`` and, where there is one, the ``past`` probe
    are ``[n]`` or ``[n, K]``; the champion's are NaN in rows that it did not answer. ``groups`` are columns ``[n]`` by
    whose values slices are cut.
    """

    label: NDArray[Any]
    days: Ints
    champion: Floats
    probe: Floats
    past: Floats | None = None
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    number: bool = False
    """Whether labels and answers are numbers."""

    def only(self, rows: NDArray[np.bool_]) -> Sample:
        """The sample of these rows, a mask ``[n]``."""
        return Sample(
            self.label[rows],
            self.days[rows],
            self.champion[rows],
            self.probe[rows],
            None if self.past is None else self.past[rows],
            {name: column[rows] for name, column in self.groups.items()},
            self.number,
        )


def difference(label: NDArray[Any], before: Floats, after: Floats, *, number: bool = False) -> Floats:
    """How many nats of log-loss, or of a ``number`` how much squared error, ``after`` saves on each row ``[n]``.

    >>> difference(np.array([1, 0]), np.array([0.5, 0.5]), np.array([1.0, 0.5])).round(3).tolist()
    [0.693, 0.0]
    """
    return row_loss(label, before, number=number) - row_loss(label, after, number=number)


def log_e_value(mean: Mean, price: float) -> float:
    """Log of the e-value of one window's mean gain.

    H0: "the gain is at most ``price``". ``e = mean_j f(t; v, b_j) / f(t; v, 0)``, ``f`` the density of Student's t with
    v degrees of freedom and noncentrality b, at ``t = (mean - price) / se``. Where days are clusters with normal means,
    its expectation under H0 is at most 1 whatever their variance, so that the e-CUSUM of windows
    (drift/labels/sequential.py) may be looked at after each of them. Rows would not do: those of a day, or of one
    person, are no independent bets.
    Source: Perez-Ortiz, Lardy, de Heide and Grunwald, E-statistics, group invariance and anytime-valid testing, Annals
    of Statistics 52(4), 2024.

    >>> log_e_value(Mean(value=0.02, se=0.01, freedom=29), 0.02) < 0 < log_e_value(Mean(value=0.05, se=0.01), 0.02)
    True
    """
    from scipy.stats import nct, t

    freedom = min(mean.freedom or MOST_FREEDOM, MOST_FREEDOM)
    found = float(np.clip((mean.value - price) / max(mean.se, 1e-12), *REACH))
    return float(np.log((nct.pdf(found, freedom, BETS) / t.pdf(found, freedom)).mean()))


def measured(sample: Sample, params: HeadroomParams) -> Headroom:
    """The figures of one window; what the probe is, and which rows these are, the caller adds.

    ``params.against`` says what the probe is held against, on which rows so that slices and errors are of that; without
    answers of a ``past`` probe it may be nothing. The champion's figure needs ``min_rows`` rows that it answered.

    >>> label, days = np.arange(200) % 2, np.arange(200) // 20
    >>> told = measured(Sample(label, days, np.full(200, 0.9), np.full(200, 0.5)), HeadroomParams(against="champion"))
    >>> told.gain.value  # log 2 instead of the mean of log 10/9 and log 10
    0.510825623766
    >>> told.days, told.log_e > 5, told.errors.value
    (10, True, 0.0)
    """
    answered = sample.only(~np.isnan(sample.champion.reshape(sample.label.size, -1)[:, 0]))
    by_past = _by_past(params)
    judged = sample if by_past else answered
    before = judged.past if by_past else judged.champion
    if judged.label.size < params.min_rows:
        few = f"{judged.label.size:,} labelled rows that the champion answered"
        why = f"{few} are fewer than the {params.min_rows:,} that are needed"
        return Headroom(code="few_rows", why=why, rows=judged.label.size, answered=answered.label.size)
    found = Headroom(
        code="measured",
        rows=judged.label.size,
        days=np.unique(judged.days).size,
        answered=answered.label.size,
        price=params.price,
        confidence=params.confidence,
        against="past" if by_past else "champion",
        why=NO_PAST if before is None else "",
    )
    told: dict[str, Any] = {}
    if answered.label.size >= params.min_rows:
        gain = _mean(answered, answered.champion)
        told |= {"estimate": gain, "gain": around(gain, params.confidence), "metrics": _beside(answered)}
    if sample.past is not None:
        newer = _mean(sample, sample.past)
        told |= {"own_estimate": newer, "own_past": around(newer, params.confidence)}
    if before is not None:
        told |= {
            "log_e": log_e_value(_mean(judged, before), params.price),
            "errors": None if sample.number else around(_fewer_errors(judged, before), params.confidence),
            "slices": _by_slice(judged, before, params),
        }
    return found.model_copy(update=told)


def _by_past(params: HeadroomParams) -> bool:
    """Whether a probe of the champion's time is what the newer one is held against."""
    return params.against == "past" or (params.against == "auto" and params.family != "own")


def _mean(sample: Sample, before: Floats) -> Mean:
    return clustered_mean(difference(sample.label, before, sample.probe, number=sample.number), sample.days)


def _fewer_errors(sample: Sample, before: Floats) -> Mean:
    wrong, still = (row_errors(sample.label, score).astype(np.float64) for score in (before, sample.probe))
    return clustered_mean(wrong - still, sample.days)


def _beside(sample: Sample) -> tuple[Beside, ...]:
    """The metric that a case of this kind is known by, where it is defined: ROC-AUC, with classes macro-F1, or RMSE."""
    label, pair = sample.label, (sample.champion, sample.probe)
    if sample.number:
        champion, probe = (float(row_squared_error(label, one).mean()) ** 0.5 for one in pair)
        return (Beside(metric="rmse", champion=champion, probe=probe),)
    if sample.champion.ndim == 2:
        champion, probe = (macro_f1(confusion(label, score)) for score in pair)
        return (Beside(metric="macro_f1", champion=champion, probe=probe),)
    areas = [area for score in pair if (area := roc_auc(label, score)) is not None]
    if len(areas) < 2:
        return ()
    return (Beside(metric="roc_auc", champion=areas[0], probe=areas[1]),)


def _by_slice(sample: Sample, before: Floats, params: HeadroomParams) -> tuple[SliceGain, ...]:
    """The gain on every value of the groups that has ``min_rows`` rows, by name."""
    d = difference(sample.label, before, sample.probe, number=sample.number)
    found = []
    for name, column in sample.groups.items():
        values = column.astype(str)
        every, counts = np.unique(values, return_counts=True)
        for value in every[counts >= params.min_rows].tolist():
            own = values == value
            gain = around(clustered_mean(d[own], sample.days[own]), params.confidence)
            found.append(SliceGain(field=name, value=value, rows=int(own.sum()), gain=gain))
    return tuple(found)
