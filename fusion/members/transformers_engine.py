"""Any causal language model of transformers as an engine: one packed forward pass a step, a cache of our own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, Answer, Capacity, Ids, LogProbs, NextTokens, Score
from fusion.members import self_check
from fusion.members.architecture import context_length, require_supported
from fusion.members.arena import Arena, ArenaFullError
from fusion.members.attention import IMPLEMENTATION, Packed, Row, runs
from fusion.members.best import best_tokens, normalisers
from fusion.members.kv_cache import KVCache
from fusion.members.loading import load_model, parse_device, parse_dtype, quiet
from fusion.members.packed_linear import pack_linear_layers
from fusion.members.schedule import share


@dataclass(slots=True)
class _Work:
    """An advance in progress: `done` of its tokens are cached; the rows of its answer gather here.

    `scored` are the indices of `append` after which `score` asks for something, without the final one.
    """

    append: list[int]
    score: Score
    scored: Sequence[int]
    done: int = 0
    ids: list[Ids] = field(default_factory=list)
    logprobs: list[LogProbs] = field(default_factory=list)
    appended: list[LogProbs] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return len(self.append) - self.done


@dataclass(slots=True)
class _Part:
    """What one sequence adds to a forward pass: the next `count` tokens of its work."""

    sequence: int
    work: _Work
    count: int

    @property
    def scored(self) -> Sequence[int]:
        """The indices of the work that are scored in this pass, the final one aside."""
        work = self.work
        first, end = (bisect_left(work.scored, at) for at in (work.done, work.done + self.count))
        return work.scored[first:end]

    @property
    def ends(self) -> bool:
        """Whether this pass runs the final token."""
        return self.count == self.work.remaining


class TransformersEngine:
    """Continuous batching over a causal language model; implements `fusion.members.engine.Engine`.

    A forward pass packs the tokens of all its rows into one line ([1, N]), so no layer computes padding;
    attention (`attention.packed_attention`) sees each row's cache through views. The cache is allocated at
    start and holds `cache_tokens` tokens over all sequences; rolling back sets a length.
    """

    def __init__(
        self,
        model: Any,
        *,
        cache_tokens: int = 16384,
        max_sequences: int = 64,
        max_context: int | None = None,
        chunk: int = 512,
        top_k: int = 320,
    ) -> None:
        """Take over a transformers model: replace its attention (on a CPU its linear layers too) and check it.

        Args:
            model: a PreTrainedModel with a language modelling head, on its device; this engine's alone from now.
            cache_tokens: tokens that all open sequences together can hold.
            max_sequences: sequences that can be open.
            max_context: tokens one sequence can hold; by default what the model was made for.
            chunk: prompt tokens run in one step: the longest that decoding waits for others' prompts.
            top_k: k of the answers.

        Raises ConfigError where the architecture cannot run this way.
        """
        require_supported(model)
        context = min(context_length(model, max_context), cache_tokens)
        self.capacity = Capacity(context, cache_tokens, max_sequences)
        self.device = str(model.device)
        self.known_ids: int = model.get_input_embeddings().num_embeddings
        self._model = model.eval()
        self._chunk = chunk
        self._top_k = top_k
        self._arena = Arena(cache_tokens)
        self._cache = KVCache(cache_tokens)
        self._cached: dict[int, int] = {}
        self._work: dict[int, _Work] = {}
        self._failed: dict[int, AdvanceFailed] = {}
        with quiet():
            model.set_attn_implementation("eager")
            long, short = self_check.samples(self.known_ids, context)
            expected = [self_check.reference(model, long), self_check.reference(model, short)]
            self.vocabulary_size: int = expected[0].shape[1]
            model.set_attn_implementation(IMPLEMENTATION)
        pack_linear_layers(model)
        self._top_k = min(top_k, self.vocabulary_size)
        self_check.check(self, model, long, short, expected)

    @classmethod
    def load(
        cls,
        source: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        revision: str | None = None,
        trust_remote_code: bool = False,
        cache_tokens: int = 16384,
        max_sequences: int = 64,
        max_context: int | None = None,
        chunk: int = 512,
        top_k: int = 320,
    ) -> TransformersEngine:
        """An engine over a checkpoint: a folder, or a repository of the Hugging Face hub.

        dtype (float32, bfloat16, float16) is that of weights and cache; device is cpu, cuda:N or mps. Code that
        comes with a checkpoint runs only with `trust_remote_code`. The rest is as in the constructor.

        Raises ConfigError, one sentence, for whatever keeps the checkpoint from being served.
        """
        model = load_model(
            source,
            dtype=parse_dtype(dtype),
            device=parse_device(device),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        try:
            return cls(
                model,
                cache_tokens=cache_tokens,
                max_sequences=max_sequences,
                max_context=max_context,
                chunk=chunk,
                top_k=top_k,
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{source}: a cache of {cache_tokens} tokens does not fit into the memory of {device}; "
                "lower cache_tokens."
            ) from error

    @torch.inference_mode()
    def add(self, advances: list[Advance]) -> None:
        """Queue work. What cannot be done is answered with `AdvanceFailed` by the next `step`."""
        for advance in advances:
            reason = self._refusal(advance) or self._admit(advance)
            if reason is not None:
                self.close([advance.sequence])
                self._failed[advance.sequence] = AdvanceFailed(advance.sequence, reason)

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""
        for sequence in sequences:
            self._cached.pop(sequence, None)
            self._work.pop(sequence, None)
            self._arena.release(sequence)
            self._failed.pop(sequence, None)

    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._work or self._failed)

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Run at most one forward pass and return what it finished."""
        answers: list[Answer] = []
        if self._work:
            counts = share([work.remaining for work in self._work.values()], self._chunk)
            parts = [
                _Part(sequence, work, count)
                for (sequence, work), count in zip(self._work.items(), counts, strict=True)
                if count
            ]
            parts, logits = self._forward(parts)
            self._collect(parts, logits)
            answers += self._finish(parts)
        answers += self._failed.values()
        self._failed = {}
        return answers

    def shutdown(self) -> None:
        """Free weights and caches; no other call may follow."""
        self.close(list(self._cached))
        del self._model, self._cache

    def _refusal(self, advance: Advance) -> str | None:
        """What is wrong with an advance in itself."""
        cached = self._cached.get(advance.sequence, 0)
        length = advance.keep + len(advance.append)
        if not advance.append:
            return "An advance must append at least one token."
        if not 0 <= advance.keep <= cached:
            return f"Cannot keep {advance.keep} tokens: {cached} are cached."
        if length > self.capacity.context:
            return f"{length} tokens are more than the context of {self.capacity.context}."
        if not 0 <= min(advance.append) <= max(advance.append) < self.known_ids:
            return f"Token ids must be at least 0 and below {self.known_ids}."
        return None

    def _admit(self, advance: Advance) -> str | None:
        """Reserve cache for an advance and queue it, or say why there is none."""
        sequence, length = advance.sequence, advance.keep + len(advance.append)
        if sequence not in self._cached and len(self._cached) >= self.capacity.sequences:
            return f"All {self.capacity.sequences} places for sequences are taken."
        try:
            moves = self._arena.reserve(sequence, length, advance.keep)
        except ArenaFullError:
            taken = f"{self._arena.used} of {self._arena.tokens}"
            return f"{length} tokens do not fit into the cache, where {taken} are taken."
        self._cache.apply(moves)
        self._cached[sequence] = advance.keep
        # A sequence that opens again waits at the end of the line.
        self._work.pop(sequence, None)
        self._work[sequence] = _Work(list(advance.append), advance.score, advance.scored)
        return None

    def _forward(self, parts: list[_Part]) -> tuple[list[_Part], torch.Tensor | None]:
        """Run the parts; returns them in the order they were packed, and the logits [rows, V] float32.

        Rows follow that order, for each part its scored tokens and then its final one; None where there are none.
        """
        rows = []
        for part in parts:
            extent = self._arena.extents[part.sequence]
            rows.append(Row(part.count, self._cached[part.sequence] + part.count, extent.start, extent.size))
        order, packed_runs = runs(rows)
        parts = [parts[i] for i in order]
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        scored: list[int] = []
        for part, row in zip(parts, (rows[i] for i in order), strict=True):
            done, first = part.work.done, row.length - row.count
            ids += part.work.append[done : done + part.count]
            positions += range(first, row.length)
            slots += range(row.start + first, row.start + row.length)
            offset = len(ids) - part.count - done
            scored += [offset + index for index in part.scored]
            if part.ends:
                scored.append(len(ids) - 1)
        # One tensor, one transfer. Something is always scored: a head of zero rows is not worth a special case.
        inputs = torch.tensor([ids, positions, slots], dtype=torch.long).to(self._model.device)
        keep = torch.tensor(scored or [0], dtype=torch.long, device=inputs.device)
        logits = self._model(
            input_ids=inputs[:1],
            position_ids=inputs[1:2],
            use_cache=False,
            logits_to_keep=keep,
            packed=Packed(self._cache, inputs[2], packed_runs),
        ).logits[0]
        return parts, logits.float() if scored else None

    def _collect(self, parts: list[_Part], logits: torch.Tensor | None) -> None:
        """Note the forward pass in the state: lengths, and each part's rows of the answer."""
        listed: list[int] = []
        spans, row = [], 0  # of each part: its first row, its final token's, the one after its last
        for part in parts:
            middle = row + len(part.scored)
            end = middle + part.ends
            spans.append((row, middle, end))
            listed += range(row if part.work.score == "all" else middle, end)
            row = end
        if logits is not None:
            totals, ids, logprobs = self._read(logits, listed)
        for part, (first, middle, end) in zip(parts, spans, strict=True):
            work, sequence = part.work, part.sequence
            if first < end and logits is not None:
                if np.isnan(totals[first:end]).any():
                    self._fail(sequence, "The model's output is not a number.")
                    continue
                mine = slice(*np.searchsorted(listed, (first, end)))
                work.ids.append(ids[mine])
                work.logprobs.append(logprobs[mine])
                if first < middle:
                    following = torch.tensor([work.append[i + 1] for i in part.scored], device=logits.device)
                    given = logits[first:middle].gather(1, following[:, None])[:, 0].cpu().numpy()
                    work.appended.append(given - totals[first:middle])
            work.done += part.count
            self._cached[sequence] += part.count

    def _read(self, logits: torch.Tensor, listed: list[int]) -> tuple[LogProbs, Ids, LogProbs]:
        """The normalisers [R] of all rows of logits [R, V], and the best tokens [n, k] of those listed."""
        if len(listed) == len(logits):
            ids, logprobs, totals = best_tokens(logits, self._top_k)
        else:
            totals = normalisers(logits)
            ids, logprobs, _ = best_tokens(logits[listed], self._top_k)
        return totals, ids, logprobs

    def _fail(self, sequence: int, reason: str) -> None:
        """Close a sequence whose cache holds NaN, which must not stay for the next owner of its place."""
        extent = self._arena.extents[sequence]
        self._cache.erase(extent.start, extent.size)
        self.close([sequence])
        self._failed[sequence] = AdvanceFailed(sequence, reason)

    def _finish(self, parts: list[_Part]) -> list[Answer]:
        """The answers of the parts whose work is done."""
        answers: list[Answer] = []
        for part in parts:
            work = part.work
            if work.remaining or part.sequence not in self._work:
                continue
            del self._work[part.sequence]
            appended = None
            if work.score != "last":
                appended = np.concatenate([*work.appended, np.empty(0, np.float32)])
            answers.append(
                NextTokens(part.sequence, np.concatenate(work.ids), np.concatenate(work.logprobs), appended)
            )
        return answers
