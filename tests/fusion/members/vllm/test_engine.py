"""The vLLM engine computes what transformers computes, whatever is kept, appended, shared or rolled back."""

import json
import random
import time

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig

from fusion.core import Advance, AdvanceFailed, Capacity, Generate, NextTokens
from fusion.options import SamplingParams
from tests.support.random_examples import at_least
from tests.support.random_models import VOCABULARY, build, error_of, plain_logprobs, run

pytest.importorskip("vllm")

from fusion.members.vllm.core import MEMORY_BOUND_TOKENS
from fusion.members.vllm.engine import VllmEngine
from tests.support.random_models import SHAPE

EXACT = 1e-4
# Attention to everything, and a window that moves on over more than one block of 32.
CONFIGS = {"full": LlamaConfig(**SHAPE), "window": MistralConfig(**SHAPE, sliding_window=40)}
EAGER = {"enforce_eager": True}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    model = build(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    engine = VllmEngine.load(
        str(folder),
        dtype="float32",
        cache_tokens=640,
        max_sequences=6,
        max_context=200,
        prefill_chunk=40,
        candidates=VOCABULARY,
        engine_args=EAGER,
    )
    yield model, engine
    engine.shutdown()


@pytest.fixture
def engine(pair):
    yield pair[1]
    pair[1].close(range(100))


def tokens(rng, count):
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def unused(engine):
    """Whether vLLM holds nothing for anybody any more."""
    scheduler = engine._core._core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    return not scheduler.requests and pool.get_num_free_blocks() == engine.capacity.cache_tokens // 32


def machine(model, engine):
    """Any order of advances, rollbacks, failures and closes; texts begin alike, so that blocks are shared."""
    rng = random.Random(5)
    prefixes = [tokens(rng, 150) for _ in range(2)]
    compared = 0

    class AnyHistory(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.texts: dict[int, list[int]] = {}  # what is cached of those who wait for their next advance
            self.queued: dict[int, Advance] = {}
            self.opened = 0

        def submit(self, sequence, keep, append, score, share=1.0):
            positions = None
            if score != "last" and share < 1:
                positions = [i for i in range(len(append) - 1) if (i * 7 + keep) % 10 < 10 * share]
            advance = Advance(sequence, keep, append, score, positions)
            engine.add([advance])
            self.queued[sequence] = advance

        def idle(self, pick):
            waiting = sorted(self.texts.keys() - self.queued.keys())
            return waiting[pick % len(waiting)] if waiting else None

        @rule(
            prefix=st.sampled_from(prefixes),
            shared=st.integers(0, 130),
            own=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
            score=st.sampled_from(("last", "last", "all", "appended")),
            share=st.sampled_from((1.0, 0.1)),
        )
        def open(self, prefix, shared, own, score, share):
            if len(self.texts.keys() | self.queued.keys()) < 7:  # one more than there are places
                self.opened += 1
                self.submit(self.opened, 0, prefix[:shared] + own, score, share)

        @rule(
            pick=st.integers(0, 100),
            back=st.integers(0, 40),
            append=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=50),
            score=st.sampled_from(("last", "all", "appended")),
            share=st.sampled_from((1.0, 0.4)),
        )
        def advance(self, pick, back, append, score, share):
            if (sequence := self.idle(pick)) is not None:
                self.submit(sequence, max(0, len(self.texts[sequence]) - back), append, score, share)

        @rule(token=st.integers(0, VOCABULARY - 1))
        def decode_all(self, token):
            while (sequence := self.idle(0)) is not None:
                self.submit(sequence, len(self.texts[sequence]), [token], "last")

        @rule(pick=st.integers(0, 100))
        def close(self, pick):
            if everybody := sorted(self.texts.keys() | self.queued.keys()):
                sequence = everybody[pick % len(everybody)]
                engine.close([sequence])
                self.texts.pop(sequence, None)
                self.queued.pop(sequence, None)

        @rule(steps=st.integers(1, 6))
        def step(self, steps):
            for _ in range(steps):
                if engine.has_work():
                    self.take(engine.step())

        def take(self, answers):
            for answer in answers:
                nonlocal compared
                advance = self.queued.pop(answer.sequence)
                text = self.texts.pop(answer.sequence, [])[: advance.keep] + list(advance.append)
                if isinstance(answer, AdvanceFailed):
                    assert answer.reason.split()[-1] in ("taken.", "199.")
                    continue
                self.texts[answer.sequence] = text
                compared += 1
                expected = plain_logprobs(model, text)
                asked = [advance.keep + i for i in advance.scored]
                rows = asked if advance.score == "all" else []
                assert error_of(answer, expected[[*rows, len(text) - 1]]) < EXACT
                if advance.score != "last":
                    given = [float(expected[i, text[i + 1]]) for i in asked]
                    np.testing.assert_allclose(answer.appended_logprobs, given, atol=EXACT)
                    assert answer.appended_logprobs.dtype == np.float32

        @invariant()
        def cache_is_bounded(self):
            assert engine._taken <= 640 // 32

        def teardown(self):
            for _ in range(100):
                if engine.has_work():
                    self.take(engine.step())
            assert not engine.has_work()
            assert not self.queued
            engine.close(list(self.texts))
            assert unused(engine)

    return AnyHistory, lambda: compared


@pytest.mark.timeout(1200)
def test_any_history_leaves_every_sequence_with_its_own_text(pair):
    history, compared = machine(*pair)
    run_state_machine_as_test(
        history,
        settings=settings(
            max_examples=320, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert compared() >= at_least(1000)


def test_answers_hold_the_best_tokens_in_order(pair, engine):
    ids = tokens(random.Random(2), 9)
    answer = run(engine, Advance(1, 0, ids))[1]
    expected = plain_logprobs(pair[0], ids)[-1:].topk(20)
    assert answer.ids.dtype == np.int32
    assert answer.logprobs.dtype == np.float32
    assert answer.ids.shape == (1, VOCABULARY)
    assert answer.ids[:, :20].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(answer.logprobs[:, :20], expected.values, atol=EXACT)
    assert np.exp(answer.logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_a_long_prompt_does_not_hold_up_those_who_decode(engine):
    run(engine, Advance(1, 0, [5] * 10), Advance(2, 0, [6] * 10))
    engine.add([Advance(3, 0, [6] * 190), Advance(4, 0, [7] * 150)])
    for length in range(10, 14):
        engine.add([Advance(1, length, [7]), Advance(2, length, [8])])
        assert {answer.sequence for answer in engine.step()} == {1, 2}


def test_a_block_of_others_is_not_written_over(pair, engine):
    model, _ = pair
    text = tokens(random.Random(3), 96)
    run(engine, Advance(1, 0, text))
    run(engine, Advance(2, 0, [*text[:90], 5]))  # the first two blocks are those of 1
    run(engine, Advance(1, 40, [9] * 30))
    answers = run(engine, Advance(1, 70, [9]), Advance(2, 91, [9]))
    assert error_of(answers[1], plain_logprobs(model, text[:40] + [9] * 31)[-1:]) < EXACT
    assert error_of(answers[2], plain_logprobs(model, [*text[:90], 5, 9])[-1:]) < EXACT


def reason(engine, *advances):
    answer = list(run(engine, *advances).values())[-1]
    assert isinstance(answer, AdvanceFailed)
    return answer.reason


def test_what_cannot_be_done_fails_alone_and_says_why(engine):
    assert engine.capacity == Capacity(199, 640, 6, 32, generates=True, rows=1)
    run(engine, Advance(1, 0, [1, 2, 3]))
    assert reason(engine, Advance(1, 4, [5])) == "Cannot keep 4 tokens: 3 are cached."
    assert reason(engine, Advance(1, 3, [5])) == "Cannot keep 3 tokens: 0 are cached."
    assert reason(engine, Advance(1, 0, [5] * 200)) == "200 tokens are more than the context of 199."
    assert reason(engine, Advance(1, 0, [5, 300])) == "Token ids must be at least 0 and below 300."
    assert reason(engine, Advance(1, 0, [])) == "An advance must append at least one token."
    run(engine, *(Advance(i, 0, [5]) for i in range(6)))
    assert reason(engine, Advance(9, 0, [5])) == "All 6 places for sequences are taken."
    assert all(isinstance(a, NextTokens) for a in run(engine, *(Advance(i, 1, [6]) for i in range(6))).values())
    engine.close(range(6))
    run(engine, *(Advance(i, 0, [5] * 161) for i in range(3)))
    assert reason(engine, Advance(9, 0, [5] * 161)) == (
        "161 tokens do not fit into the cache, where 576 of 640 are taken."
    )


def test_a_model_over_several_processes(tmp_path):
    """What is added to vLLM's workers reaches them where they are; each is missed at once, none stays behind."""
    model = build(CONFIGS["full"])
    model.save_pretrained(tmp_path)
    engine = VllmEngine.load(
        str(tmp_path),
        dtype="float32",
        cache_tokens=640,
        max_context=200,
        prefill_chunk=40,
        candidates=VOCABULARY,
        engine_args=EAGER | {"pipeline_parallel_size": 2, "load_format": "safetensors"},
    )
    ranks = [process for process in psutil.Process().children() if process.name().startswith("VLLM::Worker")]
    assert len(ranks) == 2
    texts = {number: tokens(random.Random(number), 60 + number) for number in range(3)}
    answers = run(engine, *(Advance(number, 0, ids, "all") for number, ids in texts.items()))
    for number, ids in texts.items():
        assert error_of(answers[number], plain_logprobs(model, ids)) < EXACT
    answers = run(engine, *(Advance(number, 50 - 20 * number, [5, 9, 7], "all") for number in texts))
    for number, ids in texts.items():
        keep = 50 - 20 * number
        assert error_of(answers[number], plain_logprobs(model, [*ids[:keep], 5, 9, 7])[keep:]) < EXACT
    engine.close(texts)
    prompt, written = texts[1], []
    engine.add([Generate(1, prompt, SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True), [], [])])
    while engine.has_work():
        written += [token for answer in engine.step() for token in answer.tokens]
    for token in written:
        assert token == plain_logprobs(model, prompt)[-1].argmax()
        prompt = [*prompt, token]
    assert len(written) == 8
    assert engine.broken is None
    ranks[0].kill()
    deadline = time.monotonic() + 30
    while engine.broken is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.broken == "a worker process of vLLM's died"
    engine.shutdown()
    _, left = psutil.wait_procs(ranks, timeout=20)
    assert not left


def test_an_adapter_is_part_of_the_model(tmp_path):
    model = build(CONFIGS["full"])
    model.save_pretrained(tmp_path / "model")
    torch.manual_seed(1)
    weights = {}
    for index, layer in enumerate(model.model.layers):
        query = layer.self_attn.q_proj.weight
        a, b = torch.randn(8, query.shape[1]) * 0.3, torch.randn(query.shape[0], 8) * 0.3
        name = f"base_model.model.model.layers.{index}.self_attn.q_proj"
        weights |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        with torch.no_grad():
            query += 16 / 8 * b @ a
    (tmp_path / "adapter").mkdir()
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
    }
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    engine = VllmEngine.load(
        str(tmp_path / "model"),
        dtype="float32",
        cache_tokens=640,
        max_context=200,
        candidates=VOCABULARY,
        engine_args=EAGER,
        adapters={"own": str(tmp_path / "adapter")},
    )
    ids = [5, 9, 100, 7, 33, 2, 8]
    read = run(engine, Advance(1, 0, ids, "all", adapter="own"))[1]
    assert error_of(read, plain_logprobs(model, ids)) < EXACT
    answer = run(engine, Advance(1, 3, [4, 5], "all", adapter="own"))[1]
    assert error_of(answer, plain_logprobs(model, [*ids[:3], 4, 5])[3:]) < EXACT
    engine.shutdown()


@pytest.mark.parametrize(("sequences", "then"), [(1, 1), (MEMORY_BOUND_TOKENS, 1), (MEMORY_BOUND_TOKENS + 1, 2)])
def test_a_step_over_a_few_tokens_leaves_a_core_to_the_server(engine, monkeypatch, sequences, then):
    """Generated or fused; but reading the prompts does not, nor do many."""
    core, threads = engine._core._core, []
    step = core.step_fn
    monkeypatch.setattr(core, "step_fn", lambda: (threads.append(torch.get_num_threads()), step())[1])
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    torch.set_num_threads(2)
    try:
        engine.add([Generate(n, tokens(random.Random(n), 6), sampling, [], []) for n in range(sequences)])
        while engine.has_work():
            engine.step()
        assert threads == [2, then, then, then]
        engine.close(range(sequences))
        threads.clear()
        run(engine, Advance(50, 0, [5]))
        assert threads == [1]
        threads.clear()
        run(engine, Advance(50, 1, tokens(random.Random(0), MEMORY_BOUND_TOKENS + 1)))
        assert threads == [2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("score", ["last", "appended", "all"])
def test_no_step_waits_for_a_compiler(engine, monkeypatch, score):
    """vLLM counts ranks in a kernel that it compiles at first use, which takes seconds, and a compiler."""

    def compiled(*_):
        raise AssertionError("a kernel would be compiled inside the step")

    monkeypatch.setattr("vllm.v1.sample.sampler.batched_count_greater_than", compiled)
    assert isinstance(run(engine, Advance(1, 0, [5, 6, 7, 8], score))[1], NextTokens)


def test_a_step_that_fails_leaves_nothing_behind_that_is_found_again(pair, engine, monkeypatch):
    """vLLM notes what blocks will hold before it computes them."""
    model, _ = pair
    text = tokens(random.Random(11), 100)

    def fail(*_, **__):
        raise RuntimeError("no such luck")

    with monkeypatch.context() as patched:
        patched.setattr(engine._core._core.model_executor, "execute_model", fail)
        engine.add([Advance(1, 0, text)])
        with pytest.raises(RuntimeError, match="no such luck"):
            engine.step()
    engine.close([1])
    answer = run(engine, Advance(2, 0, text))[2]
    assert answer.reused == 0
    assert error_of(answer, plain_logprobs(model, text)[-1:]) < EXACT


def test_a_reopened_text_is_scored_from_where_it_is_asked_for_on(pair, engine, monkeypatch):
    """Where nothing can be taken back in place, vLLM looks up nothing of a request that it scores."""
    model, _ = pair
    rng = random.Random(12)
    text, more = tokens(rng, 96), tokens(rng, 5)
    run(engine, Advance(1, 0, text))
    monkeypatch.setattr(engine._core, "truncate", lambda *_: False)
    computed, step = [], engine._core._core.scheduler.schedule

    def scheduled(*arguments):
        output = step(*arguments)
        computed.append(output.total_num_scheduled_tokens)
        return output

    monkeypatch.setattr(engine._core._core.scheduler, "schedule", scheduled)
    answer = run(engine, Advance(1, 90, more, "all"))[1]
    whole = plain_logprobs(model, text[:90] + more)
    assert error_of(answer, whole[-len(answer.ids) :]) < EXACT
    assert answer.appended_logprobs == pytest.approx(
        [float(whole[89 + at, id]) for at, id in enumerate(more)][-len(answer.appended_logprobs) :], abs=EXACT
    )
    assert sum(computed) <= 96 - 64 + 5


def test_a_bias_that_vllm_has_no_room_for_fails_its_own_request_alone(pair, engine, monkeypatch):
    monkeypatch.setattr("fusion.members.vllm.engine.MOST_BIASED", 3)
    ids = tokens(random.Random(13), 10)
    biased = SamplingParams(max_tokens=2, temperature=0.0, logit_bias={1: 1.0, 2: 1.0, 3: 1.0})
    answers = run(engine, Advance(1, 0, ids), Generate(2, ids, biased, [], [4]))
    assert isinstance(answers[1], NextTokens)
    assert answers[2] == AdvanceFailed(2, "logit_bias and the ids that end an answer are 4; vLLM takes 3.")
