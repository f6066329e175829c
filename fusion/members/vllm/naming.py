"""Naming: log-probabilities of given ids, and k best among allowed ids, beside what vLLM's samplers return.

vLLM returns either the k best or given ids, for a request or (V1) for all of a step. So the sampler of either
model runner is wrapped: for requests that carry `EXTRA` in their `extra_args` the raw logits are kept, and the
rows of its answer are completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fusion.members.topk import best_allowed

EXTRA = "tutti"
"""The key in `extra_args`: {"also": ids, "allowed": bytes of the bitmask or None, "k": how many are best,
"kept": a number that the row is to be kept for, or None, "rows": see `fusion.members.vllm.drafted`, or None}."""

Kept = dict[int, torch.Tensor]
"""Rows for a second look, log-probabilities [V], by number."""


def wrap_sampler(runner: Any, kept: Kept) -> None:
    """Have a model runner's sampler answer what `EXTRA` asks for, and keep rows; the runner of V1 or of V2."""
    if isinstance(runner.sampler, torch.nn.Module):
        runner.sampler.forward = _V1(runner, runner.sampler.forward, kept)
    else:
        runner.sampler = _V2(runner.sampler, kept)


class _V1:
    """The V1 runner's sampler, which finds the requests of its rows in the runner's batch."""

    def __init__(self, runner: Any, forward: Any, kept: Kept) -> None:
        self._runner = runner
        self._forward = forward
        self._kept = kept

    def __call__(self, logits: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        runner = self._runner
        wanted = {}
        for row, request in enumerate(runner.input_batch.req_ids[: len(logits)]):
            params = runner.requests[request].sampling_params
            if params is not None and params.extra_args and EXTRA in params.extra_args:
                wanted[row] = params.extra_args[EXTRA]
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
        if params.extra_args and EXTRA in params.extra_args:
            self._extras[place] = params.extra_args[EXTRA]
        self._sampler.add_request(place, params)

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> Any:
        places = input_batch.idx_mapping_np[: len(logits)].tolist() if self._extras else []
        wanted = {row: self._extras[place] for row, place in enumerate(places) if place in self._extras}
        raw = _raw(logits, wanted)
        return completed(self._sampler(logits, input_batch), raw, wanted, self._kept)


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
    missing = max(1 + extra["k"] + len(extra["also"]) for extra in wanted.values()) - told.logprobs.shape[1]
    ids = torch.nn.functional.pad(told.logprob_token_ids, (0, max(0, missing)))
    logprobs = torch.nn.functional.pad(told.logprobs, (0, max(0, missing)), value=-torch.inf)
    if missing <= 0:
        ids, logprobs = ids.clone(), logprobs.clone()
    normal = torch.log_softmax(raw, dim=-1)
    for scores, (row, extra) in zip(normal, wanted.items(), strict=True):
        if extra.get("kept") is not None:
            kept[extra["kept"]] = scores
        if extra["allowed"] is not None:
            mask = np.frombuffer(extra["allowed"], np.uint8)
            best, values = best_allowed(scores, mask, extra["k"])
            ids[row, 1 : 1 + extra["k"]] = torch.from_numpy(best).to(ids)
            logprobs[row, 1 : 1 + extra["k"]] = torch.from_numpy(values).to(logprobs)
        if extra["also"]:
            also = torch.tensor(extra["also"], device=scores.device)
            columns = slice(1 + extra["k"], 1 + extra["k"] + len(also))
            ids[row, columns] = also.to(ids)
            logprobs[row, columns] = scores[also].to(logprobs)
    output.logprobs_tensors = told._replace(logprob_token_ids=ids, logprobs=logprobs)
    return output
