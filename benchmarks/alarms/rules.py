"""The rules of the table of false alarms on many windows at once.

Ours, PSI and KS as they are commonly used, Evidently's default. Ours is the project's own: edges, overdispersion and
parameters come from its functions, and only the arithmetic of ``compare()`` is done for all windows together.
:func:`verify` holds that to the real ``compare()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import chi2, kstwo, ncx2

from benchmarks.alarms.traffic import GRID, NUMBERS, SHARES, Counts
from pipelines.drift import stats
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.bits import histogram
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.spec import Spec
from pipelines.drift.reference import DAY_GROUPS, reference_profile
from pipelines.errors import PerennialError
from pipelines.feature_names import SCORE
from pipelines.fields import Categorical, Fields, Numeric, Scale
from pipelines.params_file import load_params

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

PARAMS = load_params("loans").drift
SCALE = Scale(0.0, 0.741301)  # one over the interquartile range of a standard normal, as spec.freeze() gives it
NAMES = (*(f"n{number:02d}" for number in range(NUMBERS)), *(f"c{number}" for number in range(len(SHARES))))
FIELDS = Fields(
    "alarms",
    tuple(
        Numeric(name) if name.startswith("n") else Categorical(name, tuple(map(str, range(len(SHARES[int(name[1:])])))))
        for name in NAMES
    ),
    "label",
)
SPEC = Spec("alarms", dict.fromkeys(NAMES[:NUMBERS], SCALE) | {SCORE: Scale(0.0, 1.0)})
FLOOR = 1e-4
"""PSI as it is commonly computed: a share of nothing counts as this."""
FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Judged:
    """What each rule says of windows ``[W, F]``: of every feature whether it is flagged.

    For ours its p-value, and ``phi`` ``[F]``.
    """

    ours: Flags
    p_values: Floats
    psi10: Flags
    psi25: Flags
    ks: Flags
    phi: Floats


def judge(days: Counts, windows: Counts) -> Judged:
    """Windows against the reference that the ``days`` make together."""
    found = [_one(*_column(days, number), _column(windows, number)[0]) for number in range(len(NAMES))]
    p_values, practice, ks = (np.stack([one[part] for one in found], axis=1) for part in range(3))
    fallen = np.stack([stats.benjamini_hochberg(window, PARAMS.q) for window in p_values])
    return Judged(fallen, p_values, practice > 0.1, practice > 0.25, ks < 0.05, np.array([one[3] for one in found]))


def _column(counts: Counts, number: int) -> tuple[Ints, bool]:
    if number < NUMBERS:
        return (counts.numbers[:, number], True)
    return (counts.categories[number - NUMBERS], False)


def _one(days: Ints, number: bool, windows: Ints) -> tuple[Floats, Floats, Floats, float]:
    """Of one feature in all windows: our p-value, common PSI, p-value of KS (a number) or chi-squared (a category).

    And its overdispersion.
    """
    total = int(days.sum())
    rows = int(windows[0].sum())
    if number:
        ks = _ks(days.sum(axis=0), windows)
        into = edges(days.sum(axis=0), PARAMS.bins)
        phi = stats.overdispersion(fold(days, edges(days.sum(axis=0), DAY_GROUPS)))
        days = fold(days, into)
        windows = fold(windows, into)
    else:
        phi = stats.overdispersion(days)
    m = days.sum(axis=0)
    p_values = np.empty(len(windows))
    # A value that neither reference nor window has is no bin of compare().
    for present in np.unique((m + windows) > 0, axis=0):
        same = (((m + windows) > 0) == present).all(axis=1)
        p_values[same] = _ours(m[present], windows[same][:, present], phi)
    p = np.maximum(m / total, FLOOR)
    q = np.maximum(windows / rows, FLOOR)
    practice = ((q - p) * np.log(q / p)).sum(axis=1)
    if not number:
        table = (windows / rows - m / total) ** 2 / np.maximum(windows + m, 1) * (rows + total)
        ks = chi2.sf(table.sum(axis=1) * stats.effective_rows(total, rows), len(m) - 1)
    return p_values, practice, ks, phi


def _ours(m: Ints, n: Ints, phi: float) -> Floats:
    """As :func:`pipelines.drift.inputs.compare.compare`: the minimum-effect p-value of windows ``n`` ``[W, B]``."""
    total = int(m.sum())
    rows = int(n[0].sum())
    bins = len(m)
    ne = stats.effective_rows(total, rows, phi)
    p = (m + stats.SMOOTHING) / (total + stats.SMOOTHING * bins)
    q = (n + stats.SMOOTHING) / (rows + stats.SMOOTHING * bins)
    psi = ((q - p) * np.log(q / p)).sum(axis=1)
    pearson = ((n / rows - m / total) ** 2 / (n + m)).sum(axis=1) * (rows + total)
    value = np.minimum(psi, pearson)
    found: Floats = np.where(value > 0, ncx2.sf(value * ne, bins - 1, PARAMS.delta0 * ne), 1.0)
    return found


def edges(reference: Ints, bins: int) -> Ints:
    """The group of every value of GRID: values to the profile's bins, bins to the project's groups."""
    _, place = np.unique(histogram(GRID, SCALE), return_inverse=True)
    return stats.groups(np.bincount(place, reference).astype(np.int64), bins)[place]


def fold(counts: Ints, into: Ints) -> Ints:
    """Counts ``[W, V]`` in groups, which are runs of values: ``[W, G]``."""
    return np.add.reduceat(counts, np.flatnonzero(np.diff(into, prepend=-1)), axis=1)


def _ks(reference: Ints, windows: Ints) -> Floats:
    """p-values as scipy's ``ks_2samp(method="asymp")`` gives them."""
    total = int(reference.sum())
    rows = int(windows[0].sum())
    distance = np.abs(np.cumsum(windows, axis=1) / rows - np.cumsum(reference) / total).max(axis=1)
    # All that is asked is whether p < 0.05: beyond that distance it is, and the function is monotone.
    return np.where(distance > kstwo.isf(0.05, round(stats.effective_rows(total, rows))), 0.0, 1.0)


