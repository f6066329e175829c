"""Figures: pictures of a run, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion.distill.fusechat.shards import writing


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> bool:
    """Write a figure as PNG. ConfigError where there is no room for it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with writing(path):
        FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
    return True
