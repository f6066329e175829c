"""Inside characters: what members say of the bytes that complete a character, and what they weigh there.

The pivot may spell a character in several tokens, and after the first of them the text ends inside the character.
A member that spells it in one token is never in that position, and its distribution there means nothing. But its
distribution from before the character says which bytes are likely to follow those that were chosen: the tokens
that begin with those bytes, each as probable as it was in comparison with the others (conditioning on the bytes).
A member that spells some characters in byte tokens and others whole has part of its probability there: it is asked
after the byte tokens as well, and that distribution counts as much as the member gave to these tokens.

Of the tokens, those are left out that the pivot would have spelled otherwise: where it has a token for a whole
character and did not choose it, the character is another one.

A member that gave the beginning of the character little probability has less to say of the rest. In a mixture of
whole characters, sum_i w_i p_i(t1 ... tn) for the pivot's tokens t1 ... tn of a character, the next token after
t1 ... ts has the distribution (Bayes' rule)

    sum_i w_i p_i(t1 ... ts) p_i(t | t1 ... ts)  /  sum_i w_i p_i(t1 ... ts)

so inside a character a member's weight is its weight times the probability that it gave to the pivot's tokens of
this character (`weights_inside`). Of a token that also spells what is before the character, the probability among
those that spell the same counts.

Members differ more here than elsewhere: some have hardly seen the script. So after each character c of several
tokens the weights that hold inside characters move towards those who expected it (`shifted`), by Soft-Bayes
(Orseau, Lattimore and Legg 2017, "Soft-Bayes: Prod for mixtures of experts with log-loss")

    w_i <- w_i (1 - rate + rate p_i(c) / sum_j w_j p_j(c))

which approaches the loss of the best fixed weights for the text, be they the given ones or the pivot alone. Texts
are short, so members that speak from before a character begin with a fifth of their weight (`first_trust`): those
who are given its beginning say of the rest what they were trained to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.text.characters import beginning_at_the_end
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap
from fusion.core import Ids, LogProbs
from fusion.step import LEAST_LOST

# Where a member gives less than this share to spelling the beginning of a character by itself, it is not asked
# there: what it said would count no more than that.
WORTH_ASKING = 0.01
RATE = 0.15
"""How far a character moves the weights inside characters. At 1 it is Bayes' rule, which ends at one member."""
FIRST_TRUST = 0.2
"""The first factor of a member that speaks from before a character; that of those who wrote its beginning is 1."""
LEAST_TRUST = 1e-3
"""What a member keeps of the largest factor: another script may come."""


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


@dataclass(frozen=True, slots=True)
class Begun:
    """The pivot's tokens of an unfinished character, and the bytes of all of them.

    Attributes:
        ahead: those of the bytes that are before the character.
    """

    tokens: tuple[int, ...]
    spelled: bytes
    ahead: bytes

    @classmethod
    def at_the_end(cls, tokens: Sequence[int], surface: Callable[[int], bytes]) -> Begun | None:
        """What a text of the pivot's `tokens` ends with; None where it ends with a whole character."""
        beginning = beginning_at_the_end(b"".join(map(surface, tokens[-3:])))
        if not beginning:
            return None
        count, spelled = 0, b""
        while len(spelled) < len(beginning):
            count += 1
            spelled = surface(tokens[-count]) + spelled
        return cls(tuple(tokens[-count:]), spelled, spelled[: len(spelled) - len(beginning)])

    def fits(self, added: bytes, pivot: Tokenizer) -> bool:
        """Whether the pivot spells what is there and `added` after it in tokens that begin with the first one."""
        data = self.spelled + added
        return len(beginning_at_the_end(data)) > len(added) or pivot.reverse.first_token(data) == self.tokens[0]


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a member says inside a character.

    Attributes:
        ids, logprobs: [1, n], its distribution over the pivot's next token, natural logs.
        likelihood: natural log of the probability that it gave to the pivot's tokens of the character.
    """

    ids: Ids
    logprobs: LogProbs
    likelihood: float

    def given(self, token: int, of_pivot: float) -> float:
        """The probability of a token to which the pivot gives `of_pivot`, and what is lost with it."""
        masses = np.exp(self.logprobs[0].astype(np.float64))
        return float(masses[self.ids[0] == token].sum() + max(1.0 - masses.sum(), LEAST_LOST) * of_pivot)


def conditioned(
    levels: Sequence[Level],
    surfaces: Sequence[bytes | None],
    pivot: Tokenizer,
    last: VocabMap | None,
    begun: Begun | None = None,
) -> Spoken | None:
    """A member's distribution over the pivot's next token inside a character; None where no token says anything.

    Each level's tokens count with the probability of the path to it. The bytes that a token adds to those of the
    unfinished character go to the first token of the pivot's spelling of them. What the last level gives to tokens
    that end too early is lost.

    Args:
        levels: in the order of the text; the rest is empty at the last one at most.
        surfaces: the member's, by id.
        pivot: the tokenizer whose ids are returned.
        last: the member's map, for a level without a rest.
        begun: what the pivot has of the character, which rules out what it would have spelled otherwise; unless
            that is everything.
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
            for target, part in zip(ids[reached].tolist(), mass[reached].tolist(), strict=True):
                if begun is None or begun.fits(pivot.surface_of([target]), pivot):
                    targets.append(target)
                    masses.append(part)
                else:
                    share -= part
            total += max(share, 0.0)
            continue
        parts = parts_of(level, surfaces)
        if level is levels[-1]:
            lost = share * parts.short
        for id, probability in parts.beyond:
            added = (surfaces[id] or b"")[len(level.rest) :]
            if begun is not None and not begun.fits(added, pivot):
                continue  # it was a vote for another token of the pivot, where the character began
            total += share * probability
            target = pivot.reverse.first_token(added)
            if target is not None:
                targets.append(target)
                masses.append(share * probability)
    if not masses:
        return None if begun is None else conditioned(levels, surfaces, pivot, last)
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(masses) / (total + lost))
    given = float(np.log(total + lost)) + highest
    return Spoken(np.array([targets], dtype=np.int32), logprobs[None].astype(np.float32), given)


