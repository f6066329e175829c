"""The `tutti` command. Commands import the modules that need torch themselves, so that the others start fast."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from alignment.errors import ConfigError, TuttiError
from alignment.methods.registry import METHODS, method_named
from server import __version__
from server.commands.tables import console

if TYPE_CHECKING:
    from server.commands.chat import ChatClient
    from server.commands.evaluate.asking import Answer


class _Commands(TyperGroup):
    """All commands end the same way on an error that a user can mend: its sentences on stderr, exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TuttiError as error:
            Console(stderr=True).print(Text(str(error)), soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


app = typer.Typer(
    cls=_Commands,
    help="Serve several different LLMs as one, behind an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="TUTTI_API_KEY", help="Bearer key, where the server asks for one.")
]
METHODS_HELP = "; ".join(f"{name}: {method.description}" for name, method in METHODS.items()) + "."
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of server.port; 0 takes a free one.")]


def main() -> None:
    """The console script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tutti {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options before a command."""


@app.command()
def serve(
    config: Config,
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of server.host.")] = None,
    port: Port = None,
) -> None:
    """Load the models of CONFIG and answer requests until SIGTERM or Ctrl-C."""
    from server.commands.serve import serve as run
    from server.settings import read_settings

    settings = read_settings(config)
    given = {"host": host, "port": port}
    server = settings.server.model_copy(update={name: value for name, value in given.items() if value is not None})
    settings = settings.model_copy(update={"server": server})
    names = ", ".join(settings.served)

    def ready(url: str) -> None:
        path = "" if url.startswith("unix:") else "/v1"
        typer.echo(f"Tutti {__version__} serves {names} at {url}{path}")

    run(settings, ready)


@app.command()
def check(config: Config) -> None:
    """Check CONFIG and the models it names without loading weights, and print the plan."""
    from server.settings import read_settings

    settings = read_settings(config)
    from server.commands.check import make_plan, print_plan

    plan = make_plan(settings)
    print_plan(plan, console())
    if plan.problems:
        raise ConfigError("\n".join(plan.problems))


@app.command()
def align(
    model_a: Annotated[
        str | None, typer.Argument(metavar="MODEL_A", help="Whose tokens are mapped: a folder or hub id.")
    ] = None,
    model_b: Annotated[
        str | None, typer.Argument(metavar="MODEL_B", help="Whose tokens they are mapped to, the pivot.")
    ] = None,
    method: Annotated[str, typer.Option(help=METHODS_HELP)] = "hybrid",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the map is written.")] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="The table that is learned from: output (default) or input.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Tokens that a token may go to; 10 by default.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Lowest score of an entry; 0.1 by default.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:N.")] = "cpu",
    hold_out: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.5, help="Learn without this share of the anchors first; tell how many it finds."
        ),
    ] = None,
    inspect: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="FILE TOKEN", help="Print where a token of a map goes. TOKEN is a text or an id."),
    ] = None,
) -> None:
    """Make the vocabulary map of two models a file, for `maps:` in a configuration; or look into one."""
    from server.commands import align as command

    models = (model_a, model_b) if model_a is not None and model_b is not None else None
    if inspect is not None:
        if model_a is not None and models is None:
            raise ConfigError("Give both models of the map to --inspect, or none.")
        command.inspect(Path(inspect[0]), inspect[1], models, console())
        return
    if models is None or out is None:
        raise ConfigError(
            "Give two models and --out FILE to make a map, or --inspect FILE TOKEN to look into one."
        )
    given = {"embeddings": embeddings, "top": top, "threshold": threshold}
    parameters = {name: value for name, value in given.items() if value is not None}
    command.align(*models, method, parameters, out, device, hold_out, console())


