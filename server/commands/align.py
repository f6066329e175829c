"""`tutti align`: make the vocabulary map of two models a file, and look into one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from alignment.errors import ConfigError
from alignment.methods.held_out import held_out
from alignment.methods.method import ModelVocabulary
from alignment.methods.origin import load_with_origin, save_with_origin
from alignment.methods.registry import Alignment, method_named, special_digest
from fusion.assembly.checkpoints import read_vocabulary
from fusion.members.checkpoint import resolved
from fusion.members.devices import parse_device
from server import __version__
from server.commands.map_report import examples_table, row_table, shown, summary_table, token_id
from server.commands.tables import say
from server.settings.complaints import expectation
from server.settings.ensembles import AlignmentSettings
from server.settings.read import read_settings
from server.settings.schema import ModelSettings


def align(
    source: str,
    target: str,
    method: str,
    parameters: dict[str, Any],
    out: Path,
    device: str,
    hold_out: float | None,
    console: Console,
    config: Path | None = None,
) -> None:
    """Learn the map of one model's vocabulary into another's and write it; progress and summary go to `console`.

    `source` and `target` are folders or hub ids, or names of models in the configuration `config`, where they may
    have revisions, code and chat templates of their own. `parameters` are those that were given, by their names in
    the configuration. With `hold_out` it is learned without that share of the anchors first, and the summary gives
    the number of these that it found.

    Raises:
        ConfigError: a model, file or option cannot be used; nothing is written then.
    """
    settings = _settings(method, parameters)
    on = parse_device(device)
    _require_writable(out)
    models = None if config is None else read_settings(config).models
    (source, theirs), (target, pivots) = _read(source, models), _read(target, models)
    vocabularies = (theirs, pivots)
    if theirs.tokenizer.fingerprint == pivots.tokenizer.fingerprint:
        raise ConfigError(f"{source} and {target} have the same tokenizer: they need no map.")
    alignment = Alignment(*vocabularies, settings.method, settings.parameters)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        origin = alignment.origin(__version__)
        origin = replace(
            origin, source=replace(origin.source, name=source), target=replace(origin.target, name=target)
        )
        found = None
        if hold_out is not None:
            trial = progress.add_task("learning without some anchors", total=1.0)
            found = held_out(
                alignment,
                hold_out,
                device=on,
                on_progress=lambda share: progress.update(trial, completed=share),
            )
        task = progress.add_task(f"learning ({settings.method})", total=1.0)
        map = alignment.learn(device=on, on_progress=lambda share: progress.update(task, completed=share))
    try:
        save_with_origin(map, out, origin)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror or error}): give another --out.") from error
    tokenizers = (theirs.tokenizer, pivots.tokenizer)
    console.print(summary_table(map, *tokenizers, found))
    console.print()
    console.print(examples_table(map, *tokenizers))
    say(console, f"\nwrote {out}")


def inspect(
    path: Path, token: str, sources: tuple[str, str] | None, console: Console, config: Path | None = None
) -> None:
    """Print where one token of a map's source model goes.

    The tokenizers are those of `sources`, as `align` takes them; by default of the models that the file names.

    Raises:
        ConfigError: the file is no map, a model is not there or not the map's, or there is no such token.
    """
    map, origin = load_with_origin(path)
    source, target = sources or (origin.source.name, origin.target.name)
    try:
        models = None if config is None else read_settings(config).models
        tokenizers = tuple(_read(name, models)[1].tokenizer for name in (source, target))
    except ConfigError as error:
        if sources:
            raise
        raise ConfigError(
            f"{path} was made from {source} and {target}, which cannot be read from here ({error}); "
            "give both models before --inspect."
        ) from error
    given = [
        replace(side, name=name, tokenizer=tokenizer.fingerprint, special=special_digest(tokenizer))
        for side, name, tokenizer in zip((origin.source, origin.target), (source, target), tokenizers, strict=True)
    ]
    origin.require_same_models(replace(origin, source=given[0], target=given[1]), path)
    id = token_id(tokenizers[0], token)
    heading = f"{shown(tokenizers[0], id)} (id {id}) of {source} in {target} ({origin.method})"
    say(console, heading)
    console.print(row_table(map, id, tokenizers[1]))


def _read(name: str, models: Mapping[str, ModelSettings] | None) -> tuple[str, ModelVocabulary]:
    """The source of a model, and its vocabulary; with `models`, of the one that has the name there."""
    if models is None:
        return name, read_vocabulary(resolved(name)[0])
    if name not in models:
        raise ConfigError(f"There is no model {name!r} in the configuration; choose from {', '.join(models)}.")
    model = models[name]
    source, revision = resolved(model.source, model.revision)
    vocabulary = read_vocabulary(
        source,
        revision=revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=model.chat_template,
    )
    return model.source, vocabulary


def _settings(method: str, parameters: dict[str, Any]) -> AlignmentSettings:
    method_named(method)
    try:
        settings: AlignmentSettings = AlignmentSettings.model_validate({"method": method, **parameters})
        return settings
    except ValidationError as invalid:
        error = invalid.errors()[0]
        option = f"--{error['loc'][0]}: found {error['input']!r}; " if error["loc"] else ""
        raise ConfigError(f"{option}{expectation(error) or error['msg']}.") from None


def _require_writable(out: Path) -> None:
    """Raise ConfigError where the result cannot be written, before it takes time to compute."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: give the name of a file in it.")
    if not out.parent.is_dir():
        raise ConfigError(f"The folder {out.parent} does not exist: make it, or give another --out.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"The folder {out.parent} cannot be written to: give another --out.")
