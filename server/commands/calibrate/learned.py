"""The part of the report that shows learned weights: a table and a picture."""

from __future__ import annotations

import numpy as np
from rich.markup import escape as plain
from rich.table import Table

from fusion.figures import new_figure, png
from server.commands.calibrate.learning import Learned
from server.commands.tables import right, table

PICTURE = "weights.png"


def heading(learned: Learned) -> list[str]:
    """The columns of the table."""
    return ["task", *learned.fit.weights.members]


def rows(learned: Learned) -> list[list[str]]:
    """A row for each task, the mean weight of each member."""
    return [[task, *(f"{weight:.2f}" for weight in each.values())] for task, each in learned.by_task().items()]


def weights_table(learned: Learned) -> Table:
    """Mean weights by task, of questions that they were not fitted on."""
    about = learned.fit.weights.about
    task, *members = map(plain, heading(learned))
    result = table(f"Learned weights by task ({about.kind}, {about.combine})", task, *map(right, members))
    for row in rows(learned):
        result.add_row(*map(plain, row))
    return result


def picture(learned: Learned) -> bytes | None:
    """These weights as bars, as PNG; None where matplotlib is not installed or there is no task."""
    tasks = learned.by_task()
    figure = new_figure(7, 1.2 + 0.4 * len(tasks))
    if not tasks or figure is None:
        return None
    axes = figure.add_subplot()
    left = np.zeros(len(tasks))
    for member in learned.fit.weights.members:
        weights = np.array([each[member] for each in tasks.values()])
        axes.barh(list(tasks), weights, left=left, label=member)
        left += weights
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="mean weight", title="Learned weights by task")
    axes.legend(fontsize=7, ncols=len(learned.fit.weights.members), loc="upper center", bbox_to_anchor=(0.5, -0.3))
    return png(figure)