def first_likelihood(level: Level, begun: Begun, surface: Callable[[int], bytes]) -> float:
    """Natural log of the probability of a character's first token, for a member that is given the pivot's tokens.

    Of the tokens that spell what is before the character as well, if that token does.
    """
    [first, *_], ahead = begun.tokens, begun.ahead
    alike = [
        logprob
        for id, logprob in zip(level.ids.tolist(), level.logprobs.tolist(), strict=True)
        if surface(id).startswith(ahead)
    ]
    among = float(np.logaddexp.reduce(alike)) if ahead and alike else 0.0
    return min(likelihood(level, first) - among, 0.0)


def weights_inside(
    weights: Mapping[str, float], likelihoods: Mapping[str, float], trust: Mapping[str, float]
) -> dict[str, float]:
    """The members' weights after a character's first tokens, to which each gave exp(`likelihoods`).

    A member that was not asked about them keeps its share. `trust` are the factors that earlier characters left.
    """
    trusted = _trusted(weights, trust)
    highest = max(likelihoods.values(), default=0.0)
    known = {name: float(np.exp(likelihoods[name] - highest)) for name in weights if name in likelihoods}
    before = sum(trusted[name] for name in known)
    unknown = sum(trusted[name] * likely for name, likely in known.items()) / before if before > 0 else 1.0
    return {name: weight * known.get(name, unknown) for name, weight in trusted.items()}


def first_trust(names: Iterable[str], follows_ids: Callable[[str], bool]) -> dict[str, float]:
    """The factors on members' weights inside characters, before the first.

    Args:
        names: the members.
        follows_ids: whether a member is given the pivot's own tokens.
    """
    return {name: 1.0 if follows_ids(name) else FIRST_TRUST for name in names}


def shifted(
    trust: Mapping[str, float],
    weights: Mapping[str, float],
    likelihoods: Mapping[str, float],
    given: Mapping[str, float],
) -> dict[str, float]:
    """The factors on members' weights inside characters, after a character.

    Args:
        trust: those before it (`first_trust`); 1 for a member that is not in it.
        weights: the members' weights.
        likelihoods: natural logs of what they gave to all but its last token.
        given: the probability that each gave to its last token.
    """
    highest = max(likelihoods.values(), default=0.0)
    whole = {
        name: float(np.exp(likelihoods[name] - highest)) * given[name] for name in given if name in likelihoods
    }
    trusted = _trusted(weights, trust)
    mean = sum(trusted[name] * share for name, share in whole.items())
    if mean <= 0:
        return dict(trust)
    mean /= sum(trusted[name] for name in whole)
    moved = {
        name: factor * (1 - RATE + RATE * whole[name] / mean) if name in whole else factor
        for name, factor in _trusted(dict.fromkeys({*weights, *trust}, 1.0), trust).items()
    }
    largest = max(moved.values())
    return {name: max(factor / largest, LEAST_TRUST) for name, factor in moved.items()}


def _trusted(weights: Mapping[str, float], trust: Mapping[str, float]) -> dict[str, float]:
    return {name: weight * trust.get(name, 1.0) for name, weight in weights.items()}
