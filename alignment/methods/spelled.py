"""The map by spelling: a token that the target lacks goes to the first token that the target spells it with."""

from __future__ import annotations

from collections.abc import Collection

from alignment.methods.exact import exact_map
from alignment.methods.hybrid import completed
from alignment.methods.method import Method
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap


def spelled_map(
    source: Tokenizer, target: Tokenizer, *, source_stops: Collection[int], target_stop: int
) -> VocabMap:
    """The exact map, and for each token it leaves out the first token of the target's spelling of its bytes.

    The target model has learned from text in its own spelling, so of all tokens that begin the same bytes the
    first one of that spelling is what it expects, and the longest one is often not. Where the spelling does not
    begin with the token's bytes (the vocabulary lacks some of them, or they end inside a character), the row is
    that of `alignment.methods.prefix.prefix_map`.
    """
    exact = exact_map(source, target, source_stops=source_stops, target_stop=target_stop)
    return completed(exact, source, target.reverse.first_token)


METHOD = Method(
    "exact where the bytes coincide, the first token of the pivot's spelling for the rest",
    lambda request: request.by(spelled_map),
)
