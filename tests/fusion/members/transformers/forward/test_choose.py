"""Whatever the architecture and the path it takes: the engine computes what transformers computes."""

import copy
import logging
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, OlmoeConfig

from alignment.errors import ConfigError
from fusion.core import Advance
from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.transformers.forward.attention import packed_attention
from fusion.members.transformers.forward.base import Part
from fusion.members.transformers.forward.padded import batches
from fusion.members.transformers.forward.stateful import CHECKPOINTS
from tests.support import architectures as zoo
from tests.support.advance_histories import AnyHistory, any_history_agrees
from tests.support.random_models import EXACT, VOCABULARY, assert_agree, error_of, plain_logprobs, run


def engine_over(model, **options):
    options = {"max_context": 128, "cache_tokens": 500, "prefill_chunk": 32, "candidates": 1000} | options
    return TransformersEngine(copy.deepcopy(model), **options)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in zoo.OF_PATH.items() for name in names])
def test_interleaved_sequences_with_appends_and_rollbacks_agree(path, name):
    model = zoo.build(name)
    engine = engine_over(model)
    assert engine.path == path
    rng = random.Random(1)
    ids = range(3, engine.known_ids)  # those below have a meaning of their own to some models
    texts = {sequence: rng.choices(ids, k=rng.randint(20, 60)) for sequence in range(5)}
    assert_agree(model, engine, texts, rng)


class AnyPaddedHistory(AnyHistory):
    model = zoo.build("bloom", vocab_size=VOCABULARY)


class AnyHistoryOfStates(AnyHistory):
    model = zoo.build("jamba", vocab_size=VOCABULARY)


class AnyHistoryWithoutCache(AnyHistory):
    model = zoo.build("recurrent_gemma", vocab_size=VOCABULARY)


@pytest.mark.parametrize("history", [AnyPaddedHistory, AnyHistoryOfStates, AnyHistoryWithoutCache])
def test_any_history_leaves_every_sequence_with_its_own_text(history):
    any_history_agrees(history, examples=15, steps=25, compared=8)


@pytest.mark.parametrize("name", ["bloom", "gpt_oss"])
def test_sequences_of_unequal_lengths_decode_in_one_forward_pass(name):
    engine = engine_over(zoo.build(name))
    run(engine, *(Advance(sequence, 0, [5] * (10 + sequence)) for sequence in range(6)))
    sizes = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: sizes.append(tuple(kw["input_ids"].shape)) or forward(**kw)
    run(engine, *(Advance(sequence, 10 + sequence, [6]) for sequence in range(6)))
    assert sizes == [(6, 1)]


def test_a_rollback_of_a_state_costs_what_lies_after_the_nearest_one_kept():
    model = zoo.build("mamba2")
    engine = engine_over(model)
    text = [5, 9, 4, 7, 8, 6, 3, 11, 12, 13, 14, 15]
    run(engine, Advance(1, 0, text[:6]))
    for length in range(6, 12):
        run(engine, Advance(1, length, [text[length]]))
    sizes = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: sizes.append(tuple(kw["input_ids"].shape)) or forward(**kw)
    for keep, width in ((12 - CHECKPOINTS + 1, 1), (8, 9)):
        answer = run(engine, Advance(1, keep, [20]))[1]
        assert error_of(answer, plain_logprobs(model, [*text[:keep], 20])[-1:]) < EXACT
        assert sizes.pop() == (1, width)


def test_a_rollback_within_an_answer_never_runs_the_prompt_again(monkeypatch):
    """And what has to be run again is run in pieces, whatever its length."""
    monkeypatch.setattr("fusion.members.transformers.forward.stateful.CHUNK", 16)
    model = zoo.build("mamba2")
    engine = engine_over(model, prefill_chunk=64)
    text = random.Random(4).choices(range(3, engine.known_ids), k=50)
    run(engine, Advance(1, 0, text[:40]))
    for length in range(40, 50):
        run(engine, Advance(1, length, [text[length]]))
    widths = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: widths.append(kw["input_ids"].numel()) or forward(**kw)
    for keep, expected in ((41, [2]), (30, [16, 15])):
        answer = run(engine, Advance(1, keep, [20]))[1]
        assert error_of(answer, plain_logprobs(model, [*text[:keep], 20])[-1:]) < EXACT
        assert widths == expected
        widths.clear()


