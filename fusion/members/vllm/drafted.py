"""Drafted: the rows between appended tokens where each has a bitmask or named ids of its own.

What vLLM scores of a prompt are the k best of all ids. For requests that carry rows in their `EXTRA` the scoring
of either model runner is left out, and theirs is done here, from the same hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors

from fusion.members.topk import best_allowed, best_tokens
from fusion.members.vllm.naming import extra_of

Rows = Mapping[str, Any]
"""{"at": positions of the tokens after which is asked, "allowed": bytes of their bitmasks or None, "each": the ids
named at each or None, "k": how many are best}."""
Logits = Callable[[torch.Tensor], torch.Tensor]
Parts = list[tuple[torch.Tensor, torch.Tensor]]


def wrap_scoring(runner: Any) -> None:
    """Have a model runner score rows; that of V1 or of V2."""
    if hasattr(runner, "prompt_logprobs_worker"):
        if runner.prompt_logprobs_worker is not None:  # only the last stage of a pipeline scores
            runner.prompt_logprobs_worker = _V2(runner.prompt_logprobs_worker)
    else:
        runner._get_prompt_logprobs_dict = _V1(runner)


def rows_of(params: Any) -> Rows | None:
    """The rows that a request asks for, if it does."""
    return (extra_of(params) or {}).get("rows")


class _Scored:
    """Rows that are scored as far as their requests have come."""

    def __init__(self) -> None:
        self._parts: dict[str, Parts] = {}

    def add(
        self, request: str, rows: Rows, logits_of: Logits, hidden: torch.Tensor, start: int, ids: torch.Tensor
    ) -> None:
        """Score what a step ran: `hidden` [n, d] of the tokens from position `start` on; `ids` are all tokens."""
        places = [i for i, at in enumerate(rows["at"]) if start <= at < start + len(hidden)]
        at = torch.tensor([rows["at"][i] for i in places], dtype=torch.long, device=hidden.device)
        parts = self._parts.setdefault(request, [])
        if places:
            given = ids.to(hidden.device)[at + 1].long()
            parts.append(_best(logits_of(hidden[at - start]).float(), given, rows, places))

    def keep(self, requests: Collection[str]) -> None:
        """Forget all others, which were given up half-way."""
        self._parts = {request: parts for request, parts in self._parts.items() if request in requests}

    def done(self, request: str) -> LogprobsTensors:
        """All rows of a request: [n, 1 + k + m], the given token, the k best, the m that are named."""
        ids, logprobs = (torch.cat(column) for column in zip(*self._parts.pop(request), strict=True))
        return LogprobsTensors(ids, logprobs, torch.zeros(len(ids), dtype=torch.int32))

    def forget(self, request: str) -> None:
        """The request has ended."""
        self._parts.pop(request, None)


def _best(
    logits: torch.Tensor, given: torch.Tensor, rows: Rows, places: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of ids and log-probabilities of some of the rows, on the CPU."""
    k = rows["k"]
    normal = torch.log_softmax(logits, dim=-1)
    ids, logprobs = [given[:, None].int()], [normal.gather(1, given[:, None])]
    if k:
        if rows["allowed"] is None:
            best, _, _ = best_tokens(logits, k)
            ids.append(torch.from_numpy(best).to(logits.device))
            logprobs.append(normal.gather(1, ids[-1].long()))
        else:
            masks = np.frombuffer(rows["allowed"], np.uint8).reshape(len(rows["at"]), -1)
            found = [best_allowed(scores, masks[i], k) for scores, i in zip(normal, places, strict=True)]
            ids.append(torch.from_numpy(np.stack([best for best, _ in found])).to(logits.device))
            logprobs.append(torch.from_numpy(np.stack([values for _, values in found])).to(logits.device))
    if rows["each"] is not None:
        ids.append(torch.tensor([rows["each"][i] for i in places], dtype=torch.int32, device=logits.device))
        logprobs.append(normal.gather(1, ids[-1].long()))
    return torch.cat(ids, dim=1).cpu(), torch.cat(logprobs, dim=1).cpu()


class _V1:
    """The V1 runner's scoring of prompts."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._score = runner._get_prompt_logprobs_dict
        self._scored = _Scored()

    def __call__(self, hidden: torch.Tensor, scheduled: Mapping[str, int]) -> dict[str, Any]:
        runner, counts = self._runner, self._runner.num_prompt_logprobs
        mine = {
            request: (count, rows)
            for request, count in counts.items()
            if request in scheduled and (rows := rows_of(runner.requests[request].sampling_params)) is not None
        }
        for request in mine:
            del counts[request]
        self._scored.keep(runner.requests)
        found: dict[str, Any] = self._score(hidden, scheduled)
        for request, (count, rows) in mine.items():
            state, tokens = runner.requests[request], scheduled[request]
            offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request]])
            start, ids = state.num_computed_tokens, torch.tensor(state.prompt_token_ids)
            if start <= rows["at"][0]:
                self._scored.forget(request)
            of_request = hidden[offset : offset + tokens]
            self._scored.add(request, rows, runner.model.compute_logits, of_request, start, ids)
            if start + tokens < len(ids):
                counts[request] = count
            else:
                found[request] = self._scored.done(request)
        return found


class _V2:
    """The V2 runner's scoring of prompts, which learns of each request when that gets its place."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._rows: dict[str, Rows] = {}
        self._scored = _Scored()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def add_request(self, request: str, place: int, params: Any) -> None:
        """Note what a request wants."""
        self._worker.add_request(request, place, params)
        self.remove_rows(request)
        if (rows := rows_of(params)) is not None:
            self._rows[request] = rows
            self._worker.uses_prompt_logprobs[place] = False

    def remove_request(self, request: str) -> None:
        """Forget a request."""
        self._worker.remove_request(request)
        self.remove_rows(request)

    def remove_rows(self, request: str) -> None:
        """Forget the rows of a request."""
        self._rows.pop(request, None)
        self._scored.forget(request)

    def compute_prompt_logprobs(
        self, logits_of: Logits, hidden: torch.Tensor, batch: Any, ids: torch.Tensor, computed: Any, lengths: Any
    ) -> dict[str, Any]:
        """As vLLM's, and the rows besides."""
        score = self._worker.compute_prompt_logprobs
        found: dict[str, Any] = score(logits_of, hidden, batch, ids, computed, lengths)
        for i, request in enumerate(batch.req_ids):
            if (rows := self._rows.get(request)) is None:
                continue
            first, last = int(batch.query_start_loc_np[i]), int(batch.query_start_loc_np[i + 1])
            start, place = int(batch.num_computed_prefill_tokens_np[i]), int(batch.idx_mapping_np[i])
            self._scored.add(request, rows, logits_of, hidden[first:last], start, ids[place])
            if start + last - first >= int(lengths[place]):
                found[request] = self._scored.done(request)
                del self._rows[request]
        return found
