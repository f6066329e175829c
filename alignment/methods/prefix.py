"""The map to beginnings: a token that the target vocabulary lacks goes to the one that begins the same text."""

from __future__ import annotations

from collections.abc import Collection

from alignment.methods.exact import exact_map
from alignment.methods.hybrid import completed
from alignment.methods.method import Method
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap


def prefix_map(
    source: Tokenizer, target: Tokenizer, *, source_stops: Collection[int], target_stop: int
) -> VocabMap:
    """The exact map, and for each token it leaves out the target token that is the longest beginning of its bytes.

    UniTE's rule (arXiv 2410.03777, section 3.2) for tokens outside a top-k union, applied to bytes. A target token
    that begins the text is a step towards it, after which the source model re-tokenises the rest; no other token
    is. A beginning may end inside a character. Rows stay empty where the target has no token for the first byte.
    """
    exact = exact_map(source, target, source_stops=source_stops, target_stop=target_stop)
    return completed(exact, source, lambda surface: target.reverse.longest_beginning(surface[:-1]))


METHOD = Method(
    "exact where the bytes coincide, the longest beginning of its bytes for the rest",
    lambda request: request.by(prefix_map),
)
