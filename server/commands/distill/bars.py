"""Progress bars of a distillation: one for everything that is worked on, with the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import TaskID

from fusion.distill.training.settings import StageProgress
from server.commands.tables import progress


@contextmanager
def bars(console: Console) -> Iterator[StageProgress]:
    """A bar for everything that is worked on, with the time left; without a terminal a line where it ends."""
    with progress(console, disable=not console.is_terminal) as running:
        known: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = running.add_task(what, total=total)
            running.update(known[what], completed=done, total=total)
            if not console.is_terminal and done == total:
                console.print(f"{what}: {done} of {total}", highlight=False)

        yield report