@contextmanager
def _client_of(url: str, api_key: str | None) -> Iterator[ChatClient]:
    """A client of a server; its errors end the command as they look within a conversation."""
    from server.commands.chat import ChatClient, ChatError

    try:
        with closing(ChatClient(url, api_key)) as client:
            yield client
    except ChatError as error:
        Console(stderr=True).print(Text(f"error: {error}"), soft_wrap=True)
        raise typer.Exit(1) from error


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="An OpenAI-compatible server.")] = "http://localhost:8000",
    model: Annotated[str | None, typer.Option(help="Whom to talk to; the first one served by default.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Temperature = 0.0,
    quick: Annotated[
        str | None, typer.Option("--quick", "-q", metavar="TEXT", help="Ask only this, print the answer, leave.")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to a model in the terminal, one question per line."""
    from server.commands.chat import Conversation, exchange
    from server.commands.chat import chat as talk

    with _client_of(url, api_key) as client:
        conversation = Conversation(model or client.models()[0], system, temperature)
        terminal = Console(highlight=False)
        if quick is not None:
            exchange(quick, client, conversation, terminal)
            return
        all_well = talk(client, conversation, terminal)
    raise typer.Exit(0 if all_well else 1)


@app.command()
def complete(
    url: Annotated[str, typer.Option(help="An OpenAI-compatible server.")] = "http://localhost:8000",
    model: Annotated[str | None, typer.Option(help="Whom to ask; the first one served by default.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest text.")] = 256,
    temperature: Temperature = 0.0,
    quick: Annotated[
        str | None, typer.Option("--quick", "-q", metavar="TEXT", help="Go on from this text only, and leave.")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Have a model go on from a text, one text per line."""
    from server.commands.chat import Completing, complete_all

    with _client_of(url, api_key) as client:
        how = Completing(model or client.models()[0], max_tokens, temperature)
        all_well = complete_all(client, how, Console(highlight=False), quick)
    raise typer.Exit(0 if all_well else 1)


@app.command("run-batch")
def run_batch(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Load this to answer.")] = None,
    input: Annotated[
        Path, typer.Option("--input", "-i", metavar="FILE", help="Requests in OpenAI's batch format.")
    ] = Path("-"),
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where answers go.")] = Path("-"),
    url: Annotated[str | None, typer.Option(help="Ask a running server instead.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    api_key: ApiKey = None,
) -> None:
    """Answer a file of requests, a line each, into a file of answers."""
    from server.commands import batch
    from server.commands.evaluate.run import local, remote
    from server.settings import read_settings

    if (config is None) == (url is None):
        raise ConfigError("Give either a configuration to load, or --url to ask a running server.")
    if str(input) == "-" or str(output) == "-":
        raise ConfigError("Give both files: --input REQUESTS.jsonl and --output ANSWERS.jsonl.")
    lines = batch.read(input)
    settings = read_settings(config) if config else None
    try:
        file = output.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {(error.strerror or str(error)).lower()}.") from error

    async def ask() -> batch.Count:
        async with local(settings) if settings else remote(str(url), api_key) as client:
            return await batch.run(client, lines, file, concurrency=concurrency)

    with file:
        count = asyncio.run(ask())
    typer.echo(f"{count.answered} of {len(lines)} requests were answered; see {output}", err=True)
    raise typer.Exit(1 if count.failed else 0)


@app.command()
def weights(
    config: Config,
    prompt: Annotated[str, typer.Option(help="What a user would say.")],
    ensemble: Annotated[str | None, typer.Option(help="Which ensemble; the first by default.")] = None,
) -> None:
    """Load the models of CONFIG and show how well each member understands a prompt, and what it would weigh."""
    from server.commands import weights as prompt_weights
    from server.commands.evaluate.run import local
    from server.settings import read_settings

    settings = read_settings(config)
    name = prompt_weights.ensemble_named(settings, ensemble)

    async def ask() -> prompt_weights.Reports:
        async with local(settings) as client:
            return await prompt_weights.measure(client, name, prompt)

    Console().print(prompt_weights.weights_table(name, asyncio.run(ask())))


@app.command("eval")
def evaluate(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Load and evaluate this.")] = None,
    url: Annotated[str | None, typer.Option(help="Evaluate a running server instead.")] = None,
    tasks: Annotated[
        list[Path] | None, typer.Option(help="File of questions, repeatable; evaluation.tasks by default.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Served name to evaluate, repeatable; all by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    completions: Annotated[
        bool, typer.Option("--completions", help="Ask in plain text instead of a chat.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --completions, the text around a question; {prompt} by default."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text that ends an answer, repeatable.")
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            help="How answers are compared where a question does not say: exact, normalized, contains, "
            "last_number, choice; evaluation.match by default."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all answers and scores to this file.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Measure how often each served name answers right, over the same path as a client takes."""
    from server.commands.evaluate import report, run
    from server.commands.evaluate.asking import QUESTION, Asking
    from server.commands.evaluate.questions import MATCHES
    from server.settings import read_settings

    if (config is None) == (url is None):
        raise ConfigError("Give either a configuration to load, or --url to evaluate a running server.")
    settings = read_settings(config) if config else None
    paths = tasks or [Path(task) for task in (settings.evaluation.tasks if settings else ())]
    if not paths:
        raise ConfigError("Nothing to ask: give --tasks FILE.jsonl, or evaluation.tasks in the configuration.")
    if template is not None and not (completions and QUESTION in template):
        raise ConfigError(f"--template is for --completions, and needs {QUESTION} where the question goes.")
    asking = Asking((template or QUESTION) if completions else None, tuple(stop or ()), max_tokens)
    if match is not None and match not in MATCHES:
        raise ConfigError(f"--match is one of {', '.join(MATCHES)}.")
    questions = run.read_all(paths, limit, match or (settings.evaluation.match if settings else None))
    progress = Console(stderr=True)

    async def ask() -> list[Answer]:
        async with run.local(settings) if settings else run.remote(str(url), api_key) as client:
            return await run.evaluate(
                client,
                questions,
                progress,
                asking=asking,
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


@app.command()
def calibrate(
    config: Config,
    tasks: Annotated[
        list[Path] | None, typer.Option(help="File of questions, repeatable; evaluation.tasks by default.")
    ] = None,
    ensemble: Annotated[str | None, typer.Option(help="The ensemble; the first by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the answers and the report.")] = Path("calibration"),
    seconds: Annotated[float, typer.Option(min=1, help="The longest it may take once models are loaded.")] = 480,
    development: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="The share of the questions to choose on.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the division into shares.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    alignments: Annotated[
        list[str] | None, typer.Option("--alignment", help="Method to try, repeatable; spelled and exact.")
    ] = None,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Multiple choice by log-likelihood of the choices' texts.")
    ] = False,
    completions: Annotated[
        bool, typer.Option("--completions", help="Ask in plain text instead of a chat.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --completions, the text around a question; {prompt} by default."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text that ends an answer, repeatable.")
    ] = None,
    match: Annotated[str | None, typer.Option(help="As for `tutti eval`.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="The score of an answer: match, chrf, bleu or f1; match by default.")
    ] = None,
) -> None:
    """Measure on questions whether fusing pays, and with which pivot, alignment and weights.

    Run it again with the same --out to go on where it was stopped.
    """
    from dataclasses import replace

    from fusion.calibrate.asking import QUESTION, Form
    from server.commands.calibrate import command
    from server.commands.evaluate.questions import MATCHES, METRICS
    from server.commands.evaluate.run import read_all
    from server.settings import read_settings

    settings = read_settings(config)
    paths = tasks or [Path(task) for task in settings.evaluation.tasks]
    if not paths:
        raise ConfigError("Nothing to ask: give --tasks FILE.jsonl, or evaluation.tasks in the configuration.")
    if template is not None and not (completions and QUESTION in template):
        raise ConfigError(f"--template is for --completions, and needs {QUESTION} where the question goes.")
    if match is not None and match not in MATCHES:
        raise ConfigError(f"--match is one of {', '.join(MATCHES)}.")
    if metric is not None and metric not in METRICS:
        raise ConfigError(f"--metric is one of {', '.join(METRICS)}.")
    questions = read_all(paths, limit, match or settings.evaluation.match)
    if metric is not None:
        questions = [replace(question, metric=metric) for question in questions]
    for method in alignments or ():
        method_named(method)
    command.calibrate(
        settings,
        ensemble,
        questions,
        Form((template or QUESTION) if completions else None, tuple(stop or ()), max_tokens),
        console(),
        out=out,
        seconds=seconds,
        development=development,
        seed=seed,
        alignments=tuple(alignments or command.ALIGNMENTS),
        likelihood=likelihood,
    )


distill = typer.Typer(help="Make one model of several, by training.", no_args_is_help=True)
app.add_typer(distill, name="distill")


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