def confirmed(flags: Flags) -> Flags:
    """Windows ``[..., W, F]`` of streams in which a feature is flagged in ``confirm`` of the last ``out_of``.

    The windows are consecutive, and counted as policy.py counts.
    """
    before = [np.zeros_like(flags[..., :1, :])] * (PARAMS.out_of - 1)
    padded = np.concatenate([*before, flags], axis=-2).astype(np.int64)
    flagged = np.zeros(flags.shape, np.int64)
    for start in range(PARAMS.out_of):
        flagged += padded[..., start : start + flags.shape[-2], :]
    return flagged >= PARAMS.confirm


# --- against the real thing ---------------------------------------------------------------------


def verify(days: Counts, windows: Counts, judged: Judged, chosen: list[int]) -> int:
    """Put the ``chosen`` windows through profile and ``compare()``: equal p-values and flags, or PerennialError.

    Returns how many.
    """
    train = pl.concat(
        [
            frame(days, day).with_columns(event_time=pl.lit(FIRST_DAY + timedelta(days=day)))
            for day in range(len(days.numbers))
        ]
    )
    reference = reference_profile(train, np.array([0.5]), FIELDS, SPEC)
    for window in chosen:
        for found in compare(reference, profile_frame(frame(windows, window), FIELDS, SPEC), FIELDS, SPEC, PARAMS):
            place = NAMES.index(found.feature)
            ours = float(judged.p_values[window, place])
            if abs(ours - found.p_value) > 1e-9 or bool(judged.ours[window, place]) != found.drifted:
                raise PerennialError(
                    f"window {window}, {found.feature}: compare() says p = {found.p_value}, drifted {found.drifted}; "
                    f"the table {ours}"
                )
    return len(chosen)


def frame(counts: Counts, window: int) -> pl.DataFrame:
    """Rows with these counts; which values stand in one row is of no account here."""
    numbers = {name: np.repeat(GRID, counts.numbers[window, number]) for number, name in enumerate(NAMES[:NUMBERS])}
    words = {
        name: np.repeat(np.arange(len(part[window])).astype(str), part[window])
        for name, part in zip(NAMES[NUMBERS:], counts.categories, strict=True)
    }
    return pl.DataFrame(numbers | words)
