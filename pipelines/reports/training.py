"""Figures of a training and of its judgement, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2a33"
FAINT = "#c9d1d6"
LINE = "#22708f"
SECOND = "#c4632b"
BINS = 10
DPI = 130
NAMED = 40
"""Classes that a confusion has names and counts of."""
UNNAMED_INCHES = 9.0
"""A side of the confusion of more."""
SMOOTH = 40
"""A mean over 1/40 of all steps is drawn over the single steps."""


def curves(lines: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path:
    """Loss, learning rate, throughput and gradient norm by optimiser step, in one figure.

    They are read from the lines of metrics.jsonl.
    """
    steps = [line for line in lines if "loss" in line]
    held = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    at = np.array([line["step"] for line in steps])
    figure, axes = _figure(2, 2, (11, 6.4))
    loss, rate, speed, norm = axes.flat
    _series(loss, at, [line["loss"] for line in steps], "Loss", name="training")
    if held:
        loss.plot(*zip(*held, strict=True), color=SECOND, marker="o", markersize=4, linewidth=1.5, label="validation")
        loss.legend(frameon=False, labelcolor=INK)
    _series(rate, at, [line["lr"] for line in steps], "Learning rate", mean=False)
    rate.set_ylim(bottom=0)
    span = max(1, len(steps) // SMOOTH)
    _series(speed, at[span:], _speeds(steps, span), "Samples per second", mean=False)
    speed.set_ylim(bottom=0)
    _series(
        norm,
        at,
        [np.nan if line.get("grad_norm") is None else line["grad_norm"] for line in steps],
        "Gradient norm before clipping",
    )
    for axis in axes[1]:
        axis.set_xlabel("optimiser step", color=INK)
    return _save(figure, title, path)


def confusion(table: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> Path:
    """Rows are the true classes, columns the predicted ones; shades are shares of a row, numbers are counts.

    Of more than ``NAMED`` classes there are shades alone, by the classes' positions: a figure that names a thousand
    would have more pixels than memory holds.
    """
    counts = np.array(table, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= NAMED
    size = max(4.5, 0.62 * len(classes) + 2.6) if named else UNNAMED_INCHES
    figure, axes = _figure(1, 1, (size + 0.8, size))
    axis = axes.flat[0]
    axis.grid(visible=False)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted", color=INK)
    axis.set_ylabel("true", color=INK)
    if not named:
        return _save(figure, title, path)
    axis.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), classes)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            axis.text(
                column,
                row,
                f"{counts[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.55 else INK,
            )
    return _save(figure, title, path)


def calibration(labels: Any, scores: Any, title: str, path: Path) -> Path:
    """How often what was scored p occurred, in bins of equally many rows, over how many rows got which score.

    ``scores`` [n], ``labels`` 0 or 1.
    """
    labels = np.asarray(labels, dtype=float)
    scores = np.asarray(scores, dtype=float)
    parts = [part for part in np.array_split(np.argsort(scores, kind="stable"), BINS) if len(part)]
    said, came = ([float(values[part].mean()) for part in parts] for values in (scores, labels))
    figure, axes = _figure(2, 1, (6.4, 7), heights=(3, 1))
    above, below = axes.flat
    limit = min(1.0, 1.1 * max(*said, *came, 0.05))
    above.plot([0, limit], [0, limit], color=FAINT, linestyle="--", linewidth=1.2, label="perfect")
    above.plot(said, came, color=LINE, marker="o", markersize=5, linewidth=1.5, label="challenger")
    above.set(xlim=(0, limit), ylim=(0, limit))
    above.set_ylabel("share of positives", color=INK)
    above.legend(frameon=False, labelcolor=INK, loc="upper left")
    below.hist(scores, bins=np.linspace(0, limit, 31).tolist(), color=LINE)
    below.set_xlim(0, limit)
    below.set_xlabel("score", color=INK)
    below.set_ylabel("rows", color=INK)
    return _save(figure, title, path)


def numbers(labels: Any, predicted: Any, unit: str, title: str, path: Path) -> Path:
    """What came beside what was predicted, in bins of equally many rows, over how far single rows were off.

    ``labels`` and ``predicted`` [n] in ``unit``. Errors beyond their central 99% are drawn at its ends.
    """
    labels, predicted = np.asarray(labels, dtype=float), np.asarray(predicted, dtype=float)
    parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), BINS) if len(part)]
    said, came = ([float(values[part].mean()) for part in parts] for values in (predicted, labels))
    figure, axes = _figure(2, 1, (6.4, 7), heights=(3, 1))
    above, below = axes.flat
    ends = [min(*said, *came), max(*said, *came)]
    above.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1.2, label="perfect")
    above.plot(said, came, color=LINE, marker="o", markersize=5, linewidth=1.5, label="challenger")
    above.set_xlabel(f"mean predicted, {unit}", color=INK)
    above.set_ylabel(f"mean label, {unit}", color=INK)
    above.legend(frameon=False, labelcolor=INK, loc="upper left")
    error = predicted - labels
    low, high = np.quantile(error, [0.005, 0.995])
    below.hist(error.clip(low, high), bins=30, color=LINE)
    below.set_xlabel(f"predicted minus label, {unit}", color=INK)
    below.set_ylabel("rows", color=INK)
    return _save(figure, title, path)


def _speeds(steps: Sequence[Mapping[str, Any]], span: int) -> list[float]:
    """Samples per second over the last ``span`` steps, for every step from the one after them.

    None where no time has passed. Over a span, as the mean of single steps' rates is not the rate of all of them.
    """
    found = []
    for before, line in zip(steps, steps[span:], strict=False):
        seconds = line["seconds"] - before["seconds"]
        found.append((line["samples"] - before["samples"]) / seconds if seconds > 0 else np.nan)
    return found


def _series(
    axis: Axes, at: Any, values: Sequence[float], title: str, *, name: str | None = None, mean: bool = True
) -> None:
    series = np.array(values, dtype=float)
    width = max(1, len(values) // SMOOTH)
    many = mean and width > 1
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.locator_params(axis="x", integer=True)
    if not np.isfinite(series).any():
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=INK, fontsize=9)
        return
    if not many:
        axis.plot(at, series, color=LINE, linewidth=1.5, alpha=1, label=name)
    else:
        axis.plot(at, series, color=LINE, linewidth=0.8, alpha=0.3)
        smooth = np.convolve(np.nan_to_num(series, nan=float(np.nanmean(series))), np.ones(width) / width, mode="valid")
        axis.plot(at[width - 1 :], smooth, color=LINE, linewidth=1.6, label=name)
        # Single steps jump: their extremes would flatten what is to be seen.
        low, high = np.nanpercentile(series, [0.5, 99.5])
        axis.set_ylim(low - 0.08 * (high - low + 1e-12), high + 0.08 * (high - low + 1e-12))


def _figure(
    rows: int, columns: int, size: tuple[float, float], heights: tuple[float, ...] | None = None
) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures, and would look for a screen.
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        axis.grid(color=FAINT, linewidth=0.6, alpha=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK, labelsize=9, length=0)
    return figure, axes


def _save(figure: Figure, title: str, path: Path) -> Path:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, weight="bold")
    # Without the version in the file: equal figures have equal bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
