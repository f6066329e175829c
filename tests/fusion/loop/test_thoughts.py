"""A budget of thoughts in an ensemble: their closing tag goes to every member, with drafts and whatever else."""

from __future__ import annotations

import pytest

from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot
from fusion.options import FusionParams, Weighting
from fusion.sequence.grammar import regex
from fusion.sequence.structural import after_thoughts
from fusion.sequence.thoughts import Budget
from tests.support.constrained_prompts import constrained
from tests.support.drafted_answers import Scripted, accepted_drafts, guesses, same, says
from tests.support.small_tokenizers import byte_level
from tests.support.toy_fuser import toy_ensemble, toy_model

TEXT = ("<think>", "</think>")
SPECIAL = ("<|user|>", "<|assistant|>")  # of almanac


def marks_of(running, tags):
    return [id for tag in tags if (id := running.ensemble.first.grammar_table.special(tag)) is not None]


def thinking(running, tokens, tags=TEXT, begun="", **options):
    """A prompt whose answers begin inside of thoughts."""
    return constrained(running, budget=Budget(tags, tokens, begun), marks=marks_of(running, tags), **options)


def tag_of(running, tags):
    return running.ensemble.first.grammar_table.tokens_of(tags[1])


@pytest.mark.parametrize(
    ("pivot", "tags"), [("lingvo", TEXT), ("abacus", TEXT), ("almanac", TEXT), ("almanac", SPECIAL)]
)
@pytest.mark.parametrize("tokens", [0, 5])
def test_the_tag_comes_when_the_budget_is_spent_and_every_member_is_given_it(tokenizers, run, pivot, tags, tokens):
    running = run(toy_ensemble(tokenizers, pivot=pivot))
    tag = tag_of(running, tags)
    for seed in range(3):
        listener = running.submit(
            thinking(running, tokens, tags), temperature=1.0, seed=seed, max_tokens=30, logprobs=2
        ).wait()
        assert listener.last.error is None
        assert listener.ids[tokens : tokens + len(tag)] == tag
        drawn = [token for update in listener.updates for token in update.tokens]
        assert all(token.chosen.logprob == 0 for token in drawn[tokens : tokens + len(tag)])
    for member in running.members():
        tokenizer = running.ensemble.models[member.name].tokenizer
        given = b""
        for advance in (one for batch in member.submitted for one in batch if one.append):
            given += b"".join(
                tokenizer.spelling.get(id, "").encode() or tokenizer.surface_of([id]) for id in advance.append
            )
        assert tags[1].encode() in given


def test_a_budget_beyond_the_answer_changes_nothing(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    plain = running.submit(temperature=1.0, seed=2, max_tokens=25).wait()
    for tokens in (25, 10_000):
        listener = running.submit(thinking(running, tokens), temperature=1.0, seed=2, max_tokens=25).wait()
        assert (listener.ids, listener.last.finish) == (plain.ids, plain.last.finish)
    short = running.submit(thinking(running, 3), max_tokens=5).wait()
    assert (short.ids[3:], short.last.finish) == (tag_of(running, TEXT)[:2], "length")


@pytest.mark.parametrize("drafter", ["right", "wrong", "random"])
@pytest.mark.parametrize(("pivot", "tags"), [("lingvo", TEXT), ("almanac", SPECIAL)])
@pytest.mark.parametrize("schema", [True, False])
def test_a_draft_across_the_tag_changes_no_answer(tokenizers, run, monkeypatch, pivot, tags, drafter, schema):
    running = run(toy_ensemble(tokenizers, pivot=pivot, defaults=FusionParams(report=True)))
    table = running.ensemble.first.grammar_table
    grammar = after_thoughts(regex("(yes|no), [a-z]{8}"), table, tags, opened=True) if schema else None
    prompt = thinking(running, 7, tags, grammar=grammar)
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 5, "logprobs": 2}
    plain = running.submit(prompt, **options).wait()
    assert plain.last.error is None
    assert plain.ids[7 : 7 + len(tag_of(running, tags))] == tag_of(running, tags)
    policy = Scripted(guesses(plain.ids, tokenizers[pivot].vocabulary_size, ahead=9)[drafter])
    monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy)
    drafted = running.submit(prompt, **options).wait()
    same(drafted, plain)
    assert drafter != "right" or sum(accepted for _, accepted in policy.went) > 0


