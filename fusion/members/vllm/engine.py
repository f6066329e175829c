"""VllmEngine: any model of vLLM as an engine; a sequence is a resumable request of an engine core in this process.

vLLM brings continuous batching, paged caches, prefix caching, parallelism, quantisation and adapters. What it
does not bring, taking tokens back and scoring what is appended, is in `fusion.members.vllm.core`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.errors import ConfigError
from fusion.core import (
    MOST_BIASED,
    Advance,
    AdvanceFailed,
    Answer,
    Capacity,
    Generate,
    Generated,
    Look,
    Looked,
    Score,
    Task,
)
from fusion.members.check import CheckFailedError, StartUpCheck, of_itself
from fusion.members.refusal import NO_ROW, Limits
from fusion.members.vllm.hints import explained
from fusion.members.vllm.naming import EXTRA
from fusion.members.vllm.options import Options, configured, lora_requests, quiet, sized_by_tokens
from fusion.members.vllm.outputs import generated, has_rows, next_tokens
from fusion.members.vllm.sampling import generation

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput

    from fusion.members.vllm.core import Core

TOLERANCE = 0.5
"""Largest difference of a token's log-probability, in nats, between a text at once and in parts.

Half precision and quantised caches give a tenth; a wrong position or a stale row gives several."""


@dataclass(slots=True)
class _Open:
    """A sequence that holds a place.

    Attributes:
        request: its id in vLLM; a new one each time it is reopened.
        tokens: what is cached, and what is about to be; nothing of what vLLM decodes by itself.
        blocks: how much of the cache it may take, the most it ever needed.
        work: the task in progress, None between answers.
        rest: the part of it that is to be scored, while the part before runs on its own.
        adapter: the one that it runs with.
        kept: whether vLLM's worker keeps a row of it.
        reused: tokens that the prefix cache held when its request was opened.
    """

    request: str
    tokens: list[int] = field(default_factory=list)
    blocks: int = 0
    work: Advance | Generate | None = None
    rest: list[int] = field(default_factory=list)
    adapter: str | None = None
    kept: bool = False
    reused: int = 0


class VllmEngine:
    """Continuous batching by vLLM; implements `fusion.members.engine.Engine`.

    Every sequence has its blocks reserved before it is queued, so vLLM never has to preempt: sessions that wait
    for their next token hold their blocks, and two that both needed one more would wait for ever.
    """

    def __init__(self, core: Core, *, device: str, candidates: int, lora: Mapping[str, Any] | None = None) -> None:
        """Take over a running core. `candidates` is the k of the answers, `lora` vLLM's requests of adapters."""
        from vllm.sampling_params import SamplingParams

        self.vocabulary_size = core.vocabulary_size
        self.device = device
        cache_tokens = core.blocks * core.block
        places = core.config.scheduler_config.max_num_seqs
        context = min(core.context, cache_tokens)
        self.capacity = Capacity(context, cache_tokens, places, core.block, generates=True, rows=1)
        self._core = core
        self._lora = dict(lora or {})
        self._limits = Limits(self.capacity, self.vocabulary_size, self.vocabulary_size, self._lora)
        self._looks: list[Look] = []
        # With adapters, vLLM on a CPU fails where two prompts are scored in one step: here one at a time is.
        self._one_scored = bool(self._lora) and device == "cpu"
        self._scoring: int | None = None
        self._held: list[Advance] = []
        self._candidates = min(candidates, core.vocabulary_size)
        # One object each for all requests: making one costs more than all else about an advance.
        told = {
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": self._candidates,
            "detokenize": False,
            "extra_args": {EXTRA: {"k": self._candidates}},
        }
        self._arguments: dict[Score, dict[str, Any]] = {
            "last": told,
            "appended": {**told, "prompt_logprobs": 0},
            "all": {**told, "prompt_logprobs": self._candidates},
        }
        self._sampling = {score: SamplingParams(**arguments) for score, arguments in self._arguments.items()}
        self._open: dict[int, _Open] = {}
        self._by_request: dict[str, int] = {}
        self._failed: dict[int, AdvanceFailed] = {}
        self._working = 0
        self._opened = 0
        self._taken = 0

    @property
    def broken(self) -> str | None:
        """The reason why no step will succeed any more, as a part of a sentence; None while the engine works."""
        return "a worker process of vLLM's died" if self._core.failed() else None

    @classmethod
    def load(cls, source: str, **options: Any) -> VllmEngine:
        """An engine over a checkpoint that vLLM can run; `options` are the fields of `Options`.

        Raises ConfigError, one sentence, for whatever keeps the checkpoint from being served.
        """
        chosen = Options(source, **options)
        config = configured(chosen)
        from fusion.members.vllm.core import Core

        with explained(source), quiet():
            core = Core(config, cache_tokens=chosen.cache_tokens if sized_by_tokens(chosen) else None)
        lora = lora_requests(chosen.adapters)
        # Engines take turns on what has one name: torch's own, and the first of its kind is what vLLM takes.
        device = "cpu" if chosen.device == "cpu" else f"{chosen.device.partition(':')[0]}:0"
        engine = cls(core, device=device, candidates=chosen.candidates, lora=lora)
        try:
            with explained(source):
                engine.check(source)
        except BaseException:
            engine.shutdown()
            raise
        return engine

    def check(self, source: str) -> None:
        """The start-up check. Raises ConfigError where a model runner is not what this was written for."""
        room = min(self.capacity.context, self.capacity.cache_tokens // 2 - self.capacity.block)
        check = StartUpCheck(self.vocabulary_size, room)
        try:
            # One text at a time: with an adapter, vLLM on a CPU fails where two prompts are scored in one step.
            worst = check.run(self, of_itself(self, check), together=False)
        except CheckFailedError as error:
            raise ConfigError(f"The start-up check failed: {error}") from error
        if not worst <= TOLERANCE:
            raise ConfigError(
                f"{source}: a text in parts differs by {worst:.2g} nats from the same at once on this vLLM; leave "
                "out what engine_args change of its arithmetic (kv_cache_dtype, quantization), or use the "
                "transformers engine."
            )

    def add(self, work: list[Task]) -> None:
        """Queue work. An invalid or impossible task is answered with `AdvanceFailed` by the next `step`."""
        for one in work:
            if isinstance(one, Look):
                self._looks.append(one)
                continue
            if self._one_scored and isinstance(one, Advance) and one.scored:
                if self._scoring is not None:
                    self._held.append(one)
                    continue
                self._scoring = one.sequence
            there = self._open.get(one.sequence)
            cached = None if there is None else len(there.tokens)
            reason = self._limits.refusal(one, cached=cached, open=len(self._open)) or self._admit(one)
            if reason is not None:
                self.close([one.sequence])
                self._failed[one.sequence] = AdvanceFailed(one.sequence, reason)

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""
        closed = set(sequences)
        self._held = [advance for advance in self._held if advance.sequence not in closed]
        if self._scoring in closed:
            self._scoring = None
        for number in sequences:
            self._failed.pop(number, None)
            if (sequence := self._open.pop(number, None)) is not None:
                self._end(sequence)
                self._taken -= sequence.blocks
                if sequence.kept:
                    self._core.drop_rows([number])

    def has_work(self) -> bool:
        """Return whether `step` has anything to do."""
        return bool(self._working or self._failed or self._looks or self._held)

    def step(self) -> list[Answer]:
        """Run at most one forward pass and return what it finished, which may be nothing.

        Second looks are answered at once, without a pass: rounds wait for them.
        """
        looks, self._looks = self._looks, []
        answers: list[Answer] = self._look([look for look in looks if look.sequence in self._open])
        if self._working and not answers:
            for output in self._core_step():
                number = self._by_request.get(output.request_id)
                if number is not None:
                    sequence = self._open[number]
                    sequence.reused = max(sequence.reused, self._core.reused(output))
                    if sequence.rest:
                        self._go_on(sequence)
                    elif isinstance(sequence.work, Generate):
                        answers.append(self._generated(number, sequence, sequence.work, output))
                    else:
                        answers.append(self._answer(number, sequence, output))
        answers += self._failed.values()
        self._failed = {}
        if self._scoring in {answer.sequence for answer in answers}:
            self._scoring = None
        if self._scoring is None and self._held:
            self.add([self._held.pop(0)])
        return answers

    def _core_step(self) -> list[EngineCoreOutput]:
        """A step of vLLM's, which notes what its cache will hold before it computes it: a step that fails leaves
        blocks that nobody wrote."""
        try:
            return self._core.step()
        except BaseException:
            for sequence in self._open.values():
                if sequence.work is not None:
                    self._core.forget(sequence.request)
            raise

    def shutdown(self) -> None:
        """Free weights and caches; no other call may follow."""
        self._core.shutdown()

    def _admit(self, work: Advance | Generate) -> str | None:
        """Set blocks aside for work and queue it, or say why there are none."""
        if isinstance(work, Generate):
            sampling = generation(work, self.vocabulary_size)
            # The V2 runner has room for no more, and would fail a whole step.
            if (biased := len(sampling.logit_bias or ())) > MOST_BIASED:
                return f"logit_bias and the ids that end an answer are {biased}; vLLM takes {MOST_BIASED}."
        needed = -(-work.length // self.capacity.block)
        sequence = self._open.get(work.sequence)
        extra = max(0, needed - (sequence.blocks if sequence is not None else 0))
        if self._taken + extra > self._core.blocks:
            taken = f"{self._taken * self.capacity.block} of {self.capacity.cache_tokens}"
            return f"{work.length} tokens do not fit into the cache, where {taken} are taken."
        if sequence is None:
            sequence = self._open[work.sequence] = _Open("")
        sequence.blocks += extra
        self._taken += extra
        sequence.kept = sequence.kept or (isinstance(work, Advance) and work.kept)
        if isinstance(work, Generate):
            sequence.tokens = []
            self._begin(work, sequence, work.ids, sampling)
        else:
            self._queue(work, sequence)
        return None

    def _begin(self, work: Advance | Generate, sequence: _Open, ids: list[int], sampling: SamplingParams) -> None:
        """Open a request of vLLM; what is still cached of an older one is found by its content."""
        self._end(sequence)
        self._opened += 1
        sequence.request, sequence.work = f"{work.sequence}-{self._opened}", work
        self._by_request[sequence.request] = work.sequence
        self._working += 1
        if isinstance(work, Generate) or work.keep == 0:
            sequence.adapter = work.adapter
        lora = None if sequence.adapter is None else self._lora[sequence.adapter]
        self._core.add(sequence.request, list(ids), sampling, session=isinstance(work, Advance), lora=lora)

    def _queue(self, advance: Advance, sequence: _Open) -> None:
        """Hand an advance to vLLM, which keeps the lists it is given.

        vLLM scores all of a part or nothing of it, and looks nothing up in its cache of prefixes for one that
        it scores. What comes before the first scored position is a part of its own where it is worth a block.
        """
        in_place = (
            advance.keep > 0 and sequence.work is None and self._core.truncate(sequence.request, advance.keep)
        )
        del sequence.tokens[advance.keep :]
        read = len(sequence.tokens) if in_place else 0
        sequence.tokens += advance.append
        scored, score, end = advance.scored, advance.score if advance.scored else "last", len(sequence.tokens)
        if scored and advance.keep + scored[0] - read >= self.capacity.block:
            end, score = advance.keep + scored[0], "last"
        part, sequence.rest = sequence.tokens[read:end], sequence.tokens[end:]
        del sequence.tokens[end:]
        if in_place:
            sequence.work = advance
            self._working += 1
            self._core.extend(sequence.request, part, self._parameters(advance, score))
        else:
            self._begin(advance, sequence, part, self._parameters(advance, score))

    def _parameters(self, advance: Advance, score: Score) -> SamplingParams:
        """Return vLLM's sampling parameters for a part of an advance."""
        if not advance.also and advance.allowed is None and advance.each is None and not advance.kept:
            return self._sampling[score]
        from vllm.sampling_params import SamplingParams

        allowed = None if advance.allowed is None else np.atleast_2d(advance.allowed)[-1].tobytes()
        extra = {"also": list(advance.also), "allowed": allowed, "k": self._candidates}
        extra["kept"] = advance.sequence if advance.kept else None
        if score != "last" and has_rows(advance):
            masks = advance.allowed if advance.allowed is not None and advance.allowed.ndim > 1 else None
            extra["rows"] = {
                "at": [advance.keep + index for index in advance.scored],
                "allowed": None if masks is None else masks[:-1].tobytes(),
                "each": None if advance.each is None else advance.each.tolist(),
                "k": self._candidates if score == "all" else 0,
            }
        return SamplingParams(**{**self._arguments[score], "extra_args": {EXTRA: extra}})

    def _look(self, looks: list[Look]) -> list[Answer]:
        """Second looks at the last rows of sequences, which vLLM's worker keeps."""
        reasons = {look.sequence: self._limits.unknown(look.ids) for look in looks}
        # Only the final row of an answer is kept.
        asked = [look for look in looks if look.row == -1 and reasons[look.sequence] is None]
        rows = self._core.look([(look.sequence, list(look.ids)) for look in asked]) if asked else []
        answers: dict[int, Answer] = {
            look.sequence: Looked(look.sequence, row)
            for look, row in zip(asked, rows, strict=True)
            if row is not None
        }
        failed = [sequence for sequence in reasons if sequence not in answers]
        self.close(failed)
        answers |= {sequence: AdvanceFailed(sequence, reasons[sequence] or NO_ROW) for sequence in failed}
        return list(answers.values())

    def _go_on(self, sequence: _Open) -> None:
        """The part before the first scored position is cached; score the rest."""
        assert isinstance(sequence.work, Advance)
        sequence.tokens += sequence.rest
        parameters = self._parameters(sequence.work, sequence.work.score)
        self._core.extend(sequence.request, sequence.rest, parameters)
        sequence.rest = []

    def _end(self, sequence: _Open) -> None:
        """Take a sequence's request, if it has one, out of vLLM."""
        if self._by_request.pop(sequence.request, None) is not None:
            self._core.abort([sequence.request])
        self._done(sequence)

    def _generated(self, number: int, sequence: _Open, work: Generate, output: EngineCoreOutput) -> Generated:
        """The tokens that vLLM's own loop has decoded."""
        if output.finish_reason is not None:  # vLLM has forgotten the request
            del self._by_request[sequence.request]
            self._done(sequence)
        return generated(number, work, output, sequence.reused)

    def _answer(self, number: int, sequence: _Open, output: EngineCoreOutput) -> Answer:
        """The answer to an advance; where it is not a number its cache must not be found again."""
        advance = sequence.work
        assert isinstance(advance, Advance)
        self._done(sequence)
        answer = next_tokens(number, advance, output, self._candidates, sequence.reused)
        if answer is None:
            self._core.forget(sequence.request)
            self.close([number])
            return AdvanceFailed(number, "The model's output is not a number.")
        return answer

    def _done(self, sequence: _Open) -> None:
        """Note that a sequence waits for its next work."""
        if sequence.work is not None:
            sequence.work = None
            self._working -= 1
