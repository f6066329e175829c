"""Reading of settings: from a path, through overrides and validation, to checks across fields."""

from __future__ import annotations

import os
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignment.errors import ConfigError
from alignment.text.template import reserved_arguments
from fusion.options import AUTO, DRAFTERS, needed_to_draw
from fusion.terms import objections
from server.settings import problems
from server.settings.document import MAX_BYTES, Document, Loc, parse
from server.settings.ensembles import EnsembleSettings
from server.settings.environment import override
from server.settings.schema import ModelSettings, Settings
from server.settings.server import ServerSettings

Shape = TypeVar("Shape", bound=BaseModel)


def read_settings(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """The configuration in `path`, with the overrides in `environ`.

    Raises:
        ConfigError: one line per problem, each with its place, the field, what was found and what is allowed.
    """
    return parse_settings(read_text(path), str(path), path.parent, environ)


def parse_settings(text: str, name: str, folder: Path, environ: Mapping[str, str]) -> Settings:
    """As `read_settings`, from text; relative paths start in `folder`, errors call the text `name`."""
    document = parse(text, name)
    override(document, environ, Settings)
    return validated(document, Settings, folder, _contradictions)


def validated(
    document: Document,
    shape: type[Shape],
    folder: Path,
    contradictions: Callable[[Shape], Iterable[tuple[Loc, str]]],
) -> Shape:
    """A document as its shape; relative paths start in `folder`.

    Args:
        document: of the file.
        shape: the whole file's.
        folder: of the file.
        contradictions: those between fields that are valid one by one, each with its place.

    Raises:
        ConfigError: one line per problem, each with its place, the field, what was found and what is allowed.
    """
    try:
        file = shape.model_validate(document.data, context={"folder": folder})
    except ValidationError as invalid:
        found = [problems.describe(error, document, shape) for error in invalid.errors()]
        raise ConfigError("\n".join(found)) from None
    if found := [problems.line(document, loc, sentence) for loc, sentence in contradictions(file)]:
        raise ConfigError("\n".join(found))
    return file


def accepted_keys(server: ServerSettings) -> list[str]:
    """The bearer keys of the configuration and of its key file.

    Raises:
        ConfigError: the file cannot be read, or holds no key (which would leave the server open to everyone).
    """
    keys = [key.get_secret_value() for key in server.api_keys]
    if server.api_keys_file is None:
        return keys
    path = Path(server.api_keys_file)
    text = read_text(path)
    if path.stat().st_size > MAX_BYTES:  # the rest was not read
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes; let a proxy check so many keys.")
    lines = [line.strip() for line in text.splitlines()]
    from_file = [line for line in lines if line and not line.startswith("#")]
    if not from_file:
        raise ConfigError(f"{server.api_keys_file}: holds no key; write one per line, or leave the file out.")
    return keys + from_file


def read_text(path: Path) -> str:
    """The text of a configuration file, or of as much as one may hold.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}.") from None


def _contradictions(settings: Settings) -> Iterator[tuple[Loc, str]]:
    """Contradictions between fields that are valid one by one."""
    for name, model in settings.models.items():
        if model.max_context is not None and model.max_context > model.cache_tokens:
            sentence = f"found {model.max_context}, but cache_tokens holds only {model.cache_tokens}"
            yield ("models", name, "max_context"), sentence
        for loc, sentence in _in_worker(model):
            yield ("models", name, *loc), sentence
    for name, ensemble in settings.ensembles.items():
        if name in settings.models:
            yield ("ensembles", name), "a model has this name already; both would be served under it"
        for loc, sentence in chain(_in_ensemble(ensemble, settings.models), _in_views(name, settings)):
            yield ("ensembles", name, *loc), sentence
    if not settings.ensembles and not settings.server.serve_models:
        yield ("server", "serve_models"), "nothing would be served: there are no ensembles either"
    for argument in _reserved(settings.server.chat_template_kwargs):
        yield ("server", "chat_template_kwargs", argument), "is set by the server; leave it out"
    for index, key in enumerate(settings.server.api_keys):
        if (text := key.get_secret_value()) != text.strip():
            yield (
                ("server", "api_keys", index),
                "begins or ends with white space, which no request can send; remove it",
            )
    try:
        accepted_keys(settings.server)
    except ConfigError as error:
        yield ("server", "api_keys_file"), str(error).rstrip(".")
    if (certificate := settings.server.tls_certificate) is not None:
        try:  # uvicorn would say it after all models are loaded
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, settings.server.tls_key, "")
        except OSError as error:
            advice = "give PEM files of a certificate and its key, without a password"
            sentence = f"and tls_key cannot be used ({error.strerror or error}): {advice}"
            yield ("server", "tls_certificate"), sentence


def _reserved(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments for chat templates that every request would be refused for."""
    return sorted(reserved_arguments() & set(arguments)) if arguments else []  # they take transformers to be known


def _in_worker(model: ModelSettings) -> Iterator[tuple[Loc, str]]:
    worker = model.worker
    if model.host == "inline" and worker.model_fields_set:
        yield ("worker",), "has no effect with host: inline; set host: process or ray"
    if model.host != "ray" and worker.ray.model_fields_set:
        yield ("worker", "ray"), "has no effect without host: ray"
    if model.host == "ray" and worker.gpus is not None:
        yield ("worker", "gpus"), "Ray chooses the GPUs; say how many in worker.ray.num_gpus"
    if worker.gpus is not None and model.device.startswith("cuda"):
        number = int(model.device.partition(":")[2] or 0)
        if number >= len(worker.gpus):
            yield ("device",), f"found '{model.device}', but worker.gpus makes only {len(worker.gpus)} visible"
    if worker.longest_restart_seconds < worker.restart_seconds:
        sentence = f"found {worker.longest_restart_seconds:g}, less than restart_seconds"
        yield ("worker", "longest_restart_seconds"), sentence


def _in_ensemble(ensemble: EnsembleSettings, models: Mapping[str, ModelSettings]) -> Iterator[tuple[Loc, str]]:
    members = list(dict.fromkeys(ensemble.members))
    for index, member in enumerate(ensemble.members):
        if member not in models and member not in ensemble.views:
            yield ("members", index), f"there is no model '{member}'; allowed: {', '.join(models)}"
    for member, times in Counter(ensemble.members).items():
        if times > 1:
            yield ("members",), f"'{member}' is listed {times} times; list it once, with a larger weight"
    if not set(ensemble.pivots) <= set(members):
        yield ("pivot",), f"'{ensemble.pivot}' is no member; allowed: {', '.join([*members, AUTO])}"
    for member in ensemble.maps:
        if ensemble.pivots != (ensemble.pivot,):
            yield ("maps", member), "with pivot: auto there is a map for every pair; leave maps out"
        elif member == ensemble.pivot:
            yield ("maps", member), "the pivot needs no map; leave it out"
        elif member not in members:
            yield ("maps", member), f"'{member}' is no member; allowed: {', '.join(members)}"
    known = [ensemble.model_of(member) for member in members if ensemble.model_of(member) in models]
    candidates, fewest = min(((models[m].candidates, m) for m in known), default=(0, ""))
    if fewest and (ensemble.filter_top or 0) > candidates:
        yield ("filter_top",), f"found {ensemble.filter_top}, but {fewest} hands over only {candidates} candidates"
    yield from _in_sum(ensemble, members)
    yield from _policy(ensemble, members)
    weighting = ensemble.weighting
    if weighting.method == "learned" and weighting.file is None:
        yield ("weighting",), "learned takes a file, which `tutti calibrate --learn-weights` writes; give one"
    for member in weighting.offsets or {}:
        if member not in members:
            yield ("weighting", "offsets", member), f"'{member}' is no member; allowed: {', '.join(members)}"
    if ensemble.weights is None:
        return
    if (method := ensemble.weighting.method) is not None:
        yield ("weights",), f"found numbers, but weighting.method is {method}; leave one of the two out"
    for member in ensemble.weights:
        if member not in members:
            yield ("weights", member), f"'{member}' is no member; allowed: {', '.join(members)}"
    if missing := [member for member in members if member not in ensemble.weights]:
        yield ("weights",), f"no weight for {', '.join(missing)}; give every member one (0 leaves it out)"
    elif ensemble.combine != "arithmetic" and not any(ensemble.weights.values()):
        yield ("weights",), "all are 0; at least one must be positive"


def _in_sum(ensemble: EnsembleSettings, members: list[str]) -> Iterator[tuple[Loc, str]]:
    """Contradictions of weights below zero, and of sums of log-probabilities."""
    below = {member: weight for member, weight in (ensemble.weights or {}).items() if weight < 0}
    if ensemble.combine != "arithmetic":
        for member, weight in below.items():
            yield ("weights", member), f"found {weight:g}; should be greater than or equal to 0"
    pivot = ensemble.pivot if ensemble.pivots == (ensemble.pivot,) else None
    if not below or ensemble.combine == "arithmetic":
        complete = ensemble.weights is None or all(member in ensemble.weights for member in members)
        for field, sentence in objections(ensemble.fusion, members, pivot) if complete else ():
            yield tuple(field.split(".")), sentence


def _in_views(name: str, settings: Settings) -> Iterator[tuple[Loc, str]]:
    """Contradictions between an ensemble's views, its members and the models."""
    ensemble, models = settings.ensembles[name], settings.models
    for view, one in ensemble.views.items():
        loc = ("views", view)
        if one.model not in models:
            yield (*loc, "model"), f"there is no model '{one.model}'; allowed: {', '.join(models)}"
        for argument in _reserved(one.template):
            yield (*loc, "template", argument), "is set by the server; leave it out"
        if view not in ensemble.members:
            yield loc, "is not among the members; list it there, or leave it out"
        if view in models or view in settings.ensembles:
            yield loc, "a model or an ensemble has this name already; take another one"
        for other, theirs in settings.ensembles.items():
            if other < name and theirs.views.get(view, one) != one:
                yield loc, f"is another view in ensemble {other}; take another name"
    numbers = Counter(ensemble.model_of(member) for member in ensemble.members)
    for model, number in numbers.items():
        number *= 1 if ensemble.guidance is None else 2
        if model in models and number > models[model].max_sequences:
            with_seconds = "" if ensemble.guidance is None else ", with a second prompt each for guidance,"
            sentence = (
                f"{number} views of {model}{with_seconds} take more places than its max_sequences, "
                f"{models[model].max_sequences}"
            )
            yield ("members",), sentence


def _policy(ensemble: EnsembleSettings, members: list[str]) -> Iterator[tuple[Loc, str]]:
    """Drafts and gates that every request would be refused for."""
    if ensemble.draft not in (None, *DRAFTERS, *members):
        yield ("draft",), f"'{ensemble.draft}' is no member; allowed: {', '.join([*DRAFTERS, *members])}"
    if ensemble.draft is not None and ensemble.gate is not None:
        yield ("gate",), "draft and gate exclude each other; leave one out"
    elif ensemble.gate == "draw" and (needed := needed_to_draw(ensemble)):
        yield ("gate",), f"draw runs one member a token, which takes {', '.join(needed)}"
