"""Mined maps: each token goes to the token with the smallest edit distance, as PackLLM and FuseLLM do it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from alignment.methods.exact import exact_map
from alignment.methods.method import Method
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap

_CELLS = 1 << 24  # distances held at a time: 32 MiB


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens as a vocabulary file spells them, their ids, and the character that stands for a space.

    The order of `tokens` decides between equally near ones.
    """

    tokens: Sequence[str]
    ids: Sequence[int]
    marker: str


def packllm_pairs(
    source: Vocabulary, target: Vocabulary, *, on_progress: Callable[[float], None] | None = None
) -> list[tuple[int, int]]:
    """For every source token (source id, target id), by PackLLM's rule (arXiv 2404.11531).

    The identical string; else the string whose single leading marker is replaced by the target's; else the
    string of smallest Levenshtein distance to that, in code points, the first in order among equals.
    `on_progress` is called with the share of the distances that are computed, 0 to 1.
    """
    known = set(target.tokens)

    def respell(token: str) -> str:
        single = token.startswith(source.marker) and not token.startswith(2 * source.marker)
        if token in known or not single:
            return token
        return target.marker + token[len(source.marker) :]

    places = _nearest(source, target, respell, on_progress)
    return [(id, target.ids[place]) for id, place in zip(source.ids, places, strict=True)]


def mined_map(
    source: Tokenizer,
    target: Tokenizer,
    *,
    source_stops: Collection[int],
    target_stop: int,
    on_progress: Callable[[float], None] | None = None,
) -> VocabMap:
    """Map each source token onto the one target token that is spelled most like it, weight 1, by PackLLM's rule.

    Spellings are surfaces, so that the edit distance counts bytes, and the same character is the same whatever
    alphabet a vocabulary writes it in. Special tokens are treated as `alignment.methods.exact.exact_map` does:
    stops go to `target_stop`, others nowhere, and no token of text goes to one. Of tokens with the same surface
    the one that `exact_map` takes stands first.
    """
    exact = exact_map(source, target, source_stops=source_stops, target_stop=target_stop)
    target_ids = exact.target_ids[:, 0].copy()
    left = [id for id, surface in enumerate(source.surfaces) if surface and target_ids[id] < 0]
    texts = _text(source, left), _text(target, range(target.vocabulary_size))
    pairs = packllm_pairs(*texts, on_progress=on_progress)
    target_ids[[id for id, _ in pairs]] = [place for _, place in pairs]
    weights = (target_ids >= 0).astype(np.float32)
    return VocabMap(target_ids[:, None], weights[:, None], target.vocabulary_size)


def _text(tokenizer: Tokenizer, ids: Collection[int]) -> Vocabulary:
    """The tokens among `ids` that stand for text, a character for each byte."""
    surfaces = {id: surface for id in ids if (surface := tokenizer.surfaces[id])}
    return Vocabulary([s.decode("latin-1") for s in surfaces.values()], list(surfaces), " ")


def _nearest(
    source: Vocabulary,
    target: Vocabulary,
    respell: Callable[[str], str],
    on_progress: Callable[[float], None] | None = None,
) -> list[int]:
    """For every source token, respelled, the place in `target` of the same or the nearest string."""
    place_of: dict[str, int] = {}
    for place, token in enumerate(target.tokens):
        place_of.setdefault(token, place)
    wanted = [respell(token) for token in source.tokens]
    unknown = [token for token in dict.fromkeys(wanted) if token not in place_of]
    step = max(1, _CELLS // max(1, len(target.tokens)))
    for start in range(0, len(unknown), step):
        some = unknown[start : start + step]
        distances = process.cdist(some, target.tokens, scorer=Levenshtein.distance, dtype=np.uint16, workers=-1)
        place_of.update(zip(some, distances.argmin(axis=1).tolist(), strict=True))
        if on_progress:
            on_progress((start + len(some)) / len(unknown))
    return [place_of[token] for token in wanted]


METHOD = Method(
    "a token goes to the one that is spelled most like it",
    lambda request: request.by(mined_map, on_progress=request.on_progress),
    costly=True,
)
