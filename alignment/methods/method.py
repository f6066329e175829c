"""Method: one way to map a vocabulary into another, and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignment.methods.origin import PAPERS, Parameters, TableName
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap

if TYPE_CHECKING:
    import torch

    from alignment.learning.embeddings import EmbeddingTable


@dataclass(frozen=True)
class ModelVocabulary:
    """One model's side of a map. Only its tokenizer is loaded.

    Attributes:
        source: folder or hub id, where its embeddings are read from.
        tokenizer: the model's own.
        stop_ids: ids that end an answer, at least one; the first ends a turn of its chat template.
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
        """Find one of its embedding tables; ConfigError where it has none that can be read."""
        from alignment.learning.embeddings import find_table

        return find_table(self.source, which, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def fingerprint(self, which: TableName) -> str:
        """The fingerprint of that table, which is read in full for it the first time."""
        if which not in self._fingerprints:
            self._fingerprints[which] = self.embeddings(which).fingerprint()
        return self._fingerprints[which]


@dataclass(frozen=True)
class MapRequest:
    """Request for a map: the two models, and how to learn.

    Attributes:
        source: the model whose tokens are mapped.
        target: the model whose vocabulary they are mapped into; all stops of the source go to its first.
        parameters: for methods that learn from embeddings.
        without: source ids whose correspondences a method that learns must not see.
        device: the torch device for computing with embeddings.
        on_progress: called with the share that is done, 0 to 1, where a method takes long.
    """

    source: ModelVocabulary
    target: ModelVocabulary
    parameters: Parameters = PAPERS
    without: Collection[int] = ()
    device: str | torch.device = "cpu"
    on_progress: Callable[[float], None] | None = None

    def by(self, make: Callable[..., VocabMap], *tables: NDArray[np.float32], **options: Any) -> VocabMap:
        """What a function of both tokenizers, and of the ids that end answers in them, makes of this request."""
        ends = {"source_stops": self.source.stop_ids, "target_stop": self.target.stop_ids[0]}
        return make(self.source.tokenizer, self.target.tokenizer, *tables, **ends, **options)


@dataclass(frozen=True)
class Method:
    """A way to make the map for running text, [Vs, R] into [Vt]. One file defines it, one line registers it.

    Attributes:
        description: what it does, as `tutti align --help` and errors say it.
        learn: makes the map, or that of `base`.
        costly: whether its maps take long and are worth keeping.
        learns: whether it learns from embeddings, so that `Parameters` and held-out anchors matter to it.
        base: for a method whose map is made of another's: the name of that one.
        complete: makes the whole map of what `learn` makes, which is what is kept; None where that is all.
    """

    description: str
    learn: Callable[[MapRequest], VocabMap]
    costly: bool = False
    learns: bool = False
    base: str | None = None
    complete: Callable[[MapRequest, VocabMap], VocabMap] | None = None
