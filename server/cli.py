"""The `tutti` command. Commands import the modules that need torch themselves, so that the others start fast."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from alignment.errors import ConfigError, TuttiError
from alignment.methods.registry import METHODS
from server import __version__
from server.commands.distill.cli import distill
from server.commands.evaluate.cli import calibrate, evaluate
from server.commands.options import ApiKey, Config, MaxTokens
from server.commands.tables import console

if TYPE_CHECKING:
    from server.commands.chat import ChatClient


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
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="A configuration: MODEL_A and MODEL_B are names of models in it.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help=METHODS_HELP)] = "hybrid",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the map is written.")] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="The table that is learned from: output (default) or input.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Tokens that a token may go to; 10 by default.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Lowest score of an entry; 0.1 by default.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of a softmax that makes learned rows distributions; none by default.")
    ] = None,
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
        command.inspect(Path(inspect[0]), inspect[1], models, console(), config)
        return
    if models is None or out is None:
        raise ConfigError(
            "Give two models and --out FILE to make a map, or --inspect FILE TOKEN to look into one."
        )
    given = {"embeddings": embeddings, "top": top, "threshold": threshold, "temperature": temperature}
    parameters = {name: value for name, value in given.items() if value is not None}
    command.align(*models, method, parameters, out, device, hold_out, console(), config)


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
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    quick: Annotated[
        str | None, typer.Option("--quick", "-q", metavar="TEXT", help="Go on from this text only, and leave.")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Have a model go on from a text, one text per line."""
    from server.commands.chat import complete_all

    with _client_of(url, api_key) as client:
        asked = model or client.models()[0]
        go_on = partial(client.continuation, asked, max_tokens=max_tokens, temperature=temperature)
        all_well = complete_all(go_on, Console(highlight=False), quick)
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
    from server.commands.client import local, remote
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
    from server.commands.client import local
    from server.settings import read_settings

    settings = read_settings(config)
    name = prompt_weights.ensemble_named(settings, ensemble)

    async def ask() -> prompt_weights.Reports:
        async with local(settings) as client:
            return await prompt_weights.measure(client, name, prompt, prompt_weights.methods_of(settings, name))

    Console().print(prompt_weights.weights_table(name, asyncio.run(ask())))


app.command("eval")(evaluate)
app.command()(calibrate)
app.add_typer(distill, name="distill")
