"""Vocabulary maps of an ensemble: from their files, from the cache, or learned now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from alignment.errors import ConfigError
from alignment.methods.map_cache import MapCache
from alignment.methods.method import ModelVocabulary
from alignment.methods.origin import load_with_origin
from alignment.methods.registry import Alignment, method_named
from alignment.vocab_map import VocabMap
from fusion.assembly.specs import EnsembleSpec

log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class MapMaker:
    """The maps of an ensemble's members into the vocabulary of one of its pivots.

    `tutti` is the version of the program, which is a part of a learned map's origin.
    """

    def __init__(
        self,
        ensemble: EnsembleSpec,
        pivot: str,
        vocabularies: Mapping[str, ModelVocabulary],
        cache: MapCache,
        tutti: str,
    ) -> None:
        """Raises ConfigError where a file is given for a member that needs no map."""
        self._ensemble = ensemble
        self._pivot = pivot
        self._vocabularies = vocabularies
        self._cache = cache
        self._tutti = tutti
        fingerprints = {member: vocabularies[member].tokenizer.fingerprint for member in ensemble.members}
        self.members = [name for name in ensemble.members if fingerprints[name] != fingerprints[pivot]]
        """Those whose vocabulary is not the pivot's."""
        if useless := [member for member in ensemble.maps if member not in self.members]:
            raise ConfigError(f"{useless[0]} has the pivot's tokenizer and needs no map; leave it out of maps.")

    def known(self, member: str) -> VocabMap | None:
        """A member's map for running text, unless it has yet to be learned.

        Raises ConfigError where its file or its embeddings cannot be used; names the member.
        """
        return self._map(member, lambda costly: self._cache.find(costly.origin(self._tutti)))

    def required(self, member: str, device: str) -> VocabMap:
        """As `known`, but what is missing is learned, on `device`, and kept."""

        def learned(costly: Alignment) -> VocabMap:
            learn = _logged(costly, f"{member} into {self._pivot}", device)
            return self._cache.find_or_learn(costly.origin(self._tutti), learn)

        result = self._map(member, learned)
        assert result is not None
        return result

    def _map(self, member: str, learned: Callable[[Alignment], VocabMap | None]) -> VocabMap | None:
        """The map in the member's file, else the configured one, for whose costly part `learned` is asked."""
        ensemble, vocabularies = self._ensemble, self._vocabularies
        method, parameters = ensemble.alignment.method, ensemble.alignment.parameters
        alignment = Alignment(vocabularies[member], vocabularies[self._pivot], method, parameters)
        try:
            if member in ensemble.maps:
                return self._from_file(ensemble.maps[member], alignment)
            if alignment.kept is None:
                return alignment.learn()
            costly = learned(alignment.kept)
            return None if costly is None else alignment.complete(costly)
        except ConfigError as error:
            raise ConfigError(f"the map of {member} into {self._pivot}: {error}") from error

    def _from_file(self, path: str, alignment: Alignment) -> VocabMap:
        """The map in a file, whatever its method, as long as it is one of these two models."""
        map, origin = load_with_origin(path)
        method_named(origin.method)
        parameters = origin.parameters or alignment.parameters
        wanted = replace(alignment, method=origin.method, parameters=parameters).origin(self._tutti)
        origin.require_same_models(wanted, path)
        sizes = [side.tokenizer.vocabulary_size for side in (alignment.source, alignment.target)]
        if [map.source_size, map.target_size] != sizes:
            raise ConfigError(
                f"The vocabulary map {path} is of {map.source_size} tokens into {map.target_size}, and these "
                f"have {sizes[0]} and {sizes[1]}: build the map again with `tutti align`."
            )
        return map


def _logged(alignment: Alignment, what: str, device: str) -> Callable[[], VocabMap]:
    """Learning that logs its progress."""

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