@pytest.mark.parametrize("draft", ["ngram", "auto", "almanac"])
def test_every_drafter_keeps_the_budget(tokenizers, run, monkeypatch, draft):
    went = accepted_drafts(monkeypatch)
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = thinking(running, 16)
    for model in running.ensemble.models.values():
        says("a rose is a rose is a rose is a rose is a rose is a rose", model, prompt)
    plain = running.submit(prompt, max_tokens=30).wait()
    assert plain.ids[16 : 16 + len(tag_of(running, TEXT))] == tag_of(running, TEXT)
    assert not went
    assert running.submit(prompt, FusionParams(draft=draft), max_tokens=30).wait().ids == plain.ids
    assert sum(went) >= 4


@pytest.mark.parametrize("weights", ["packllm-sim", "packllm-opt"])
@pytest.mark.parametrize("tokens", [0, 2])
def test_weights_from_the_prompt_keep_the_budget(tokenizers, run, weights, tokens):
    fusion = FusionParams(weighting=Weighting(method=weights))
    running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=fusion))
    listener = running.submit(thinking(running, tokens), max_tokens=12).wait()
    assert listener.ids[tokens : tokens + len(tag_of(running, TEXT))] == tag_of(running, TEXT)


def test_each_prompt_may_choose_the_pivot_whose_tokens_are_counted(tokenizers, run):
    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(tokenizers.items())}
    running = run(build_for_any_pivot("toys", models))
    listener = running.submit(constrained(running, budget=Budget(TEXT, 4, "")), max_tokens=20).wait()
    tag = running.ensemble.view(listener.last.pivot).grammar_table.tokens_of(TEXT[1])
    assert listener.ids[4 : 4 + len(tag)] == tag


def test_one_model_alone_and_a_sum_keep_the_budget(tokenizers, run):
    tokenizer = byte_level(*TEXT)
    alone = run(build_ensemble("one", {"one": toy_model(tokenizer, "one", seed=3)}, "one"))
    listener = alone.submit(thinking(alone, 4), max_tokens=9).wait()
    assert listener.ids[4] == tokenizer.hf.convert_tokens_to_ids("</think>")
    summed = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=FusionParams(combine="arithmetic")))
    listener = summed.submit(thinking(summed, 4), max_tokens=14).wait()
    assert listener.ids[4 : 4 + len(tag_of(summed, TEXT))] == tag_of(summed, TEXT)


def test_the_tag_may_be_a_stop_string(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    listener = running.submit(thinking(running, 4), max_tokens=30, stop=("/think",)).wait()
    assert (listener.last.finish, listener.last.stop_reason) == ("stop", "/think")
    assert listener.text.endswith("<")


def test_text_that_might_be_a_stop_string_comes_before_a_special_tag(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="almanac"))
    tag = tag_of(running, SPECIAL)
    plain = running.submit(thinking(running, 4, SPECIAL), max_tokens=8).wait()
    at = next(i for i, update in enumerate(plain.updates) if [t.chosen.id for t in update.tokens] == tag)
    thoughts = "".join(update.text for update in plain.updates[:at])
    held = running.submit(thinking(running, 4, SPECIAL), max_tokens=8, stop=(thoughts[-1] + "\x00",)).wait()
    at = next(i for i, update in enumerate(held.updates) if [t.chosen.id for t in update.tokens] == tag)
    assert "".join(update.text for update in held.updates[: at + 1]) == thoughts
