"""Figures: pictures of a run, where matplotlib is installed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from alignment.files import writing


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> bool:
    """Write a figure as PNG. ConfigError where there is no room for it."""
    with writing(path):
        path.write_bytes(png(figure))
    return True


def png(figure: Any) -> bytes:
    """A figure as a PNG file has it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = BytesIO()
    FigureCanvasAgg(figure).print_png(content)  # type: ignore[no-untyped-call]
    return content.getvalue()
