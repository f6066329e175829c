"""The engine computes what transformers computes, whatever is kept, appended, batched or rolled back."""

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from transformers import Phi3Config, T5Config

from alignment.errors import ConfigError
from fusion.core import Advance, AdvanceFailed, Capacity, NextTokens
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.transformers.work import KEPT_ROWS, Work
from tests.support.advance_histories import AnyHistory, any_history_agrees
from tests.support.random_models import (
    CONFIGS,
    EXACT,
    VOCABULARY,
    assert_agree,
    build,
    error_of,
    plain_logprobs,
    run,
)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    model = build(request.param)
    return model, TransformersEngine(copy.deepcopy(model), cache_tokens=400, prefill_chunk=32)


@pytest.fixture
def engine():
    return TransformersEngine(build("llama"), cache_tokens=200, max_sequences=4, max_context=100, prefill_chunk=32)


def tokens(rng, count):
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def test_ragged_rows_with_appends_of_any_size_agree(pair):
    model, engine = pair
    rng = random.Random(1)
    texts = {sequence: tokens(rng, rng.randint(20, 70)) for sequence in range(6)}
    assert_agree(model, engine, texts, rng)
    engine.close(list(texts))


def test_answers_hold_the_best_tokens_in_order():
    model = build("llama")
    engine = TransformersEngine(copy.deepcopy(model), cache_tokens=64, candidates=7)
    ids = tokens(random.Random(2), 9)
    answer = run(engine, Advance(1, 0, ids))[1]
    expected = plain_logprobs(model, ids)[-1:].topk(7)
    assert answer.ids.dtype == np.int32
    assert answer.logprobs.dtype == np.float32
    assert answer.ids.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(answer.logprobs, expected.values, atol=EXACT)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_greedy_decoding_is_generate_alone_and_in_random_company(name):
    model = build(name, seed=3)
    engine = TransformersEngine(copy.deepcopy(model), cache_tokens=2000, max_sequences=32, prefill_chunk=24)
    rng = random.Random(3)
    prompts = [tokens(rng, rng.randint(1, 60)) for _ in range(20)]
    with torch.inference_mode():
        expected = [
            model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=24,
                min_new_tokens=24,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]
    for arrival in (0, 3, 40):
        waiting = list(enumerate(prompts))
        rng.shuffle(waiting)
        produced: dict[int, list[int]] = {}
        while waiting or engine.has_work():
            if waiting and (not engine.has_work() or rng.randrange(40) < arrival):
                sequence, prompt = waiting.pop()
                produced[sequence] = []
                engine.add([Advance(sequence, 0, prompt)])
            for answer in engine.step():
                assert isinstance(answer, NextTokens)
                sequence, got = answer.sequence, produced[answer.sequence]
                got.append(int(answer.ids[0, 0]))
                if len(got) < 24:
                    engine.add([Advance(sequence, len(prompts[sequence]) + len(got) - 1, got[-1:])])
                else:
                    engine.close([sequence])
        assert [produced[i] for i in range(20)] == expected


def test_any_history_leaves_every_sequence_with_its_own_text():
    any_history_agrees(AnyHistory, examples=100, steps=30, compared=100)


def test_a_long_prompt_delays_decoding_by_no_more_than_a_chunk(engine):
    sizes = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: sizes.append(kw["input_ids"].shape[1]) or forward(**kw)
    run(engine, Advance(1, 0, [5] * 10))
    engine.add([Advance(2, 0, [6] * 100)])
    sizes.clear()
    for length in range(10, 13):
        engine.add([Advance(1, length, [7])])
        assert [answer.sequence for answer in engine.step()] == [1]
    assert sizes == [33, 33, 33]
    assert [answer.sequence for answer in engine.step()] == [2]


def test_a_prompt_in_chunks_scores_every_position():
    model = build("qwen2")
    engine = TransformersEngine(copy.deepcopy(model), cache_tokens=256, prefill_chunk=10)
    ids = tokens(random.Random(4), 97)
    answer = run(engine, Advance(1, 0, ids, "all"))[1]
    expected = plain_logprobs(model, ids)
    assert error_of(answer, expected) < EXACT
    given = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(answer.appended_logprobs, given, atol=EXACT)


