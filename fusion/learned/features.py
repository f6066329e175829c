"""Features of a prompt: hashed words and pairs of words, its length, and the members' losses on it."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fusion.core import Floats, TextScores

BUCKETS = 2**16
# Of a long prompt the instructions stand at the beginning or at the end.
HEAD, TAIL = 128, 256
_CHARS = 8 * (HEAD + TAIL)  # read from each end
_LAST = 0.25  # of the units of a prompt are its last part
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: each character counts as a word
_WORD = re.compile(rf"[{_EAST_ASIAN}]|\d+|[^\W\d_{_EAST_ASIAN}]+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class PromptLosses:
    """The members' losses on a prompt, [M] each, in nats per token of the first member.

    Attributes:
        whole: on all text that was scored.
        last: on the last part of it.
    """

    whole: Floats
    last: Floats


def words(text: str) -> list[str]:
    """The words and signs of a text in lower case, from both ends where it is long; numbers are all `0`."""
    if len(text) > 2 * _CHARS:
        text = f"{text[:_CHARS]} {text[-_CHARS:]}"
    found = _WORD.findall(text.lower())
    if len(found) > HEAD + TAIL:
        found = found[:HEAD] + found[-TAIL:]
    return ["0" if one.isdigit() else one for one in found]


def ngrams(found: Sequence[str]) -> Counter[str]:
    """How often each word and each pair of neighbouring words comes."""
    return Counter([*found, *map(" ".join, pairwise(found))])


def bucket(ngram: str) -> int:
    """The bucket of a word or pair."""
    return zlib.crc32(ngram.encode("utf-8", "replace")) % BUCKETS


def losses_of(texts: Sequence[TextScores], members: Sequence[str]) -> PromptLosses | None:
    """The members' losses on the texts of a prompt; None where nothing, or nothing finite, was measured."""
    nats = np.array([np.concatenate([text.nats[name] for text in texts]) for name in members] if texts else [])
    if not nats.size or not np.isfinite(nats).all():
        return None
    tokens = np.concatenate([text.tokens[members[0]] for text in texts])
    last = max(1, round(_LAST * len(tokens)))
    return PromptLosses(
        nats.sum(axis=1) / max(1, tokens.sum()),
        nats[:, -last:].sum(axis=1) / max(1, tokens[-last:].sum()),
    )


def numbers(length: int, losses: PromptLosses | None, members: int) -> Floats:
    """The numeric features: log of the length in words, and the losses where there are any; see `number_names`.

    Losses stand as differences from the members' mean, since how hard a text is says nothing about who knows it.
    """
    base = [np.log1p(length)]
    if losses is None:
        return np.array(base + [0.0] * (numeric_features(members) - 1))
    parts = [one - one.mean() for one in (losses.whole, losses.last)]
    return np.concatenate([base, *parts, [losses.whole.mean()]])


def numeric_features(members: int) -> int:
    """How many numeric features there are."""
    return 2 * members + 2


def number_names(members: Sequence[str]) -> list[str]:
    """The names of the numeric features, for people."""
    return [
        "length",
        *(f"perplexity of {name}" for name in members),
        *(f"perplexity of {name} at the end" for name in members),
        "mean perplexity",
    ]
