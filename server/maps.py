"""The vocabulary maps of an ensemble: from their files, from the cache, or learned now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from alignment.errors import ConfigError
from alignment.methods.map_cache import MapCache, user_cache
from alignment.methods.method import ModelVocabulary
from alignment.methods.origin import load_with_origin
from alignment.methods.registry import Alignment
from alignment.vocab_map import VocabMap
from server import __version__
from server.settings import EnsembleSettings, ServerSettings

log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


def open_cache(server: ServerSettings) -> MapCache:
    """The cache that the configuration names; it is made when the first map is put there."""
    folder = Path(server.cache_dir) if server.cache_dir else user_cache()
    if folder is None:
        log.warning("there is no home folder to keep learned maps in: set server.cache_dir")
    return MapCache(folder / "maps" if folder else None, required=server.cache_dir is not None)


def members_to_map(ensemble: EnsembleSettings, vocabularies: Mapping[str, ModelVocabulary]) -> list[str]:
    """The members whose vocabulary is not the pivot's.

    Raises:
        ConfigError: a map file is given for one of the others.
    """
    fingerprints = {member: vocabularies[member].tokenizer.fingerprint for member in ensemble.members}
    members = [name for name in ensemble.members if fingerprints[name] != fingerprints[ensemble.pivot]]
    if useless := [member for member in ensemble.maps if member not in members]:
        raise ConfigError(f"{useless[0]} has the pivot's tokenizer and needs no map; leave it out of maps.")
    return members


def known_map(
    ensemble: EnsembleSettings, member: str, vocabularies: Mapping[str, ModelVocabulary], cache: MapCache
) -> VocabMap | None:
    """A member's map for running text into the pivot's vocabulary, unless it has yet to be learned.

    Raises:
        ConfigError: its file or its embeddings will not do; names the member.
    """
    return _map(ensemble, member, vocabularies, lambda costly: cache.find(costly.origin(__version__)))


def required_map(
    ensemble: EnsembleSettings,
    member: str,
    vocabularies: Mapping[str, ModelVocabulary],
    cache: MapCache,
    device: str,
) -> VocabMap:
    """As `known_map`, but what is missing is learned, on `device`, and kept."""

    def learned(costly: Alignment) -> VocabMap:
        learn = _logged(costly, f"{member} into {ensemble.pivot}", device)
        return cache.find_or_learn(costly.origin(__version__), learn)

    result = _map(ensemble, member, vocabularies, learned)
    assert result is not None
    return result


def _map(
    ensemble: EnsembleSettings,
    member: str,
    vocabularies: Mapping[str, ModelVocabulary],
    learned: Callable[[Alignment], VocabMap | None],
) -> VocabMap | None:
    """The map in the member's file, else the configured one, for whose costly part `learned` is asked."""
    method, parameters = ensemble.alignment.method, ensemble.alignment.parameters
    alignment = Alignment(vocabularies[member], vocabularies[ensemble.pivot], method, parameters)
    try:
        if member in ensemble.maps:
            return _from_file(ensemble.maps[member], alignment)
        if alignment.kept is None:
            return alignment.learn()
        costly = learned(alignment.kept)
        return None if costly is None else alignment.complete(costly)
    except ConfigError as error:
        raise ConfigError(f"the map of {member} into {ensemble.pivot}: {error}") from error


def _from_file(path: str, alignment: Alignment) -> VocabMap:
    """The map in a file, whatever its method, as long as it is one of these two models."""
    map, origin = load_with_origin(path)
    parameters = origin.parameters or alignment.parameters
    wanted = replace(alignment, method=origin.method, parameters=parameters).origin(__version__)
    origin.require_same_models(wanted, path)
    return map


def _logged(alignment: Alignment, what: str, device: str) -> Callable[[], VocabMap]:
    """Learning that tells the log how far it is."""

    def learn() -> VocabMap:
        rows, columns = (side.tokenizer.vocabulary_size for side in (alignment.source, alignment.target))
        log.info("learning the map of %s (%s): %d tokens into %d", what, alignment.method, rows, columns)
        began = last = time.monotonic()

        def progress(share: float) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                log.info("learning the map of %s: %.0f%%", what, 100 * share)

        result = alignment.learn(device=device, on_progress=progress)
        log.info("learned the map of %s in %.1f s", what, time.monotonic() - began)
        return result

    return learn