def test_only_the_positions_asked_for_cost_a_head():
    model = build("qwen2")
    engine = TransformersEngine(copy.deepcopy(model), cache_tokens=256, prefill_chunk=10)
    rows = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: rows.append(len(kw["logits_to_keep"])) or forward(**kw)
    ids = tokens(random.Random(5), 35)
    answer = run(engine, Advance(1, 0, ids, "appended", [3, 4, 29]))[1]
    assert rows == [2, 1, 1, 1]  # in chunks of ten; where nothing is asked for, a row that is not looked at
    expected = plain_logprobs(model, ids)
    np.testing.assert_allclose(answer.appended_logprobs, [expected[i, ids[i + 1]] for i in (3, 4, 29)], atol=EXACT)
    assert answer.ids.shape[0] == 1


def reason(engine, *advances):
    answer = list(run(engine, *advances).values())[-1]
    assert isinstance(answer, AdvanceFailed)
    return answer.reason


def test_what_cannot_be_done_fails_alone_and_says_why(engine):
    run(engine, Advance(1, 0, [1, 2, 3]))
    assert reason(engine, Advance(1, 4, [5])) == "Cannot keep 4 tokens: 3 are cached."
    assert reason(engine, Advance(1, 3, [5])) == "Cannot keep 3 tokens: 0 are cached."
    assert reason(engine, Advance(1, 0, [5] * 101)) == "101 tokens are more than the context of 100."
    assert reason(engine, Advance(1, 0, [5, 300])) == "Token ids must be at least 0 and below 300."
    assert reason(engine, Advance(1, 0, [-1])) == "Token ids must be at least 0 and below 300."
    assert reason(engine, Advance(1, 0, [])) == "An advance must append at least one token."
    run(engine, *(Advance(i, 0, [5]) for i in range(4)))
    assert reason(engine, Advance(9, 0, [5])) == "All 4 places for sequences are taken."
    assert all(isinstance(a, NextTokens) for a in run(engine, *(Advance(i, 1, [6]) for i in range(4))).values())


def test_the_cache_holds_what_it_promises_and_no_more(engine):
    run(engine, Advance(1, 0, [5] * 100), Advance(2, 0, [6] * 60))
    assert reason(engine, Advance(3, 0, [7] * 41)) == (
        "41 tokens do not fit into the cache, where 160 of 200 are taken."
    )
    assert isinstance(run(engine, Advance(3, 0, [7] * 40))[3], NextTokens)
    engine.close([1])
    assert isinstance(run(engine, Advance(4, 0, [8] * 100))[4], NextTokens)
    assert engine._cache.nbytes == 200 * 2 * 2 * (12 + 12) * 4  # tokens, layers, heads, dims, bytes


def test_a_sequence_whose_output_is_nan_fails_and_leaves_no_trace():
    model = build("llama")
    engine = TransformersEngine(copy.deepcopy(model), cache_tokens=128)
    with torch.no_grad():
        engine._model.get_input_embeddings().weight[7] = float("nan")
    answers = run(engine, Advance(1, 0, [5, 7, 6]), Advance(2, 0, [5, 8, 6]))
    assert answers[1] == AdvanceFailed(1, "The model's output is not a number.")
    assert error_of(answers[2], plain_logprobs(model, [5, 8, 6])[-1:]) < EXACT
    # The next owner of the place is shorter than its neighbour in the same view, which thus covers what was left.
    run(engine, Advance(3, 0, [5]))
    assert engine._arena.extents[3].start == 0
    answers = run(engine, Advance(3, 1, [9]), Advance(2, 3, [4]))
    assert error_of(answers[3], plain_logprobs(model, [5, 9])[-1:]) < EXACT
    assert error_of(answers[2], plain_logprobs(model, [5, 8, 6, 4])[-1:]) < EXACT


