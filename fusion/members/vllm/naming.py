"""Naming: log-probabilities of given ids, and k best among allowed ids, beside what vLLM's samplers return.

vLLM returns either the k best or given ids, for a request or (V1) for all of a step. So the sampler of either
model runner is wrapped: for requests that carry `EXTRA` in their `extra_args` the raw logits are kept, and the
rows of its answer are completed. A step of V1 that all requests carry it in is answered from the logits at once:
vLLM would draw tokens that nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fusion.members.topk import best_allowed, best_tokens

EXTRA = "tutti"
"""The key in `extra_args`: {"also": ids, "allowed": bytes of the bitmask or None, "k": how many are best,
"kept": a number that the row is to be kept for, or None, "rows": see `fusion.members.vllm.drafted`, or None}. All
but "k" may be missing, which is as None."""

Kept = dict[int, torch.Tensor]
"""Rows for a second look, log-probabilities [V], by number."""


def wrap_sampler(runner: Any, kept: Kept) -> None:
    """Have a model runner's sampler answer what `EXTRA` asks for, and keep rows; the runner of V1 or of V2."""
    if isinstance(runner.sampler, torch.nn.Module):
        runner.sampler.forward = _V1(runner, runner.sampler.forward, kept)
    elif runner.sampler is not None:  # only the last stage of a pipeline has one there
        runner.sampler = _V2(runner.sampler, kept)


class _V1:
    """The V1 runner's sampler, which finds the requests of its rows in the runner's batch."""

    def __init__(self, runner: Any, forward: Any, kept: Kept) -> None:
        self._runner = runner
        self._forward = forward
        self._kept = kept

    def __call__(self, logits: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        requests, ids = self._runner.requests, self._runner.input_batch.req_ids[: len(logits)]
        extras = [extra_of(requests[request].sampling_params) for request in ids]
        if len(extras) == len(logits) and None not in extras:
            return answered(logits.float(), [extra for extra in extras if extra is not None], self._kept)
        wanted = {row: extra for row, extra in enumerate(extras) if extra is not None and len(extra) > 1}
        raw = _raw(logits, wanted)
        return completed(self._forward(logits, *arguments, **options), raw, wanted, self._kept)


class _V2:
    """The V2 runner's sampler, which is told of each request when that gets its place."""

    def __init__(self, sampler: Any, kept: Kept) -> None:
        self._sampler = sampler
        self._kept = kept
        self._extras: dict[int, Mapping[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def add_request(self, place: int, params: Any) -> None:
        """Note what a request wants."""
        self._extras.pop(place, None)
        if (extra := extra_of(params)) is not None and len(extra) > 1:
            self._extras[place] = extra
        self._sampler.add_request(place, params)

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> Any:
        places = input_batch.idx_mapping_np[: len(logits)].tolist() if self._extras else []
        wanted = {row: self._extras[place] for row, place in enumerate(places) if place in self._extras}
        raw = _raw(logits, wanted)
        return completed(self._sampler(logits, input_batch), raw, wanted, self._kept)


def extra_of(params: Any) -> Mapping[str, Any] | None:
    """What a request asks for beyond vLLM's own answer; None where it is not one of ours."""
    return None if params is None or not params.extra_args else params.extra_args.get(EXTRA)


def answered(logits: torch.Tensor, extras: list[Mapping[str, Any]], kept: Kept) -> Any:
    """A step's answer where every row has an `EXTRA`: [n, 1 + k + m], the best token, the k best, m named ids."""
    from vllm.v1.outputs import LogprobsTensors, SamplerOutput

    allowed = {
        row: np.frombuffer(extra["allowed"], np.uint8)
        for row, extra in enumerate(extras)
        if extra.get("allowed") is not None
    }
    best, logprobs, totals = best_tokens(logits, extras[0]["k"], allowed)
    logprobs[np.isnan(totals)] = np.nan
    named = [extra.get("also") or [] for extra in extras]
    width = 1 + best.shape[1]
    rows = np.zeros((len(best), width + max(map(len, named))), np.int32)
    given = np.full(rows.shape, -np.inf, np.float32)
    rows[:, 0], rows[:, 1:width] = best[:, 0], best
    given[:, 0], given[:, 1:width] = logprobs[:, 0], logprobs
    for row, (extra, also) in enumerate(zip(extras, named, strict=True)):
        if also:
            rows[row, width : width + len(also)] = also
            given[row, width : width + len(also)] = logits[row, also].cpu().numpy() - totals[row]
        if extra.get("kept") is not None:
            kept[extra["kept"]] = logits[row] - float(totals[row])
    ids = torch.from_numpy(rows)
    ranks = torch.zeros(len(rows), dtype=torch.int32)
    sampled = ids[:, :1].to(logits.device)
    return SamplerOutput(sampled, LogprobsTensors(ids, torch.from_numpy(given), ranks))


def _raw(logits: torch.Tensor, wanted: Mapping[int, Any]) -> torch.Tensor:
    """The rows that are wanted, [n, V] float32, before processors change them in place."""
    return logits[list(wanted)].clone().float() if wanted else logits[:0]


def completed(output: Any, raw: torch.Tensor, wanted: Mapping[int, Mapping[str, Any]], kept: Kept) -> Any:
    """A sampler's output with what some rows want: their k best replaced, their named ids after those.

    Rows that are to be `kept` are put there.
    """
    told = output.logprobs_tensors
    if not wanted or told is None:
        return output
    missing = (
        max(1 + extra["k"] + len(extra.get("also") or ()) for extra in wanted.values()) - told.logprobs.shape[1]
    )
    ids = torch.nn.functional.pad(told.logprob_token_ids, (0, max(0, missing)))
    logprobs = torch.nn.functional.pad(told.logprobs, (0, max(0, missing)), value=-torch.inf)
    if missing <= 0:
        ids, logprobs = ids.clone(), logprobs.clone()
    normal = torch.log_softmax(raw, dim=-1)
    for scores, (row, extra) in zip(normal, wanted.items(), strict=True):
        if extra.get("kept") is not None:
            kept[extra["kept"]] = scores.clone()  # of its own: not a view that keeps the rows of the whole step
        if extra.get("allowed") is not None:
            mask = np.frombuffer(extra["allowed"], np.uint8)
            best, values = best_allowed(scores, mask, extra["k"])
            ids[row, 1 : 1 + extra["k"]] = torch.from_numpy(best).to(ids)
            logprobs[row, 1 : 1 + extra["k"]] = torch.from_numpy(values).to(logprobs)
        if extra.get("also"):
            also = torch.tensor(extra["also"], device=scores.device)
            columns = slice(1 + extra["k"], 1 + extra["k"] + len(also))
            ids[row, columns] = also.to(ids)
            logprobs[row, columns] = scores[also].to(logprobs)
    output.logprobs_tensors = told._replace(logprob_token_ids=ids, logprobs=logprobs)
    return output
