"""The three dashboards without Grafana: every panel's queries asked of a real Prometheus, and drawn.

    python -m benchmarks.full.panels http://127.0.0.1:9090

Draws docs/img/dashboard-<name>.png from the queries that Grafana is provisioned with (compose/grafana/dashboards.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from embedded import http
from embedded.processes import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = ROOT / "docs" / "img"
POINTS = 160
LINES = 8
"""Of a panel with more series the largest are drawn; Grafana would draw them all and let one choose."""
NO_NUMBER = "no case of this stack predicts a number"
ABSENT = {
    ("system", "Saturation of Triton", "GPU {{gpu_uuid}}"): "Triton reports it where it has a GPU",
    (
        "model",
        "Rise over the holdout",
        "{{case}} {{bound}}",
    ): "no labels have arrived yet for what the newest champion answered",
    ("model", "Requests without an answer", "{{case}} {{version}}"): "every request has had an answer",
    ("model", "Errors of predicted numbers", "{{case}} RMSE, {{bound}}"): NO_NUMBER,
    ("model", "Errors of predicted numbers", "{{case}} MAE, {{bound}}"): NO_NUMBER,
    ("model", "Rise over the holdout", "{{case}} squared error, {{bound}}"): NO_NUMBER,
}
"""Dashboard, panel and legend of queries that may rightly find nothing, and why."""
INK = "#22303c"
GREY = "#8a97a3"
UNITS = {
    "reqps": "requests/s",
    "percentunit": "share",
    "s": "seconds",
    "d": "days",
    "short": "",
    "none": "",
    "bool_on_off": "",
}


def dashboards() -> Any:
    """The module that writes Grafana's files: compose/ is no package."""
    spec = importlib.util.spec_from_file_location("dashboards", ROOT / "compose" / "grafana" / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module
    spec.loader.exec_module(module)
    return module


def ask(url: str) -> list[dict[str, Any]]:
    """Every query of every panel, asked now: how many series it finds, and why it may find none."""
    boards = dashboards()
    found = []
    for board in boards.DASHBOARDS:
        for panel, legend, query in boards.queries(board):
            series = len(_get(url, "query", query=query))
            found.append(
                {
                    "dashboard": board.name,
                    "panel": panel,
                    "legend": legend,
                    "series": series,
                    "absent": ABSENT.get((board.name, panel, legend)),
                }
            )
    return found


def finds(url: str, query: str) -> bool:
    """Whether a query finds anything now."""
    return bool(_get(url, "query", query=query))


def draw(url: str, folder: Path = IMAGES) -> list[Path]:
    """One picture of each dashboard, since the Prometheus was started."""
    import matplotlib as mpl

    mpl.use("Agg")
    boards = dashboards()
    folder.mkdir(parents=True, exist_ok=True)
    [age] = _get(url, "query", query='time() - process_start_time_seconds{job="prometheus"}')
    end = time.time()
    return [
        _picture(board, boards, url, (end - float(age["value"][1]), end), folder / f"dashboard-{board.name}.png")
        for board in boards.DASHBOARDS
    ]


def _picture(board: Any, boards: Any, url: str, span: tuple[float, float], path: Path) -> Path:
    import matplotlib.pyplot as plt
    from PIL import Image

    heights = [part for panels in board.rows.values() for part in (0.16, *[1.0] * -(-len(panels) // boards.COLUMNS))]
    figure = plt.figure(figsize=(15, 2.55 * sum(heights)), dpi=80)
    grid = figure.add_gridspec(
        len(heights),
        boards.COLUMNS,
        height_ratios=heights,
        hspace=0.55,
        wspace=0.16,
        left=0.045,
        right=0.985,
        top=0.965,
        bottom=0.025,
    )
    figure.suptitle(board.title, x=0.045, y=0.992, ha="left", size=15, weight="bold", color=INK)
    figure.text(0.985, 0.992, "minutes before now", ha="right", va="top", size=9, color=GREY)
    row = 0
    for title, panels in board.rows.items():
        heading = figure.add_subplot(grid[row, :])
        heading.axis("off")
        heading.text(0, 0, title, size=12, weight="bold", color=INK, va="bottom")
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(grid[row + 1 + number // boards.COLUMNS, number % boards.COLUMNS])
            lines = [
                (_named(legend, series["metric"]), series["values"])
                for legend, query in panel.queries.items()
                for series in _get(
                    url,
                    "query_range",
                    query=query.replace("$case", ".*"),
                    start=span[0],
                    end=span[1],
                    step=(span[1] - span[0]) / POINTS,
                )
            ]
            (_stat if panel.kind == "stat" else _lines)(axes, panel, lines, span)
        row += 1 + -(-len(panels) // boards.COLUMNS)
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    return path


def _lines(axes: Axes, panel: Any, lines: list[tuple[str, Any]], span: tuple[float, float]) -> None:
    largest = sorted(lines, key=lambda line: -max((abs(v) for v in _values(line[1])), default=0.0))[:LINES]
    for name, points in sorted(largest, key=lambda line: line[0]):
        axes.plot(*_drawn(points, span), lw=1.4, label=name)
    about = f"{panel.title}" + (f"  [{UNITS.get(panel.unit, panel.unit)}]" if UNITS.get(panel.unit, panel.unit) else "")
    axes.set_title(
        about + (f"  {LINES} of {len(lines)}" if len(lines) > LINES else ""), loc="left", size=9.5, color=INK
    )
    axes.set_xlim((span[0] - span[1]) / 60, 0)
    drawn = [value for _, points in largest for value in _values(points)]
    low = min([0.0, *drawn])
    high = max([0.0, *drawn])
    axes.set_ylim(1.05 * low, high + 0.6 * (high - low) or 1.0)  # room for the legend
    axes.tick_params(labelsize=7.5, colors=GREY)
    axes.grid(visible=True, lw=0.4, color="#dfe5ea")
    for side in axes.spines.values():
        side.set_color("#dfe5ea")
    if not lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=GREY)
    else:
        axes.legend(fontsize=6.8, frameon=False, loc="upper left", ncols=1 if len(largest) < 4 else 2, labelcolor=INK)


def _stat(axes: Axes, panel: Any, lines: list[tuple[str, Any]], span: tuple[float, float]) -> None:
    axes.axis("off")
    axes.set_title(panel.title, loc="left", size=9.5, color=INK)
    newest = [
        (name, float(points[-1][1])) for name, points in lines if span[1] - points[-1][0] < (span[1] - span[0]) / POINTS
    ][:12]
    per_column = max(1, -(-len(newest) // 2)) if len(newest) > 4 else 4
    for number, (name, value) in enumerate(newest):
        x = 0.5 * (number // per_column)
        y = 0.9 - number % per_column * 0.9 / per_column
        shown = _shown(value, panel.unit)
        axes.text(
            x, y, shown, size=11, weight="bold", color="#1a7f5a" if value else GREY, va="top", transform=axes.transAxes
        )
        axes.text(x + 0.13, y, name, size=8.5, color=INK, va="top", transform=axes.transAxes)


def _shown(value: float, unit: str) -> str:
    """A figure with its unit, as Grafana shows it."""
    if unit == "bool_on_off" and value:
        return "on"
    if unit == "bool_on_off":
        return "off"
    if unit == "d":
        return f"{value:,.4g} d"
    return f"{value:,.4g}"


def _drawn(points: Any, span: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Minutes and values of a line, which is broken where Prometheus has nothing."""
    step = (span[1] - span[0]) / POINTS
    moments: list[float] = []
    values: list[float] = []
    for number, (moment, value) in enumerate(points):
        if number and moment - points[number - 1][0] > 1.5 * step:
            moments.append(moments[-1])
            values.append(math.nan)
        moments.append((moment - span[1]) / 60)
        values.append(float(value))
    return moments, values


def _values(points: Any) -> list[float]:
    return [number for _, value in points if math.isfinite(number := float(value))]


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).strip() or "none"


def _get(url: str, path: str, **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.call(f"{url}/api/v1/{path}?{urlencode(parameters)}")["data"]["result"]
    return found


def main() -> int:
    """Draw, and say which panels found nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full.panels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="the address of a Prometheus")
    given = parser.parse_args()
    for one in ask(given.url):
        if not one["series"]:
            print(
                f"{one['dashboard']}: {one['panel']}, {one['legend']}: no series"
                + (f" ({one['absent']})" if one["absent"] else "")
            )
    for path in draw(given.url):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
