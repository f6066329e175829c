"""The map to beginnings: a token that the target vocabulary lacks goes to the one that begins the same text."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from alignment.methods.exact import exact_map
from alignment.methods.hybrid import hybrid_map
from alignment.methods.method import MapRequest, Method
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap


def prefix_map(
    source: Tokenizer, target: Tokenizer, *, source_stops: Collection[int], target_stop: int
) -> VocabMap:
    """The exact map, and for the tokens it leaves out the first token of the target's own spelling, weight 1.

    What UniTE (arXiv 2410.03777, section 3.2) does with tokens outside a top-k union. A target token that begins
    the text is a step towards it, after which the source model spells the rest anew; no other token is. Tokens
    that begin inside a character keep an empty row.
    """
    exact = exact_map(source, target, source_stops=source_stops, target_stop=target_stop)
    left_out = [id for id in np.flatnonzero(exact.target_ids[:, 0] < 0).tolist() if _text(source, id)]
    spelled = target.continuation.backend.encode_batch(
        [_text(source, id) for id in left_out], add_special_tokens=False
    )
    target_ids = np.full((exact.source_size, 1), -1, np.int32)
    for id, spelling in zip(left_out, spelled, strict=True):
        first = spelling.ids[0]
        if (source.surfaces[id] or b"").startswith(target.surfaces[first] or b"\xff"):
            target_ids[id] = first
    return hybrid_map(exact, VocabMap(target_ids, (target_ids >= 0).astype(np.float32), exact.target_size))


def _text(tokenizer: Tokenizer, id: int) -> str:
    """The whole characters that a token begins with."""
    surface = tokenizer.surfaces[id] or b""
    text = surface.decode(errors="ignore")
    return text if surface.startswith(text.encode()) else ""


def _learn(request: MapRequest) -> VocabMap:
    source, target = request.source, request.target
    return prefix_map(
        source.tokenizer, target.tokenizer, source_stops=source.stop_ids, target_stop=target.stop_ids[0]
    )


METHOD = Method("exact where the bytes coincide, the token that begins the same text for the rest", _learn)
