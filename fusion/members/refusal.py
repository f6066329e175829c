"""Refusal: what is wrong with an advance, whatever engine it is for."""

from __future__ import annotations

from fusion.core import Advance


def refusal(advance: Advance, *, cached: int, context: int, known_ids: int, vocabulary_size: int) -> str | None:
    """Return the reason why an advance is invalid, one sentence; None if it is valid.

    Args:
        cached: tokens of its sequence that are cached.
        context: tokens that a sequence can hold.
        known_ids: ids below this can be appended.
        vocabulary_size: ids below this can be named.
    """
    length = advance.keep + len(advance.append)
    if not advance.append:
        return "An advance must append at least one token."
    if not 0 <= advance.keep <= cached:
        return f"Cannot keep {advance.keep} tokens: {cached} are cached."
    if length > context:
        return f"{length} tokens are more than the context of {context}."
    if not 0 <= min(advance.append) <= max(advance.append) < known_ids:
        return f"Token ids must be at least 0 and below {known_ids}."
    each, scored = advance.each, len(advance.scored)
    if each is not None and (
        len(each) != scored or (each.size and not 0 <= each.min() <= each.max() < vocabulary_size)
    ):
        return f"Ids that are named must be at least 0 and below {vocabulary_size}, as many as are scored."
    rows = 1 + (scored if advance.score == "all" else 0)
    if advance.allowed is not None and advance.allowed.ndim > 1 and len(advance.allowed) != rows:
        return f"The answer has {rows} rows, but {len(advance.allowed)} bitmasks limit it."
    if advance.also and not 0 <= min(advance.also) <= max(advance.also) < vocabulary_size:
        return f"Ids that are named must be at least 0 and below {vocabulary_size}."
    return None
