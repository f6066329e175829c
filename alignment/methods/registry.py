"""Registry of alignment methods: names, and the alignment of two models by one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from alignment.errors import ConfigError
from alignment.methods import eva, exact, hybrid, mined, prefix, spelled
from alignment.methods.method import MapRequest, Method, ModelVocabulary
from alignment.methods.origin import PAPERS, Origin, Parameters, Side
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap

if TYPE_CHECKING:
    import torch

METHODS: dict[str, Method] = {
    "spelled": spelled.METHOD,
    "exact": exact.METHOD,
    "prefix": prefix.METHOD,
    "eva": eva.METHOD,
    "mined": mined.METHOD,
    "hybrid": hybrid.METHOD,
}


def method_named(name: str) -> Method:
    """The method of this name; ConfigError, with the names that there are, for any other."""
    try:
        return METHODS[name]
    except KeyError:
        raise ConfigError(f"There is no alignment method {name!r}: use one of {', '.join(METHODS)}.") from None


@dataclass(frozen=True)
class Alignment:
    """One model's vocabulary to be brought into another's by one method, a key of `METHODS`."""

    source: ModelVocabulary
    target: ModelVocabulary
    method: str = "exact"
    parameters: Parameters = PAPERS

    @property
    def kept(self) -> Alignment | None:
        """The part that takes long and is worth keeping; None where there is none."""
        method = METHODS[self.method]
        if not method.costly:
            return None
        scores = replace(self.parameters, temperature=None)
        return replace(self, method=method.base or self.method, parameters=scores)

    def origin(self, tutti: str) -> Origin:
        """Return all that the map depends on. Embeddings the method uses are read in full for their fingerprints.

        `tutti` is the version of the program. ConfigError as for `ModelVocabulary.embeddings`.
        """
        used = self.parameters if METHODS[self.method].learns else None

        def side(model: ModelVocabulary, stops: tuple[int, ...]) -> Side:
            embeddings = model.fingerprint(used.embeddings) if used else None
            tokenizer = model.tokenizer
            special = special_digest(tokenizer)
            return Side(model.source, tokenizer.fingerprint, tuple(sorted(stops)), embeddings, special)

        source, target = side(self.source, self.source.stop_ids), side(self.target, self.target.stop_ids[:1])
        return Origin(self.method, used, source, target, tutti)

    def learn(
        self,
        *,
        without: Collection[int] = (),
        device: str | torch.device = "cpu",
        on_progress: Callable[[float], None] | None = None,
    ) -> VocabMap:
        """The map for running text, [Vs, R] into [Vt]: ids beyond the source tokenizer's have no row.

        Where a method learns from embeddings it does so on `device`, and not from what source ids in `without`
        are known to correspond to; where it takes long, `on_progress` is called with the share that is done.
        ConfigError, in one sentence, for models that nothing can be learned from.
        """
        request = MapRequest(self.source, self.target, self.parameters, without, device, on_progress)
        return self.complete(METHODS[self.method].learn(request))

    def complete(self, kept: VocabMap) -> VocabMap:
        """The whole map, of what `kept` came to."""
        complete = METHODS[self.method].complete
        return complete(MapRequest(self.source, self.target, self.parameters), kept) if complete else kept


def special_digest(tokenizer: Tokenizer) -> str:
    """A digest of the control tokens: maps are not learned about them, and the chat template has a say in them."""
    return hashlib.sha256(repr(sorted(tokenizer.special_ids)).encode()).hexdigest()[:16]