def test_capacity_is_what_was_asked_for_and_the_context_what_the_model_was_made_for():
    assert TransformersEngine(build("gpt2"), cache_tokens=1000, max_sequences=3).capacity == Capacity(256, 1000, 3)
    assert TransformersEngine(build("gpt2"), cache_tokens=100).capacity.context == 100
    with pytest.raises(ConfigError, match="max_context 300 is more than the 256 tokens that GPT2LMHeadModel"):
        TransformersEngine(build("gpt2"), max_context=300)


def test_half_precision_passes_the_start_up_check():
    engine = TransformersEngine(build("qwen2").to(torch.bfloat16), cache_tokens=64)
    assert run(engine, Advance(1, 0, [1, 2, 3]))[1].logprobs.dtype == np.float32


TINY = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_longrope_stays_within_the_range_where_rows_do_not_disturb_each_other():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
    }
    config = Phi3Config(
        **TINY, intermediate_size=32, num_key_value_heads=2, max_position_embeddings=256, rope_parameters=rope,
        original_max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    assert TransformersEngine(build(config), cache_tokens=200).capacity.context == 64


def test_encoder_decoders_are_refused():
    from transformers import T5ForConditionalGeneration

    config = T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match="cannot run T5ForConditionalGeneration: it is an encoder-decoder"):
        TransformersEngine(T5ForConditionalGeneration(config))


def test_one_place_is_enough():
    engine = TransformersEngine(build("llama"), cache_tokens=200, max_sequences=1)
    assert engine.capacity.sequences == 1
    assert engine.path == "packed"


def test_only_the_last_rows_of_a_long_prompt_are_kept():
    work = Work(Advance(1, 0, list(range(500))))
    for chunk in range(30):
        work.keep(torch.full((KEPT_ROWS, 3), float(chunk)), np.full(KEPT_ROWS, chunk, np.float32))
    assert sum(map(len, work.rows)) < 2 * KEPT_ROWS
    rows = work.kept_rows()
    assert len(rows.totals) == KEPT_ROWS
    assert set(rows.totals.tolist()) == {29.0}
    work.keep(torch.zeros(1, 3), np.zeros(1, np.float32))
    assert work.kept_rows().totals.tolist() == [29.0] * (KEPT_ROWS - 1) + [0.0]


def test_what_was_read_of_a_prompt_that_is_given_up_harms_no_later_sequence():
    """In half precision a layer may overflow, which nothing shows before a row is scored."""
    model = build("llama")
    engine = TransformersEngine(copy.deepcopy(model), cache_tokens=200, max_sequences=4, prefill_chunk=16)
    engine.add([Advance(1, 0, [5] * 40)])
    engine.step()
    extent = engine._arena.extents[1]
    with torch.inference_mode():
        for written in (*engine._cache.keys.values(), *engine._cache.values.values()):
            written[:, extent.start : extent.start + 16] = torch.nan
    engine.close([1])
    texts = {2: [7] * 3, 3: [8, 9] * 15}
    answers = run(engine, *(Advance(sequence, 0, text) for sequence, text in texts.items()))
    answers |= run(engine, *(Advance(sequence, len(text), [4]) for sequence, text in texts.items()))
    for sequence, text in texts.items():
        assert error_of(answers[sequence], plain_logprobs(model, [*text, 4])[-1:]) < EXACT


def test_a_model_that_gives_all_rows_of_logits_is_read_at_those_asked_for(monkeypatch):
    """As one of a checkpoint's own code may, whose forward takes any argument."""
    model = build("llama")
    forward = type(model).forward

    def without(self, logits_to_keep=None, **arguments):
        return forward(self, **arguments)

    monkeypatch.setattr(without, "__signature__", inspect.signature(lambda self, **arguments: None), raising=False)
    engine_model = copy.deepcopy(model)
    monkeypatch.setattr(type(model), "forward", without)
    engine = TransformersEngine(engine_model, cache_tokens=200, max_sequences=4, prefill_chunk=32)
    assert engine.path == "packed"
    texts = {1: [5, 6, 7], 2: [9, 8, 7, 6, 5]}
    answers = run(engine, *(Advance(sequence, 0, text) for sequence, text in texts.items()))
    for sequence, text in texts.items():
        assert error_of(answers[sequence], plain_logprobs(model, text)[-1:]) < EXACT
