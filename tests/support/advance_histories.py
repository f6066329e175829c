"""A state machine of random advances, rollbacks and scores, compared with plain forward passes."""

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from fusion.core import Advance, AdvanceFailed
from fusion.members.transformers.engine import TransformersEngine
from tests.support.random_examples import at_least
from tests.support.random_models import (
    EXACT,
    VOCABULARY,
    build,
    error_of,
    plain_logprobs,
)


class AnyHistory(RuleBasedStateMachine):
    """Any order of advances, rollbacks, failures and closes leaves every sequence with its own text."""

    sequences = Bundle("sequences")
    model = build("mistral")
    compared = 0  # answers, over all histories

    def __init__(self):
        super().__init__()
        self.engine = TransformersEngine(
            copy.deepcopy(self.model),
            cache_tokens=160,
            max_sequences=5,
            max_context=120,
            prefill_chunk=20,
            candidates=VOCABULARY,
        )
        self.texts: dict[int, list[int]] = {}
        self.queued: dict[int, Advance] = {}
        self.opened = 0

    def submit(self, sequence, keep, append, score):
        advance = Advance(sequence, keep, append, score)
        self.engine.add([advance])
        self.queued[sequence] = advance

    @rule(target=sequences, append=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=90))
    def open(self, append):
        self.opened += 1
        self.submit(self.opened, 0, append, "last")
        return self.opened

    @rule(
        sequence=sequences,
        back=st.integers(0, 30),
        append=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30),
        score=st.sampled_from(("last", "appended", "all")),
    )
    def advance(self, sequence, back, append, score):
        if sequence in self.texts and sequence not in self.queued:
            self.submit(sequence, max(0, len(self.texts[sequence]) - back), append, score)

    @rule(sequence=consumes(sequences))
    def close(self, sequence):
        self.engine.close([sequence])
        self.texts.pop(sequence, None)
        self.queued.pop(sequence, None)

    @rule(steps=st.integers(1, 6))
    def step(self, steps):
        for _ in range(steps):
            if self.engine.has_work():
                self.take(self.engine.step())

    def take(self, answers):
        for answer in answers:
            advance = self.queued.pop(answer.sequence)
            text = self.texts.pop(answer.sequence, [])[: advance.keep] + list(advance.append)
            if isinstance(answer, AdvanceFailed):
                assert answer.reason.endswith(("taken.", "more than the context of 120."))
                continue
            self.texts[answer.sequence] = text
            first = advance.keep if advance.score == "all" else len(text) - 1
            assert error_of(answer, plain_logprobs(self.model, text)[first:]) < EXACT
            AnyHistory.compared += 1

    @invariant()
    def cache_is_bounded(self):
        assert self.engine._arena.used <= 160
        assert sum(extent.size for extent in self.engine._arena.extents.values()) <= 160

    def teardown(self):
        for _ in range(60):
            if self.engine.has_work():
                self.take(self.engine.step())
        assert not self.engine.has_work()
        assert not self.queued


def any_history_agrees(history: type[AnyHistory], *, examples: int, steps: int, compared: int) -> None:
    """Run so many histories, and make sure that so many of their answers were compared."""
    AnyHistory.compared = 0
    every = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(history, settings=every)
    assert AnyHistory.compared >= at_least(compared)
