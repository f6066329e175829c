"""The commands of `tutti distill`, which import what needs torch themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.commands.tables import console

distill = typer.Typer(help="Make one model of several, by training.", no_args_is_help=True)


@distill.callback()
def _distill() -> None:
    """Methods have commands of their own."""


@distill.command()
def fusechat(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Models, data and settings, a YAML file.")],
    stage: Annotated[
        str | None, typer.Option(help="Only this one: represent, align, train, merge or evaluate.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print tokens, steps, memory and disk, and run nothing.")
    ] = False,
) -> None:
    """Distil several chat models into one (FuseChat); run it again to go on where it was stopped."""
    from server.commands.distill.fusechat import distill as run
    from server.commands.distill.fusechat import stage_named

    run(file, stage_named(stage) if stage else None, dry_run, console(), Console(stderr=True))


@distill.command()
def bohdi(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Models and settings, a YAML file.")],
) -> None:
    """Teach a model with questions that others write, most where it is weak (Bohdi); run it again to go on."""
    from server.commands.distill.bohdi import distill as run

    run(file, console(), Console(stderr=True))


@distill.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The work folder of a run of bohdi.")],
) -> None:
    """Print the tree of domains of a Bohdi run, and draw it and the shares of the domains."""
    from server.commands.distill.show import show as print_run

    print_run(run, console(), Console(stderr=True))
