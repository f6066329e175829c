"""Inside characters: what a member's distributions say of the bytes that complete a character.

The pivot may spell a character in several tokens, and after the first of them the text ends inside the character.
A member that spells it in one token is never in that position, and its distribution there means nothing. But its
distribution from before the character says which bytes are likely to follow those that were chosen: the tokens
that begin with those bytes, each as probable as it was in comparison with the others (conditioning on the bytes).
A member that spells some characters in byte tokens and others whole has part of its probability there: it is asked
after the byte tokens as well, and that distribution counts as much as the member gave to these tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap
from fusion.core import Ids, LogProbs

# Where a member gives less than this share to spelling the beginning of a character by itself, it is not asked
# there: what it said would count no more than that.
WORTH_ASKING = 0.01


@dataclass(frozen=True, slots=True)
class Level:
    """A point at or after a character's beginning from which a member predicts.

    Attributes:
        ids, logprobs: [k], its best tokens there, natural logs.
        rest: bytes of the unfinished character after this point; b"" where the tokens before it spell them all.
        path: natural log of the probability of the tokens that lead here from the character's beginning.
    """

    ids: Ids
    logprobs: LogProbs
    rest: bytes
    path: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The probability of the tokens at one level, by what they say of the bytes that are there.

    Attributes:
        beyond: id, probability for each token that contains these bytes and more.
        short: of all tokens that end with these bytes or before: what comes after them is not known here.
    """

    beyond: list[tuple[int, float]]
    short: float


def parts_of(level: Level, surfaces: Sequence[bytes | None]) -> Parts:
    """Look at a level's tokens; `level.rest` must not be empty."""
    rest, beyond, short = level.rest, [], 0.0
    first = rest[0]
    for id, logprob in zip(level.ids.tolist(), np.exp(level.logprobs.astype(np.float64)).tolist(), strict=True):
        surface = surfaces[id] if id < len(surfaces) else None
        if not surface or surface[0] != first:
            continue
        if len(surface) > len(rest):
            if surface.startswith(rest):
                beyond.append((id, logprob))
        elif rest.startswith(surface):
            short += logprob
    return Parts(beyond, short)


def likelihood(level: Level, token: int) -> float:
    """Natural log of a token's probability at a level; of one that is not listed, that of the least listed."""
    where = np.flatnonzero(level.ids == token)
    return float(level.logprobs[where[0]] if len(where) else level.logprobs[np.isfinite(level.logprobs)].min())


def is_worth_asking(level: Level, token: int, surfaces: Sequence[bytes | None]) -> bool:
    """Whether a token that spells a part of the character has a share in what the member expects here."""
    whole = sum(probability for _, probability in parts_of(level, surfaces).beyond)
    partly = float(np.exp(likelihood(level, token)))
    return whole == 0 or partly >= WORTH_ASKING * (whole + partly)


def conditioned(
    levels: Sequence[Level], surfaces: Sequence[bytes | None], pivot: Tokenizer, last: VocabMap | None
) -> tuple[Ids, LogProbs] | None:
    """A member's distribution over the pivot's next token inside a character: ids [1, n], natural logs [1, n].

    Each level's tokens count with the probability of the path to it. The bytes that a token adds to those of the
    unfinished character go to the first token of the pivot's spelling of them. What the last level gives to tokens
    that end too early is lost. None where no token says anything.

    Args:
        levels: in the order of the text; the rest is empty at the last one at most.
        surfaces: the member's, by id.
        pivot: the tokenizer whose ids are returned.
        last: the member's map, for a level without a rest.
    """
    targets: list[int] = []
    masses: list[float] = []
    total = lost = 0.0
    highest = max(level.path for level in levels)
    for level in levels:
        share = float(np.exp(level.path - highest))
        if not level.rest:
            ids, weights = level.ids[:, None], np.ones((len(level.ids), 1))
            if last is not None:
                ids, weights = last.target_ids[level.ids], last.weights[level.ids].astype(np.float64)
            mass = share * np.exp(level.logprobs.astype(np.float64))[:, None] * weights
            reached = (ids >= 0) & (mass > 0)
            targets += ids[reached].tolist()
            masses += mass[reached].tolist()
            total += share
            continue
        parts = parts_of(level, surfaces)
        if level is levels[-1]:
            lost = share * parts.short
        for id, probability in parts.beyond:
            total += share * probability
            target = pivot.first_token((surfaces[id] or b"")[len(level.rest) :])
            if target is not None:
                targets.append(target)
                masses.append(share * probability)
    if not masses:
        return None
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(masses) / (total + lost))
    return np.array([targets], dtype=np.int32), logprobs[None].astype(np.float32)
