"""Any causal language model of transformers as an engine: shared forward passes, a cache of our own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, Answer, Capacity, Ids, LogProbs, Look, Task
from fusion.members.adapters import read_adapter
from fusion.members.check import CheckFailedError
from fusion.members.checkpoint import load_model, quiet
from fusion.members.devices import parse_device, parse_dtype
from fusion.members.engine import DECODING_TOKENS
from fusion.members.refusal import NO_ROW, Limits
from fusion.members.topk import best_tokens, normalisers
from fusion.members.transformers.architecture import context_length, require_decoder, unsupported, why_not_packed
from fusion.members.transformers.cache.arena import Arena, ArenaFullError, Move
from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.check import PlainPass
from fusion.members.transformers.forward.base import Forward, Part
from fusion.members.transformers.forward.choose import paths
from fusion.members.transformers.forward.packed import PackedForward
from fusion.members.transformers.linear import pack_linear_layers
from fusion.members.transformers.lora import Adapters
from fusion.members.transformers.schedule import share
from fusion.members.transformers.work import KEPT_ROWS, KeptRows, Work, shared_beginning
from fusion.options import EngineOptions
from fusion.teams import release_team

log = logging.getLogger(__name__)


class TransformersEngine:
    """Continuous batching over a causal language model; implements `fusion.members.engine.Engine`.

    How tokens get through the model is decided at start (`paths`): the fastest path that passes the self check.
    The cache is allocated at start and holds `cache_tokens` tokens over all sequences.

    Attributes:
        path: the path that was chosen.
    """

    broken: str | None = None  # it has no part of its own that could be lost

    def __init__(
        self,
        model: Any,
        *,
        cache_tokens: int = EngineOptions.cache_tokens,
        max_sequences: int = EngineOptions.max_sequences,
        max_context: int | None = None,
        prefill_chunk: int = EngineOptions.prefill_chunk,
        candidates: int = EngineOptions.candidates,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        """Take over a transformers model: choose a path, which may replace its attention and linear layers.

        Args:
            model: a PreTrainedModel with a language modelling head, on its device; this engine's alone from now.
            cache_tokens: tokens that all open sequences together can hold.
            max_sequences: sequences that can be open.
            max_context: tokens one sequence can hold; by default what the model was made for, or all of the cache.
            prefill_chunk: prompt tokens run in one step: the longest that decoding waits for others' prompts.
            candidates: k of the answers.
            adapters: folders of LoRA adapters by name, which sequences may run with.

        Raises ConfigError where no path computes what the model does, and for an adapter that is not this model's.
        """
        require_decoder(model)
        context = min(context_length(model, max_context) or cache_tokens, cache_tokens)
        self.capacity = Capacity(context, cache_tokens, max_sequences, rows=KEPT_ROWS)
        self.device = str(model.device)
        # Some have an embedding for padding that is no token, or rows that only fill a block.
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self.known_ids: int = min(model.get_input_embeddings().num_embeddings, vocabulary)
        self._model = model.eval()
        self._prefill_chunk = prefill_chunk
        self._candidates = candidates
        self._arena = Arena(cache_tokens)
        self._cache = KVCache(cache_tokens)
        self._cached: dict[int, int] = {}
        self._work: dict[int, Work] = {}
        self._failed: dict[int, AdvanceFailed] = {}
        self._looks: list[Look] = []
        self._rows: dict[int, KeptRows] = {}  # what can be looked at again
        self._adapter: dict[int, str] = {}  # by open sequence
        with quiet():
            plain = PlainPass(model, self.known_ids, context)
            self.vocabulary_size: int = plain.vocabulary_size
            self._limits = Limits(self.capacity, self.known_ids, self.vocabulary_size, adapters or ())
            self._candidates = min(candidates, self.vocabulary_size)
            self._forward = self._choose(plain)
        self.path = self._forward.path
        if adapters:
            self._adapt(adapters)

    def _adapt(self, adapters: Mapping[str, str]) -> None:
        if not self._forward.in_cache:
            raise ConfigError(
                f"{type(self._model).__name__} runs {self._forward.path}, where adapters are not built; leave "
                "them out."
            )
        self._forward.adapters = Adapters(self._model, {n: read_adapter(folder) for n, folder in adapters.items()})

    @property
    def adapters_nbytes(self) -> int:
        """Bytes of the adapters' factors."""
        return 0 if self._forward.adapters is None else self._forward.adapters.nbytes

    def _choose(self, plain: PlainPass) -> Forward:
        """The first path that passes. Raises ConfigError if none does."""
        model, name = self._model, type(self._model).__name__
        reasons = [why_not_packed(model)]
        for make in paths(model):
            self._cache = KVCache(self.capacity.cache_tokens)
            self._forward = make(self._cache)
            try:
                plain.require_same(self)
                if isinstance(self._forward, PackedForward) and pack_linear_layers(model):
                    plain.require_same(self)
            except CheckFailedError as error:
                reasons.append(f"{self._forward.path}, {error}")
                continue
            why = "; ".join(reason for reason in reasons if reason)
            log.info("%s runs %s%s", name, self._forward.path, f": {why}" if why else "")
            return self._forward
        raise unsupported(model, "; ".join(reason for reason in reasons if reason))

    @classmethod
    def load(
        cls,
        source: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> TransformersEngine:
        """An engine over a checkpoint: a folder, or a repository of the Hugging Face hub.

        dtype (float32, bfloat16, float16) is that of weights and cache; device is cpu, cuda:N or mps. Code that
        comes with a checkpoint runs only with `trust_remote_code`. `options` are those of the constructor.

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
            engine = cls(model, **options)
            release_team()  # of this thread: another one will step the engine
            return engine
        except torch.OutOfMemoryError as error:
            tokens = options.get("cache_tokens", EngineOptions.cache_tokens)
            raise ConfigError(
                f"{source}: a cache of {tokens} tokens does not fit into the memory of {device}; "
                "lower cache_tokens."
            ) from error

    @torch.inference_mode()
    def add(self, work: list[Task]) -> None:
        """Queue work. An invalid or impossible advance is answered with `AdvanceFailed` by the next `step`."""
        for advance in work:
            if isinstance(advance, Look):
                self._looks.append(advance)
                continue
            assert isinstance(advance, Advance), "this engine has no generation loop"
            cached = self._cached.get(advance.sequence)
            reason = self._limits.refusal(advance, cached=cached, open=len(self._cached)) or self._admit(advance)
            if reason is not None:
                self.close([advance.sequence])
                self._failed[advance.sequence] = AdvanceFailed(advance.sequence, reason)

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""
        for sequence in sequences:
            self._cached.pop(sequence, None)
            if self._work.pop(sequence, None) is not None and (extent := self._arena.extents.get(sequence)):
                self._cache.erase(extent.start, extent.size)  # nobody looked for NaN in what was read so far
            self._rows.pop(sequence, None)
            self._adapter.pop(sequence, None)
            self._follow_nobody(sequence)
            self._forward.forget(sequence)
            self._arena.release(sequence)
            self._failed.pop(sequence, None)

    def has_work(self) -> bool:
        """Return whether `step` has anything to do."""
        return bool(self._work or self._failed or self._looks)

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Run the next forward pass for queued work and return the answers it finished.

        Second looks are answered at once, without a pass: rounds wait for them.
        """
        looks, self._looks = self._looks, []
        answers: list[Answer] = [self._look(look) for look in looks if look.sequence in self._cached]
        if self._work and not answers:
            counts = share([self._most(sequence) for sequence in self._work], self._prefill_chunk)
            parts = [
                self._part(sequence, count) for sequence, count in zip(self._work, counts, strict=True) if count
            ]
            order, logits = self._forward.run(parts)
            parts = [parts[i] for i in order]
            self._collect(parts, logits)
            answers += self._finish(parts)
        answers += self._failed.values()
        self._failed = {}
        return answers

    def shutdown(self) -> None:
        """Free weights and caches; no other call may follow."""
        self.close(list(self._cached))
        del self._model, self._cache, self._forward

    def _admit(self, advance: Advance) -> str | None:
        """Reserve cache for an advance and queue it, or say why there is none."""
        sequence = advance.sequence
        try:
            moves = self._arena.reserve(sequence, advance.length, advance.keep)
        except ArenaFullError:
            taken = f"{self._arena.used} of {self._arena.tokens}"
            return f"{advance.length} tokens do not fit into the cache, where {taken} are taken."
        self._cache.apply(moves)
        self._forward.rollback(sequence, advance.keep)
        self._cached[sequence] = advance.keep
        self._rows.pop(sequence, None)
        self._follow_nobody(sequence)
        if advance.keep == 0:
            self._adapter.pop(sequence, None)
            if advance.adapter is not None:
                self._adapter[sequence] = advance.adapter
        # A sequence that opens again waits at the end of the line.
        self._work.pop(sequence, None)
        self._work[sequence] = work = Work(advance)
        if advance.keep == 0 and self._forward.in_cache:
            mates = {
                other: one.append
                for other, one in self._work.items()
                if other != sequence
                and not one.advance.keep
                and one.after is None
                and self._adapter.get(other) == self._adapter.get(sequence)
            }
            work.after = shared_beginning(work, mates)
        return None

    def _look(self, look: Look) -> Answer:
        rows, reason = self._rows.get(look.sequence), self._limits.unknown(look.ids)
        if rows is not None and -len(rows.totals) <= look.row < len(rows.totals) and reason is None:
            return rows.look(look)
        self.close([look.sequence])
        return AdvanceFailed(look.sequence, reason or NO_ROW)

    def _follow_nobody(self, leader: int) -> None:
        """Let those that wait for a beginning that this sequence reads for them read it themselves."""
        for work in self._work.values():
            if work.after is not None and work.after[0] == leader:
                work.after = None

    def _hand_on(self, leader: int) -> None:
        """Copy a beginning that has been read to those that wait for it."""
        for sequence, work in self._work.items():
            if work.after is not None and work.after[0] == leader and work.after[1] <= self._cached[leader]:
                length = work.after[1]
                extents = self._arena.extents
                self._cache.apply([Move(extents[leader].start, extents[sequence].start, length)])
                self._cached[sequence] = work.done = length
                work.after = None

    def _most(self, sequence: int) -> int:
        """The tokens of a sequence's work that the next pass could run."""
        if self._work[sequence].after is not None:
            return 0
        remaining = self._work[sequence].remaining
        return (
            remaining if self._forward.continues or not self._cached[sequence] else min(remaining, DECODING_TOKENS)
        )

    def _part(self, sequence: int, count: int) -> Part:
        """The next `count` tokens of a sequence's work."""
        work, extent = self._work[sequence], self._arena.extents[sequence]
        ids, scored = work.next(count)
        adapter = self._adapter.get(sequence)
        return Part(sequence, ids, self._cached[sequence], scored, extent.start, extent.size, adapter)

    def _collect(self, parts: list[Part], logits: torch.Tensor | None) -> None:
        """Note the forward pass in the state: lengths, and each part's rows of the answer."""
        listed: list[int] = []
        allowed: dict[int, NDArray[np.uint8]] = {}
        spans, row = [], 0  # of each part: its first row, its final token's, the one after its last
        for part in parts:
            work, end = self._work[part.sequence], row + len(part.scored)
            middle = end - (len(part.ids) == work.remaining)
            spans.append((row, middle, end))
            mine, bits = range(row if work.advance.score == "all" else middle, end), work.advance.allowed
            if bits is not None and bits.ndim > 1:
                begun = sum(map(len, work.ids))
                allowed |= {len(listed) + i: bits[begun + i] for i in range(len(mine))}
            elif bits is not None and middle < end:
                allowed[len(listed) + len(mine) - 1] = bits
            listed += mine
            row = end
        if logits is not None:
            totals, best, logprobs = self._read(logits, listed, allowed)
        for part, (first, middle, end) in zip(parts, spans, strict=True):
            work, sequence = self._work[part.sequence], part.sequence
            if first < end and logits is not None:
                if np.isnan(totals[first:end]).any():
                    self._fail(sequence, "The model's output is not a number.")
                    continue
                places = slice(*np.searchsorted(listed, (first, end)))
                work.ids.append(best[places])
                work.logprobs.append(logprobs[places])
                if work.advance.kept:
                    work.keep(logits[first:end], totals[first:end])
                if middle < end and work.advance.also:
                    named = torch.as_tensor(list(work.advance.also), device=logits.device)
                    work.named = logits[middle:end, named].cpu().numpy() - totals[middle:end, None]
                if first < middle:
                    scored = part.scored[: middle - first]
                    following = torch.tensor(
                        [work.append[work.done + i + 1] for i in scored], device=logits.device
                    )
                    given = logits[first:middle].gather(1, following[:, None])[:, 0].cpu().numpy()
                    work.appended.append(given - totals[first:middle])
                    if (each := work.advance.each) is not None:
                        begun = sum(map(len, work.given))
                        ids = torch.as_tensor(each[begun : begun + middle - first], device=logits.device)
                        wanted = logits[first:middle].gather(1, ids.long()).cpu().numpy()
                        work.given.append(wanted - totals[first:middle, None])
            work.done += len(part.ids)
            self._cached[sequence] += len(part.ids)
            if not work.advance.keep:
                self._hand_on(sequence)

    def _read(
        self, logits: torch.Tensor, listed: list[int], allowed: Mapping[int, NDArray[np.uint8]]
    ) -> tuple[LogProbs, Ids, LogProbs]:
        """The normalisers [R] of all rows of logits [R, V], and the best tokens [n, k] of those listed.

        `allowed` limits some of these, by their place in `listed`.
        """
        if len(listed) == len(logits):
            ids, logprobs, totals = best_tokens(logits, self._candidates, allowed)
        else:
            totals = normalisers(logits)
            ids, logprobs, _ = best_tokens(logits[listed], self._candidates, allowed)
        return totals, ids, logprobs

    def _fail(self, sequence: int, reason: str) -> None:
        """Close a sequence whose cache holds NaN, which must not stay for the next owner of its place."""
        extent = self._arena.extents[sequence]
        self._cache.erase(extent.start, extent.size)
        self.close([sequence])
        self._failed[sequence] = AdvanceFailed(sequence, reason)

    def _finish(self, parts: list[Part]) -> list[Answer]:
        """The answers of the parts whose work is done."""
        answers: list[Answer] = []
        for part in parts:
            work = self._work.get(part.sequence)
            if work is not None and not work.remaining:
                del self._work[part.sequence]
                if (rows := work.kept_rows()) is not None:
                    self._rows[part.sequence] = rows
                answers.append(work.answer(part.sequence))
        return answers
