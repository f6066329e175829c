"""Top k: the k best next tokens of each row of logits, and the normalisers of their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.core import Ids, LogProbs

_SPREAD = 4


Bits = NDArray[np.uint8]


def best_tokens(
    logits: Tensor, k: int, allowed: Mapping[int, Bits] = MappingProxyType({})
) -> tuple[Ids, LogProbs, LogProbs]:
    """The k highest of each row, best first; on a CPU the lower id first among equals.

    logits: [n, V] float32. `allowed` limits rows, by index, to ids as in `best_allowed`. Returns ids [n, k] int32,
    their log-probabilities [n, k] float32 normalised over V, and the normalisers [n] float32 (log of the sum of
    exponentials). A row with NaN or +inf has the normaliser NaN, and its other results are undefined. Rows are
    ranked by logit, since normalising rounds and would make neighbours equal.
    """
    if logits.device.type != "cpu":
        total = _normalisers(logits)
        if allowed:
            rows = torch.tensor(list(allowed), device=logits.device)
            logits = logits.index_put((rows,), _masked(logits[rows], list(allowed.values())))
        scores, ids = torch.topk(logits, k)
        return ids.int().cpu().numpy(), (scores - total[:, None]).cpu().numpy(), total.cpu().numpy()
    n = len(logits)
    best_ids, best_logprobs = np.zeros((n, k), np.int32), np.zeros((n, k), np.float32)
    totals = np.full(n, np.nan, np.float32)
    # Row by row: a row of logits fits the cache of a core, and everything that follows finds it there.
    for row, score in enumerate(logits.numpy()):
        highest = score.max()
        if np.isfinite(highest):
            totals[row] = highest + np.log(np.exp(score - highest).sum())
            if (bits := allowed.get(row)) is None:
                chosen = best_of_row(score, k)
                best_ids[row], best_logprobs[row] = chosen, score[chosen] - totals[row]
            else:
                best_ids[row], best_logprobs[row] = _best_allowed_of_row(score, bits, k)
                best_logprobs[row] -= totals[row]
    return best_ids, best_logprobs, totals


def best_allowed(logits: Tensor, allowed: Bits, k: int) -> tuple[Ids, LogProbs]:
    """The k highest of a row of logits [V] among the ids whose bit is set in `allowed` (little order).

    Returns ids [k] int32, best first, and their logits [k] float32, -inf from where no more are allowed on.
    """
    if logits.device.type != "cpu":
        scores, ids = torch.topk(_masked(logits[None], [allowed])[0], k)
        return ids.int().cpu().numpy(), scores.cpu().numpy()
    row = logits.numpy()
    if np.isnan(row.max()):  # no order; whoever reads it sees that it is none
        return np.arange(k, dtype=np.int32), np.full(k, np.nan, np.float32)
    return _best_allowed_of_row(row, allowed, k)


def _masked(logits: Tensor, allowed: Sequence[Bits]) -> Tensor:
    """Rows of logits [n, V], each -inf at the ids whose bit is not set."""
    width = logits.shape[1]
    masks = np.stack([np.unpackbits(bits, bitorder="little", count=width) for bits in allowed])
    return logits.masked_fill(torch.from_numpy(masks == 0).to(logits.device), -torch.inf)


def _best_allowed_of_row(score: LogProbs, allowed: Bits, k: int) -> tuple[Ids, LogProbs]:
    count = int(np.bitwise_count(allowed).sum())
    many = 2 * count > len(score)
    if many and len(score) > 4 * _SPREAD * k:  # most of the best are allowed: look only at those
        likely = best_of_row(score, 2 * k)
        likely = likely[likely < 8 * len(allowed)]
        likely = likely[(allowed[likely >> 3] >> (likely & 7) & 1).astype(np.bool_)][:k]
        if len(likely) == k:
            return likely, score[likely]
    mask = np.unpackbits(allowed, bitorder="little", count=len(score)).view(np.bool_)
    if many:
        masked = np.where(mask, score, -np.inf)
        chosen = best_of_row(masked, k)
        return chosen, masked[chosen]
    ids = np.flatnonzero(mask)
    best = best_of_row(score[ids], min(k, len(ids))) if len(ids) else ids
    chosen, found = np.zeros(k, np.int32), np.full(k, -np.inf, np.float32)
    chosen[: len(best)], found[: len(best)] = ids[best], score[ids[best]]
    if len(best) < k:  # others fill the row up, each once
        chosen[len(best) :] = np.setdiff1d(np.arange(min(2 * k, len(score))), ids[best])[: k - len(best)]
    return chosen, found


def normalisers(logits: Tensor) -> LogProbs:
    """The log of the sum of exponentials of each row of logits [n, V]: [n] float32, NaN where NaN or +inf is."""
    totals: LogProbs = _normalisers(logits).cpu().numpy()
    return totals


def _normalisers(logits: Tensor) -> Tensor:
    # logsumexp takes +inf for a sum; its difference to itself does not.
    total = torch.logsumexp(logits, dim=-1)
    return total + (total - total)


def best_of_row(score: LogProbs, k: int) -> Ids:
    """Ids of the k highest of score [V].

    A third of the time of torch.topk on a CPU at k = 320 and V = 50,000: with the scores in some more than k
    groups, the k-th highest maximum of a group is a bound that at least k scores reach and few others do; only
    those are sorted.
    """
    groups = max(1, len(score) // (_SPREAD * k))
    width = len(score) // groups
    maxima = score[: width * groups].reshape(groups, width).max(axis=0)
    bound = np.partition(maxima, width - k)[width - k]
    candidates = np.flatnonzero(score >= bound)
    order = np.argsort(-score[candidates], kind="stable")[:k]
    return candidates[order].astype(np.int32)
