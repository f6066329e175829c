"""Second looks: what a sum asks the members of a sequence about its candidates, and what they answer."""

from __future__ import annotations

import numpy as np

from fusion.core import Floats, LogProbs, Look
from fusion.sequence.sequence import Sequence
from fusion.sequence.summing import Flags, Sum, Tokens, in_pivot, kept_by, named_logs

UNSEEN = 1e-6  # probability beyond the listed tokens that is rounding


def begin_sum(sequence: Sequence) -> tuple[Sum, dict[str, Look]]:
    """Find the candidates of the round to come, and what the members are to be asked about them.

    A round that a term is missing from (its member has left, or the text ends inside a character that it spells in
    another way) is the pivot's alone: without it the rest would be another sum.
    """
    terms, pivot, voters = sequence.terms, sequence.view.pivot, sequence.voters
    assert terms is not None
    speaks = {name: name in voters and sequence.seats[name].inside is None for name in terms.weights}
    weights = dict(terms.weights) if all(speaks.values()) else {pivot: 1.0}
    seen = {pivot: _seen(sequence, pivot)}
    tokens, logs = seen[pivot]
    allowed = _allowed(sequence, tokens)
    mask = terms.mask
    limited = _limited(sequence)  # what may come beyond such a list is not known
    unseen = 0.0 if limited else 1 - float(np.exp(logs).sum())
    if mask is not None:
        kept = kept_by(mask, np.exp(logs), allowed, limited=limited)
        reached = bool((allowed & ~kept).any()) or (mask.top_k is not None and kept.sum() >= mask.top_k)
        chosen = tokens[kept]
    else:
        reached = False
        rows = [tokens[allowed]]
        for name, weight in weights.items():
            if weight > 0 and name != pivot:
                theirs, _ = seen[name] = _seen(sequence, name)
                rows.append(theirs[_allowed(sequence, theirs)])
        chosen = np.unique(np.concatenate(rows))
    if len(named := _favoured(sequence)):
        chosen = np.union1d(chosen, named)
    found = Sum(pivot, chosen, weights, None if reached or unseen <= UNSEEN else unseen)
    looks = {}
    for name in dict.fromkeys([pivot, *weights]):
        if name in seen and bool(np.isin(chosen, seen[name][0]).all()) and sequence.map_of(name) is None:
            found.logs[name] = seen[name][1][np.searchsorted(seen[name][0], chosen)]
            continue
        map, size = sequence.map_of(name), sequence.view.models[name].member.vocabulary_size
        ids = chosen if map is None else map.sources_of(chosen)
        ids = ids[ids < size]
        found.asked[name] = ids
        if len(ids):
            found.awaited.add(name)
            row = sequence.seats[name].look_row(sequence.cursor)
            looks[name] = Look(sequence.numbers.of(name), ids.tolist(), row)
        else:
            found.logs[name] = np.full(len(chosen), np.nan)
    return found, looks


def take_look(sequence: Sequence, name: str, logprobs: LogProbs) -> None:
    """Take in a member's answer to its second look; one that nobody waits for any more is dropped."""
    found = sequence.sum
    if found is None or name not in found.awaited:
        return  # another member has left meanwhile, and the pivot went on alone
    found.awaited.discard(name)
    found.logs[name] = named_logs(
        found.tokens,
        found.asked[name],
        logprobs,
        sequence.map_of(name),
        sequence.seats[name].listed(sequence.cursor, sequence.bias.of(name)[0]),
    )


def _seen(sequence: Sequence, name: str) -> tuple[Tokens, Floats]:
    """The pivot's ids that a member's best tokens go to, ascending, and their log-probabilities, [C] both."""
    ids, logprobs = sequence.seats[name].row(sequence.cursor)
    return in_pivot(ids[0], logprobs[0], sequence.map_of(name), sequence.view.vocabulary_size)


def _limited(sequence: Sequence) -> bool:
    """Whether the pivot's list holds only what may come, with probabilities that count all other tokens too."""
    constraint = sequence.constraint
    banned = sequence.bias.of(sequence.view.pivot)[1] is not None
    return banned or (constraint is not None and not constraint.is_open)


def _allowed(sequence: Sequence, tokens: Tokens) -> Flags:
    """The tokens that may come next, whatever the members say; all of them where none may."""
    allowed = np.ones(len(tokens), np.bool_)
    if sequence.constraint is not None:
        allowed &= sequence.constraint.allowed(tokens.astype(np.int32))
    if forbidden := sequence.ends.forbidden(sequence.length):
        allowed &= ~np.isin(tokens, list(forbidden))
    return allowed if allowed.any() else np.ones(len(tokens), np.bool_)


def _favoured(sequence: Sequence) -> Tokens:
    """Tokens that the request favours: they may win wherever the mask ends."""
    wanted = [id for id, value in sequence.sampling.logit_bias.items() if value > 0]
    ids = np.array(sorted(wanted), dtype=np.int64)
    return ids[_allowed(sequence, ids)] if len(ids) else ids
