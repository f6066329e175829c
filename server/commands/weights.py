"""`tutti weights`: perplexities and weights of the members for one prompt, by each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openai
from rich.markup import escape
from rich.table import Column, Table

from alignment.errors import ConfigError, RequestError
from fusion.options import MEASURES
from server.commands.tables import right, table
from server.settings import Settings

Reports = dict[str, dict[str, Any]]  # by method, `fusion` of an answer


def ensemble_named(settings: Settings, name: str | None) -> str:
    """The ensemble to ask: the one that is named, else the first.

    Raises:
        ConfigError: there is none of that name, or none at all.
    """
    if not settings.ensembles:
        raise ConfigError("There is no ensemble in this configuration, so there is nothing to weigh.")
    if name is not None and name not in settings.ensembles:
        raise ConfigError(f"There is no ensemble {name!r}; choose from {', '.join(settings.ensembles)}.")
    return name or next(iter(settings.ensembles))


def methods_of(settings: Settings, name: str) -> list[str]:
    """The methods that an ensemble can weigh by: learned weights take a file."""
    learned = settings.ensembles[name].weighting.file is not None
    return [method for method in MEASURES if method != "learned" or learned]


async def measure(client: openai.AsyncOpenAI, ensemble: str, prompt: str, methods: Sequence[str]) -> Reports:
    """Ask the server for one token by each method, with the report of its weights.

    Raises:
        RequestError: the server refuses the prompt.
    """
    reports: Reports = {}
    for method in methods:
        try:
            answer = await client.chat.completions.create(
                model=ensemble,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=1,
                extra_body={"fusion": {"weights": method, "report": True}},
            )
        except openai.APIStatusError as error:
            raise RequestError(error.response.json()["error"]["message"]) from error
        reports[method] = (answer.choices[0].model_extra or {})["fusion"]
    return reports


def weights_table(ensemble: str, reports: Reports) -> Table:
    """One row per member: perplexity, and its weight by each method; below it the notes of the report."""
    first = next(iter(reports.values()))
    told = first["weighting"]
    title = f"{escape(ensemble)}: {told['tokens']} tokens of {escape(first['pivot'])} measured"
    result = table(title, Column("member", no_wrap=True), right("perplexity"))
    for method in reports:
        result.add_column(method, justify="right", no_wrap=True)
    for member in told["weights"]:
        perplexity = told["perplexity"].get(member)
        cells = [_weight(report["weighting"], member) for report in reports.values()]
        result.add_row(escape(member), "" if perplexity is None else f"{perplexity:.2f}", *cells)
    notes = dict.fromkeys(note for report in reports.values() for note in report["weighting"]["notes"])
    result.caption = "\n".join(map(escape, notes)) or None
    return result


def _weight(weighting: dict[str, Any], member: str) -> str:
    closed = " [dim]closed[/]" if member in weighting["pruned"] else ""
    return f"{weighting['weights'][member]:.3f}{closed}"
