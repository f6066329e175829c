"""Style of tables, progress bars and sentences in a terminal."""

from __future__ import annotations

import os
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

_NO_LIMIT = 10_000


def table(title: str, *columns: str | Column) -> Table:
    """A table without rows that wastes no space, so that seven or eight columns fit a terminal 80 wide."""
    return Table(
        *columns,
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def right(heading: str) -> Column:
    """A column of numbers."""
    return Column(heading, justify="right")


def progress(console: Console, *, disable: bool = False) -> Progress:
    """Bars with what is done of how many, and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=disable)


def say(console: Console, text: str) -> None:
    """Print a text as it is, however long its lines are."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def console() -> Console:
    """Standard output, for results. A file or a pipe has no width that a table would have to be cut to."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fits else _NO_LIMIT)
