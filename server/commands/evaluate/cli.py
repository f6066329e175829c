"""Commands that ask files of questions, `tutti eval` and `tutti calibrate`; torch is imported only when run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from alignment.errors import ConfigError
from alignment.methods.registry import method_named
from server.commands.options import ApiKey, Config, MaxTokens
from server.commands.tables import console

if TYPE_CHECKING:
    from server.commands.evaluate.asking import Answer
    from server.commands.evaluate.questions import Question
    from server.settings import Settings

Tasks = Annotated[
    list[Path] | None, typer.Option(help="File of questions, repeatable; evaluation.tasks by default.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")]
Completions = Annotated[bool, typer.Option("--completions", help="Ask in plain text instead of a chat.")]
Template = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="With --completions, the text around a question; {prompt} by default."),
]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Text that ends an answer, repeatable.")]
Match = Annotated[
    str | None,
    typer.Option(
        help="How answers are compared where a question does not say: exact, normalized, contains, last_number, "
        "choice; evaluation.match by default."
    ),
]


def _asked_in(completions: bool, template: str | None) -> str | None:
    """The plain text that a question is asked in, or None for a chat."""
    from fusion.calibrate.asking import QUESTION

    if template is not None and not (completions and QUESTION in template):
        raise ConfigError(f"--template is for --completions, and needs {QUESTION} where the question goes.")
    return (template or QUESTION) if completions else None


def _questions(
    settings: Settings | None,
    tasks: list[Path] | None,
    limit: int | None,
    match: str | None,
    metric: str = "match",
    names: list[str] | None = None,
) -> list[Question]:
    """The questions of `tasks` and of the harness's tasks `names`, or of the configuration."""
    from server.commands.evaluate.questions import MATCHES, METRICS, read_all

    configured = settings.evaluation if settings else None
    paths = tasks or [Path(task) for task in (configured.tasks if configured else ())]
    if names and not tasks:
        paths = []
    elif not paths:
        raise ConfigError("Nothing to ask: give --tasks FILE.jsonl, or evaluation.tasks in the configuration.")
    if match is not None and match not in MATCHES:
        raise ConfigError(f"--match is one of {', '.join(MATCHES)}.")
    if metric not in METRICS:
        raise ConfigError(f"--metric is one of {', '.join(METRICS)}.")
    found: list[Question] = []
    if names:
        from server.commands.evaluate.harness import harness_questions

        found = harness_questions(names, limit, match, metric)
    return found + read_all(paths, limit, match or (configured.match if configured else None), metric)


def evaluate(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Load and evaluate this.")] = None,
    url: Annotated[str | None, typer.Option(help="Evaluate a running server instead.")] = None,
    tasks: Tasks = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Served name to evaluate, repeatable; all by default.")
    ] = None,
    limit: Limit = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    max_tokens: MaxTokens = 256,
    completions: Completions = False,
    template: Template = None,
    stop: Stop = None,
    match: Match = None,
    json: Annotated[Path | None, typer.Option(help="Write all answers and scores to this file.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Measure how often each served name answers right, over the same path as a client takes."""
    from fusion.calibrate.asking import Form
    from server.commands.client import local, remote
    from server.commands.evaluate import report
    from server.commands.evaluate.run import evaluate as ask_all
    from server.settings import read_settings

    if (config is None) == (url is None):
        raise ConfigError("Give either a configuration to load, or --url to evaluate a running server.")
    settings = read_settings(config) if config else None
    form = Form(_asked_in(completions, template), tuple(stop or ()), max_tokens)
    questions = _questions(settings, tasks, limit, match)
    progress = Console(stderr=True)

    async def ask() -> list[Answer]:
        async with local(settings) if settings else remote(str(url), api_key) as client:
            return await ask_all(
                client,
                questions,
                progress,
                form=form,
                models=models or (),
                concurrency=concurrency,
            )

    answers = asyncio.run(ask())
    summaries = report.summarise(answers)
    console().print(report.scores_table(summaries))
    for hint in report.hints(summaries, answers):
        progress.print(Text(hint), soft_wrap=True)
    if json:
        report.write_json(json, answers, summaries)
    if failures := report.first_failures(answers):
        for model, reason in failures.items():
            progress.print(Text(f"{model} failed: {reason}"), soft_wrap=True)
        raise typer.Exit(1)


def calibrate(
    config: Config,
    tasks: Tasks = None,
    ensemble: Annotated[str | None, typer.Option(help="The ensemble; the first by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the answers and the report.")] = Path("calibration"),
    seconds: Annotated[float, typer.Option(min=1, help="The longest it may take once models are loaded.")] = 480,
    development: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="The share of the questions to choose on.")
    ] = 0.5,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(
            "--lm-eval", metavar="TASK[=FOLDER]", help="A task of lm-evaluation-harness and its data, repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the division into shares.")] = 0,
    limit: Limit = None,
    max_tokens: MaxTokens = 256,
    alignments: Annotated[
        list[str] | None, typer.Option("--alignment", help="Method to try, repeatable; spelled and exact.")
    ] = None,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Multiple choice by log-likelihood of the choices' texts.")
    ] = False,
    completions: Completions = False,
    template: Template = None,
    stop: Stop = None,
    match: Match = None,
    metric: Annotated[
        str, typer.Option(help="The score of an answer whose question names none: match, chrf, bleu or f1.")
    ] = "match",
    learn_weights: Annotated[
        bool, typer.Option("--learn-weights", help="Fit weights to the answers, and compare these.")
    ] = False,
) -> None:
    """Measure on questions whether fusing pays, and with which pivot, alignment and weights.

    Run it again with the same --out to go on where it was stopped.
    """
    from fusion.calibrate.asking import Form
    from server.commands.calibrate import command
    from server.settings import read_settings

    settings = read_settings(config)
    form = Form(_asked_in(completions, template), tuple(stop or ()), max_tokens)
    questions = _questions(settings, tasks, limit, match, metric, lm_eval)
    for method in alignments or ():
        method_named(method)
    command.calibrate(
        settings,
        ensemble,
        questions,
        form,
        console(),
        out=out,
        seconds=seconds,
        development=development,
        seed=seed,
        alignments=tuple(alignments or command.ALIGNMENTS),
        likelihood=likelihood or bool(lm_eval),
        learn=learn_weights,
    )
