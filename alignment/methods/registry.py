"""The ways to bring one vocabulary into another, behind one signature."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from alignment.errors import ConfigError
from alignment.methods.exact import exact_map
from alignment.methods.hybrid import hybrid_map
from alignment.methods.origin import PAPERS, MethodName, Origin, Parameters, Side, TableName
from alignment.methods.prefix import prefix_map
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap

if TYPE_CHECKING:
    import torch

    from alignment.learning.embeddings import EmbeddingTable

# What each method does, in the words that `tutti align --help` and errors use.
METHODS: dict[MethodName, str] = {
    "exact": "a token goes to the one that stands for the same bytes",
    "prefix": "exact where the bytes coincide, the token that begins the same text for the rest",
    "eva": "a token goes to those whose embeddings are near, learned from the tokens both have",
    "mined": "a token goes to the one that is spelled most like it",
    "hybrid": "exact where the bytes coincide, eva for the rest",
}
_LEARNS_FROM_EMBEDDINGS: frozenset[MethodName] = frozenset({"eva", "hybrid"})


def method_named(name: str) -> MethodName:
    """The method of this name; ConfigError, with the names that there are, for any other."""
    for method in METHODS:
        if name == method:
            return method
    raise ConfigError(f"There is no alignment method {name!r}: use one of {', '.join(METHODS)}.")


def takes_parameters(method: MethodName) -> bool:
    """Whether `Parameters` matter to this method."""
    return method in _LEARNS_FROM_EMBEDDINGS


@dataclass(frozen=True)
class ModelVocabulary:
    """What a map is made from on the side of one model: nothing of it is loaded but the tokenizer.

    Attributes:
        source: folder or hub id, where its embeddings are read from.
        tokenizer: the model's own.
        stop_ids: ids that end an answer, at least one.
        revision: of the hub id.
        trust_remote_code: whether code of the checkpoint may be run to find its embeddings.
    """

    source: str
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    revision: str | None = None
    trust_remote_code: bool = False
    _fingerprints: dict[TableName, str] = field(default_factory=dict, repr=False, compare=False)

    def embeddings(self, which: TableName) -> EmbeddingTable:
        """Where one of its embedding tables lies; ConfigError where it has none that can be read."""
        from alignment.learning.embeddings import find_table

        return find_table(self.source, which, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def fingerprint(self, which: TableName) -> str:
        """The fingerprint of that table, which is read in full for it the first time."""
        if which not in self._fingerprints:
            self._fingerprints[which] = self.embeddings(which).fingerprint()
        return self._fingerprints[which]


@dataclass(frozen=True)
class Alignment:
    """One model's vocabulary to be brought into another's by one method."""

    source: ModelVocabulary
    target: ModelVocabulary
    method: MethodName = "exact"
    parameters: Parameters = PAPERS

    @property
    def learned(self) -> Alignment | None:
        """The part that takes long and is worth keeping; None where there is none."""
        if self.method in ("exact", "prefix"):
            return None
        return replace(self, method="eva") if self.method == "hybrid" else self

    def origin(self, tutti: str) -> Origin:
        """What the map depends on. Embeddings are read in full for their fingerprints, where the method uses them.

        `tutti` is the version of the program. ConfigError as for `ModelVocabulary.embeddings`.
        """
        used = self.parameters if takes_parameters(self.method) else None

        def side(model: ModelVocabulary, stops: tuple[int, ...]) -> Side:
            embeddings = model.fingerprint(used.embeddings) if used else None
            return Side(model.source, model.tokenizer.fingerprint, tuple(sorted(stops)), embeddings)

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
        are known to correspond to; where it takes long, `on_progress` is told the share that is done.
        ConfigError, in one sentence, for models that nothing can be learned from.
        """
        source, target = self.source, self.target
        tokenizers = (source.tokenizer, target.tokenizer)
        match self.method:
            case "exact":
                return exact_map(*tokenizers, source_stops=source.stop_ids, target_stop=target.stop_ids[0])
            case "prefix":
                return prefix_map(*tokenizers, source_stops=source.stop_ids, target_stop=target.stop_ids[0])
            case "mined":
                from alignment.methods.mined import mined_map

                return mined_map(
                    *tokenizers,
                    source_stops=source.stop_ids,
                    target_stop=target.stop_ids[0],
                    on_progress=on_progress,
                )
            case "eva":
                from alignment.eva import eva_map

                which = self.parameters.embeddings
                return eva_map(
                    *tokenizers,
                    source.embeddings(which).read(),
                    target.embeddings(which).read(),
                    source_stops=source.stop_ids,
                    target_stop=target.stop_ids[0],
                    top=self.parameters.top,
                    threshold=self.parameters.threshold,
                    without=without,
                    device=device,
                    on_progress=on_progress,
                )
            case "hybrid":
                learned = replace(self, method="eva")
                return self.complete(learned.learn(without=without, device=device, on_progress=on_progress))

    def complete(self, learned: VocabMap) -> VocabMap:
        """The whole map, of what `learned` came to."""
        return hybrid_map(replace(self, method="exact").learn(), learned) if self.method == "hybrid" else learned
