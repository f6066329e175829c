"""Pictures of the dashboards from recorded metrics: `python -m tools.pictures.dashboards [SECONDS]`.

The layout, titles, legends and queries are those of the JSON that Grafana is given; the load is the test's.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from tests.support.dashboards import boards, filled
from tests.support.demo import REPOSITORY
from tests.support.monitored_server import Observation, observation
from tests.support.prometheus import Series

PICTURES = REPOSITORY / "docs" / "pictures"
RATES_OVER = "10s"
WIDTH, UNIT, DOTS = 15.0, 0.3, 80  # inches across, inches of a row of Grafana's grid, dots per inch
BACKGROUND, PANEL, EDGE, TEXT, FAINT = "#0b0c0f", "#1b1e24", "#34373f", "#ccccdc", "#8e8ea0"
COLORS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#5794f2", "#705da0", "#37872d"]
HEAT = LinearSegmentedColormap.from_list("heat", ["#4a2206", "#ff9830", "#fff8e0"])
LIMITS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}


def main(seconds: float) -> None:
    """Record, draw, write."""
    mpl.rcParams |= {"font.size": 8, "text.color": TEXT, "axes.labelcolor": TEXT, "text.parse_math": False}
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, observation(Path(folder), seconds) as observed:
        for name, board in boards().items():
            path = PICTURES / f"{name}.png"
            _draw(board, observed).savefig(path, dpi=DOTS, facecolor=BACKGROUND)
            with Image.open(path) as image:  # a few colours are enough, and a third of the size
                image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)
            print(path)


def _draw(board: dict[str, Any], observed: Observation) -> Figure:
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) + 2
    figure = Figure(figsize=(WIDTH, height * UNIT))
    figure.text(0.01, 1 - 1 / height, board["title"], fontsize=13, weight="bold", va="center")
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        bottom, tall = 1 - (place["y"] + 2 + place["h"]) / height, place["h"] / height
        if panel["type"] == "row":
            figure.text(left + 0.01, bottom + tall / 2, f"⌄ {panel['title']}", fontsize=10, va="center")
            continue
        axes = figure.add_axes((left + 0.003, bottom + 0.15 / height, width - 0.006, tall - 0.3 / height))
        axes.set(facecolor=PANEL, xticks=[], yticks=[])
        axes.spines[:].set_color(EDGE)
        axes.text(0.015, 1 - 0.35 / place["h"], panel["title"], fontsize=8.5, va="top", transform=axes.transAxes)
        DRAWN[panel["type"]](axes, panel, _asked(panel, observed))
    return figure


def _asked(panel: dict[str, Any], observed: Observation) -> list[tuple[str, Series]]:
    """The series of a panel, with their names in its legend."""
    found = []
    for target in panel["targets"]:
        for series in observed.prometheus.over_time(
            filled(target["expr"], RATES_OVER), observed.start, observed.end
        ):
            legend = target.get("legendFormat", "")
            for label, value in series.labels.items():
                legend = legend.replace(f"{{{{{label}}}}}", value)
            if series.known:
                found.append((legend, series))
    return found


def _lines(axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    inner = axes.inset_axes((0.1, 0.37, 0.88, 0.46))
    _style(inner, defaults["unit"])
    bottom: np.ndarray[Any, Any] | None = None
    colors = COLORS * (1 + len(found) // len(COLORS))
    for (_, series), color in zip(found, colors, strict=False):
        times, values = _curve(series, found)
        if "stacking" in defaults["custom"]:
            below = np.zeros_like(values) if bottom is None else bottom
            bottom = below + np.nan_to_num(values)
            inner.fill_between(times, below, bottom, color=color, alpha=0.5, linewidth=0)
            inner.plot(times, bottom, color=color, linewidth=1)
        else:
            inner.plot(times, values, color=color, linewidth=1)
    top = defaults.get("max") or inner.get_ylim()[1]
    inner.set_ylim(0, top * 1.04)
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        if step["value"] <= top:
            inner.axhline(step["value"], color=LIMITS[step["color"]], linewidth=0.8, linestyle="--")
    shown = sorted(zip(found, colors, strict=False), key=lambda item: -abs(item[0][1].points[-1][1]))[:6]
    for index, ((legend, series), color) in enumerate(shown):
        row, column = index % 3, index // 3
        values = [value for _, value in series.points if math.isfinite(value)]
        text = f"{legend or panel['title']}  {_number(float(np.mean(values)), defaults['unit'])}"
        y = 0.235 - 0.095 * row
        axes.text(0.03 + 0.49 * column, y, "▬", color=color, fontsize=6, va="center", transform=axes.transAxes)
        beside = 0.03 + 0.49 * column + 0.28 / panel["gridPos"]["w"]
        axes.text(beside, y, text, fontsize=6.5, va="center", transform=axes.transAxes)


def _curve(series: Series, found: list[tuple[str, Series]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values at all times of the panel, so that series can be stacked."""
    times = sorted({at for _, other in found for at, _ in other.points})
    known = dict(series.points)
    return np.array(times) - times[0], np.array([known.get(at, math.nan) for at in times])


