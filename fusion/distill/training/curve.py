"""The loss curve of a run: JSON lines, and a picture where matplotlib is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.distill.training.shards import write_file
from fusion.figures import new_figure, save

CURVE = "curve.jsonl"
PICTURE = "curve.png"

_KEPT = {"loss": "loss", "eval_loss": "held_out", "grad_norm": "norm", "learning_rate": "learning_rate"}

Entry = dict[str, float]


def curve_of(history: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The entries of a Trainer's log that do not depend on how fast it ran."""
    entries = []
    for line in history:
        kept = {name: float(line[key]) for key, name in _KEPT.items() if key in line}
        if kept:
            entries.append({"step": line["step"], **kept})
    return entries


def write_curve(path: Path, entries: Sequence[Entry]) -> None:
    """One JSON object a line: `step`, with `loss` (a mean since the entry before), `norm` and `learning_rate`, or
    with `held_out`."""
    write_file(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read_curve(path: Path) -> list[Entry]:
    """The entries that `write_curve` wrote; none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_curve(path: Path, entries: Sequence[Entry], title: str) -> bool:
    """Draw losses over steps as PNG; False where matplotlib is not installed."""
    figure = new_figure(6, 3.5)
    if figure is None:
        return False
    axes = figure.add_subplot()
    for name, label in (("loss", "training"), ("held_out", "held out")):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, marker="o" if name == "held_out" else None, markersize=3
            )
    axes.set(xlabel="step", ylabel="loss in nats a token", title=title)
    if axes.lines:
        axes.legend()
    return save(figure, path)