def test_a_window_that_the_models_mask_does_not_have_is_none():
    """OLMoE hands its attention a window that its own mask leaves out."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
        initializer_range=0.2,
        sliding_window=16,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    engine = engine_over(model)
    assert engine.path != "packed"
    text = random.Random(5).choices(range(3, engine.known_ids), k=60)
    assert error_of(run(engine, Advance(1, 0, text))[1], plain_logprobs(model, text)[-1:]) < EXACT


def test_where_padding_would_move_what_follows_it_sequences_run_one_by_one():
    """Llama 4 scales its queries by the length of the cache."""
    model = zoo.build("llama4_text", floor_scale=8, attn_scale=2.0, no_rope_layers=[0, 0, 0, 0])
    engine = engine_over(model)
    texts = [random.Random(seed).choices(range(3, engine.known_ids), k=size) for seed, size in ((6, 22), (7, 40))]
    run(engine, *(Advance(sequence, 0, text[:-1]) for sequence, text in enumerate(texts)))
    answers = run(engine, *(Advance(sequence, len(text) - 1, text[-1:]) for sequence, text in enumerate(texts)))
    for sequence, text in enumerate(texts):
        assert error_of(answers[sequence], plain_logprobs(model, text)[-1:]) < EXACT


@pytest.mark.parametrize("name", ["bloom", "jamba", "mamba", "mamba2"])
def test_no_forward_pass_runs_more_of_a_prompt_than_a_chunk(name):
    model = zoo.build(name)
    engine = engine_over(model, prefill_chunk=24)
    text = random.Random(2).choices(range(3, engine.known_ids), k=70)
    widths = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: widths.append(kw["input_ids"].numel()) or forward(**kw)
    answer = run(engine, Advance(1, 0, text))[1]
    assert max(widths) <= 24
    assert error_of(answer, plain_logprobs(model, text)[-1:]) < EXACT


def test_states_are_bounded_and_end_with_their_sequence():
    engine = engine_over(zoo.build("jamba"))
    run(engine, *(Advance(sequence, 0, [5] * 20) for sequence in range(3)))
    for length in range(20, 30):
        run(engine, *(Advance(sequence, length, [6]) for sequence in range(3)))
    past = engine._forward._past
    assert [len(one.checkpoints) for one in past.values()] == [CHECKPOINTS] * 3
    engine.close([0, 1])
    assert list(past) == [2]


def test_single_tokens_of_models_with_states_share_a_forward_pass():
    engine = engine_over(zoo.build("jamba"))
    run(engine, *(Advance(sequence, 0, [5] * (10 + sequence)) for sequence in range(4)))
    sizes = []
    forward = engine._model.forward
    engine._model.forward = lambda **kw: sizes.append(tuple(kw["input_ids"].shape)) or forward(**kw)
    run(engine, *(Advance(sequence, 10 + sequence, [6]) for sequence in range(4)))
    assert sizes == [(4, 1)]


def part(sequence, count, length):
    return Part(sequence, [5] * count, length - count, [], 0, 0)


def test_padding_never_more_than_doubles_what_is_computed_or_read():
    def shared(*sizes):
        parts = [part(i, count, length) for i, (count, length) in enumerate(sizes)]
        return [[sizes[i] for i in batch] for batch in batches(parts, lambda part: False)]

    assert shared((1, 50), (1, 60), (2, 70)) == [[(1, 50), (1, 60), (2, 70)]]
    assert shared((300, 300), (1, 50), (1, 60)) == [[(1, 50), (1, 60)], [(300, 300)]]
    assert shared((1, 10), (1, 10), (1, 4000)) == [[(1, 10), (1, 10)], [(1, 4000)]]


def test_the_keys_and_values_of_the_portable_path_take_what_was_asked_for():
    engine = engine_over(zoo.build("bloom"), cache_tokens=200)
    assert engine._cache.nbytes == 200 * 2 * 4 * (8 + 8) * 4  # tokens, layers, heads, dims, bytes


def test_a_model_without_a_limit_of_its_own_has_all_of_the_cache():
    assert engine_over(zoo.build("mamba"), max_context=None, cache_tokens=300).capacity.context == 300
    assert engine_over(zoo.build("mpt"), max_context=None, cache_tokens=300).capacity.context == 256


def test_a_path_that_computes_something_else_is_passed_over_and_the_log_says_so(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    model = zoo.build("llama")

    def wrong(module, query, key, value, mask, **rest):
        return packed_attention(module, query, key, value.roll(1, 1), mask, **rest)

    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, "tutti", wrong)
    assert engine_over(model).path == "padded"
    assert "LlamaForCausalLM runs padded: packed, it differs from a plain forward pass by" in caplog.text
    write = KVCache.write
    monkeypatch.setattr(
        KVCache, "write", lambda cache, layer, k, v, slots: write(cache, layer, k.roll(1, 1), v, slots)
    )
    engine = engine_over(model)
    assert engine.path == "over its own cache"
    assert error_of(run(engine, Advance(1, 0, [4, 5, 6]))[1], plain_logprobs(model, [4, 5, 6])[-1:]) < EXACT


def test_a_model_that_looks_ahead_is_refused():
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5
    )
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"cannot run BertLMHeadModel: .*without cache, it differs from a plain"):
        TransformersEngine(BertLMHeadModel(config).eval(), cache_tokens=100)