def _number_panel(axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    color = TEXT
    text = defaults["noValue"]
    if found:
        values = np.array([value for _, value in found[0][1].points])
        for step in defaults.get("thresholds", {}).get("steps", []):
            if step["value"] is None or values[-1] >= step["value"]:
                color = LIMITS[step["color"]]
        text = _number(float(values[-1]), defaults["unit"])
        inner = axes.inset_axes((0, 0, 1, 0.4))
        inner.axis("off")
        inner.fill_between(range(len(values)), np.nan_to_num(values), color=color, alpha=0.25, linewidth=0)
        inner.set_ylim(0, max(1e-9, 1.1 * float(np.nanmax(values))))
    axes.text(0.5, 0.5, text, color=color, fontsize=17, ha="center", va="center", transform=axes.transAxes)


def _heat(axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]]) -> None:
    """Prometheus counts values up to a bound; a cell counts values between two bounds."""
    inner = axes.inset_axes((0.11, 0.06, 0.87, 0.77))
    ordered = sorted((series for _, series in found), key=lambda series: float(series.labels["le"]))
    if not ordered:
        return
    counts = np.stack([_curve(series, found)[1] for series in ordered])
    cells = np.diff(np.nan_to_num(counts), axis=0, prepend=0)
    used = np.flatnonzero(cells.sum(axis=1) > 0)
    first, last = max(0, int(used.min(initial=0)) - 1), int(used.max(initial=0)) + 2
    shown = np.ma.masked_equal(cells[first:last], 0)
    inner.imshow(shown, aspect="auto", origin="lower", cmap=HEAT, interpolation="nearest")
    inner.set_facecolor(PANEL)
    unit = panel["options"]["yAxis"]["unit"]
    labels = [_number(float(series.labels["le"]), unit) for series in ordered[first:last]]
    inner.set_yticks(range(0, len(labels), 1 + len(labels) // 8), labels[:: 1 + len(labels) // 8])
    inner.tick_params(colors=FAINT, labelsize=6.5, length=0)
    inner.set_xticks([])
    inner.spines[:].set_visible(False)


def _table(axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]]) -> None:
    places = panel["transformations"][0]["options"]["indexByName"]
    columns = sorted(places, key=places.get)
    rows = sorted([series.labels[column] for column in columns] for _, series in found)
    for index, row in enumerate([columns, *rows]):
        for place, cell in enumerate(row):
            color = FAINT if index == 0 else TEXT
            position = (0.03 + 0.19 * place, 0.8 - 0.065 * index)
            axes.text(*position, cell, color=color, fontsize=6.5, transform=axes.transAxes)


DRAWN = {"timeseries": _lines, "stat": _number_panel, "heatmap": _heat, "table": _table}


def _style(axes: Axes, unit: str) -> None:
    axes.set_facecolor(PANEL)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color="#2c2f36", linewidth=0.6)
    axes.tick_params(colors=FAINT, labelsize=6.5, length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:.0f} s"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value, unit)))
    axes.locator_params(axis="y", nbins=4)


def _number(value: float, unit: str) -> str:
    """A value as Grafana writes it."""
    if not math.isfinite(value):
        return "∞"
    if unit == "s":
        scale, name = (
            (1, "s") if abs(value) >= 1 or value == 0 else (1e3, "ms") if abs(value) >= 1e-3 else (1e6, "µs")
        )
        return f"{value * scale:.3g} {name}"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    suffix = {"reqps": " req/s", "ops": " /s", "short": ""}.get(unit, unit.removeprefix("suffix:"))
    return f"{value:.3g}{suffix}" if abs(value) < 1000 else f"{value / 1000:.3g}k{suffix}"


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 90.0)
