"""Decoding under a constraint: masked before candidates are picked, forced text without asking, ends in time."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from alignment.errors import InvalidRequestError
from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot
from fusion.options import FusionParams, Weighting
from fusion.sequence.constraint import Constraint
from fusion.sequence.grammar import choice, json_schema, regex
from fusion.sequence.structural import Tag, after_thoughts, structural
from tests.support.constrained_prompts import constrained
from tests.support.drafted_answers import accepted_drafts, says
from tests.support.toy_fuser import teach, toy_ensemble, toy_model

SCHEMA = {
    "type": "object",
    "properties": {
        "preferred_colour": {"enum": ["green", "yellow"]},
        "requires_attention": {"type": "boolean"},
        "größe": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["preferred_colour", "requires_attention", "größe"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("pivot", ["almanac", "abacus", "lingvo"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("combine", ["mixture", "product"])
def test_an_answer_satisfies_its_schema_with_far_fewer_passes_than_tokens(
    tokenizers, run, pivot, temperature, combine
):
    running = run(toy_ensemble(tokenizers, pivot=pivot, defaults=FusionParams(combine=combine, filter_top=20)))
    prompt = constrained(running, json_schema(SCHEMA))
    for seed in range(4):
        listener = running.submit(prompt, temperature=temperature, seed=seed, max_tokens=200).wait()
        assert listener.last.error is None
        assert listener.last.finish == "stop"
        jsonschema.validate(json.loads(listener.text), SCHEMA)
        assert len(listener.ids) >= 1.5 * listener.last.account.rounds


def test_forced_text_goes_to_every_member_in_one_advance(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    running.submit(constrained(running, regex("The answer is: [0-9]")), max_tokens=40).wait()
    for member in running.members():
        (opening, *later) = [advance for batch in member.submitted for advance in batch]
        text = running.ensemble.models[member.name].tokenizer.surface_of(opening.append)
        assert text.decode(errors="replace").rstrip().endswith("The answer is:")
        assert len(later) <= 1


def test_an_answer_that_is_forced_from_end_to_end_takes_no_pass(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="almanac"))
    listener = running.submit(constrained(running, choice(["exactly this"]))).wait()
    assert (listener.text, listener.last.finish) == ("exactly this", "stop")
    assert not any(member.submitted for member in running.members())
    assert listener.last.account.rounds == 0
    short = running.submit(constrained(running, choice(["exactly this"])), max_tokens=1).wait()
    assert (len(short.ids), short.last.finish) == (1, "length")
    stopped = running.submit(constrained(running, choice(["exactly this"])), stop=("tly",)).wait()
    assert (stopped.text, stopped.last.stop_reason) == ("exac", "tly")


def test_the_pivot_picks_its_candidates_among_what_is_admitted(tokenizers, run):
    ensemble = toy_ensemble({"lingvo": tokenizers["lingvo"], "almanac": tokenizers["almanac"]}, pivot="lingvo")
    running = run(ensemble)
    for member in running.members():
        member.k = 5  # digits are hardly ever among so few
    weights = {"lingvo": 1.0, "almanac": 0.0}
    listener = running.submit(
        constrained(running, regex("[0-9]{6}")), FusionParams(weights=weights), logprobs=3, max_tokens=20
    ).wait()
    table, pivot = ensemble.first.grammar_table, ensemble.models["lingvo"].member
    mirror = Constraint(table, grammar=regex("[0-9]{6}"))
    held = list(running.ensemble.encode_chat([{"role": "user", "content": "Hello"}]).ids["lingvo"])
    for token in (token for update in listener.updates for token in update.tokens):
        masked = np.where(mirror.mask()[: pivot.vocabulary_size], pivot.distribution(held), -np.inf)
        assert token.chosen.id == int(masked.argmax())
        best = np.sort(masked)[::-1][:5]
        expected = best[0] - np.log(np.exp(best.astype(np.float64)).sum())  # of what is admitted
        assert token.chosen.logprob == pytest.approx(expected, abs=1e-4)
        mirror.take(token.chosen.id)
        held.append(token.chosen.id)
    assert listener.text.isdigit()


def test_a_bias_does_not_break_a_grammar(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    table = running.ensemble.first.grammar_table
    yes = {id: -100.0 for id in range(table.width) if table.surfaces[id] and b"yes".startswith(table.surfaces[id])}
    listener = running.submit(constrained(running, choice(["yes", "yessir"])), logit_bias=yes).wait()
    assert listener.text in ("yes", "yessir")
    favoured = dict.fromkeys(table._encode("cat"), 100.0)
    assert running.submit(constrained(running, regex("[0-9]{3}")), logit_bias=favoured).wait().text.isdigit()


def test_bad_words_and_admitted_ids_hold_without_a_grammar(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="almanac"))
    listener = running.submit(constrained(running, words=["e", "t"]), max_tokens=40).wait()
    assert not set("et") & set(listener.text)
    table = running.ensemble.first.grammar_table
    ids = [table._encode("a")[0], table._encode("b")[0]]
    only = running.submit(constrained(running, allowed_ids=ids), max_tokens=20).wait()
    assert set(only.ids) <= set(ids)


def test_penalties_and_several_answers_go_on_under_a_grammar(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = constrained(running, regex("[a-z]{30}"))
    texts = {running.submit(prompt, seed=s, temperature=1.0, presence_penalty=2.0, max_tokens=60).wait().text
             for s in range(3)}  # fmt: skip
    assert len(texts) == 3
    assert all(text.isalpha() and len(text) == 30 for text in texts)


@pytest.mark.parametrize("draft", ["ngram", "auto", "almanac"])
def test_a_draft_changes_no_answer_under_a_grammar(tokenizers, run, monkeypatch, draft):
    went = accepted_drafts(monkeypatch)
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    said = {"said": {"type": "string", "maxLength": 90}, **SCHEMA["properties"]}
    prompt = constrained(running, json_schema(SCHEMA | {"properties": said, "required": [*said]}))
    for model in running.ensemble.models.values():
        says('{"said":"A rose is a rose is a rose, and a rose is a rose.","preferred', model, prompt)
    plain = running.submit(prompt, max_tokens=120).wait()
    assert (plain.last.finish, went) == ("stop", [])
    assert running.submit(prompt, FusionParams(draft=draft), max_tokens=120).wait().ids == plain.ids
    assert sum(went) >= 4


def test_a_forced_token_is_reported_without_shares(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = constrained(running, json_schema(SCHEMA))
    listener = running.submit(prompt, FusionParams(report=True), max_tokens=200, logprobs=2).wait()
    assert [report.token for report in listener.last.rounds] == listener.ids
    assert "".join(report.text for report in listener.last.rounds) == listener.text
    assert [update.round for update in listener.updates if update.tokens] == list(listener.last.rounds)
    tokens = [token for update in listener.updates for token in update.tokens]
    for token, report in zip(tokens, listener.last.rounds, strict=True):
        if not report.weights:
            assert token.chosen.logprob == 0.0
            assert token.top == (token.chosen,)
        else:
            assert sum(report.contribution.values()) == pytest.approx(1.0)
    assert 0 < sum(not report.weights for report in listener.last.rounds) < len(tokens)


def test_each_prompt_may_choose_the_pivot_whose_tokens_are_masked(tokenizers, run):
    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(tokenizers.items())}
    running = run(build_for_any_pivot("toys", models))
    questions = ["One two three four five.", "La kvieta kamparano kuris.", "What comes next after January?"]
    for name, question in zip(models, questions, strict=True):
        teach(models[name], constrained(running, json_schema(SCHEMA), text=question).ids[name])
    listeners = [
        running.submit(constrained(running, json_schema(SCHEMA), text=text), max_tokens=200) for text in questions
    ]
    for listener in listeners:
        jsonschema.validate(json.loads(listener.wait().text), SCHEMA)
    assert [listener.last.pivot for listener in listeners] == [*models]


@pytest.mark.parametrize("method", ["given", "packllm-opt"])
@pytest.mark.parametrize("expert", ["almanac", "abacus", "lingvo", "twin"])
def test_the_first_token_is_what_it_is_where_the_pivot_was_known(tokenizers, run, expert, method):
    """Members are asked for so few tokens that without the mask none of them would be a digit."""
    kinds = {**tokenizers, "twin": tokenizers["almanac"]}
    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(kinds.items())}
    for model in models.values():
        model.member.k = 4
    fusion = FusionParams(weighting=Weighting(method), report=True)
    free, text = run(build_for_any_pivot("toys", models)), "One two three four five."
    prompt = constrained(free, regex("[0-9]{4}"), text=text)
    teach(models[expert], prompt.ids[expert])
    listener = free.submit(prompt, fusion, logprobs=3).wait()
    fixed = run(build_ensemble("fixed", models, expert, defaults=fusion))
    same = fixed.submit(constrained(fixed, regex("[0-9]{4}"), text=text), logprobs=3).wait()
    assert (listener.last.pivot, listener.last.error) == (expert, None)
    assert listener.ids == same.ids
    first, known = listener.last.rounds[0], same.last.rounds[0]
    assert first.mass == pytest.approx(known.mass)
    assert first.contribution == pytest.approx(known.contribution)


@pytest.mark.parametrize("lost", ["almanac", "abacus", "lingvo", None])
def test_members_may_leave_while_the_pivot_is_asked_again(tokenizers, run, lost):
    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(tokenizers.items())}
    running = run(build_for_any_pivot("toys", models, on_member_failure="degrade"))
    prompt = constrained(running, regex("[0-9]{4}"), text="One two three four five.")
    teach(models["lingvo"], prompt.ids["lingvo"])
    pivot = running.fuser.members["lingvo"]
    submit, asked = pivot.submit, threading.Event()

    def held(advances):
        pivot.hold = any(advance.keep for advance in advances)
        submit(advances)
        if pivot.hold:
            asked.set()

    pivot.submit = held
    listener = running.submit(prompt)
    assert asked.wait(30)
    if lost is None:
        running.fuser.cancel(listener.number)
    else:
        running.fuser.members[lost].fail()
    pivot.submit = submit
    pivot.hold = False
    pivot.release()
    if lost is None:
        while running.fuser.open_sequences():
            time.sleep(0.001)
        assert not listener.updates
        assert not any(member.cached for member in running.members())
    elif lost == "lingvo":
        assert "'lingvo' is down" in str(listener.wait().last.error)
    else:
        assert listener.wait().last.error is None
        assert listener.text.isdigit()
        assert set(listener.last.departed) == {lost}


def test_a_special_token_comes_where_the_grammar_names_it_and_nowhere_else(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    table = running.ensemble.first.grammar_table
    opener = table.special("<|im_start|>")
    tag = Tag("<|im_start|>", "", {"enum": ["a", "b"]}, "")
    called = running.submit(constrained(running, structural([tag], table, required=True, parallel=False))).wait()
    assert called.ids[0] == opener
    assert called.text in ('"a"', '"b"')
    free = running.submit(constrained(running, structural([tag], table)), logit_bias={opener: 100.0}).wait()
    assert opener in free.ids
    assert free.text.startswith('"')
    plain = running.submit(constrained(running, words=["zzz"]), logit_bias={opener: 100.0}, max_tokens=8).wait()
    assert opener not in plain.ids


@pytest.mark.parametrize("opened", [True, False])
def test_thoughts_may_come_before_an_answer_that_a_grammar_binds(tokenizers, run, opened):
    running = run(toy_ensemble(tokenizers, pivot="almanac"))
    table = running.ensemble.first.grammar_table
    grammar = after_thoughts(choice(["yes", "no"]), table, ("<think>", "</think>"), opened=opened)
    begin = "" if opened else "<think>"
    for text in (f"{begin}so so</think>\n\nyes", f"{begin}</think>no"):
        ids = table._encode(text)
        constraint = Constraint(table, grammar=grammar)
        assert constraint.fits(ids) == len(ids)
        for token in ids:
            constraint.take(token)
        assert constraint.accepting
    wrong = table._encode(f"{begin}so</think>maybe")
    assert Constraint(table, grammar=grammar).fits(wrong) < len(wrong)
    assert (Constraint(table, grammar=grammar).fits(table._encode("yes")) > 0) is True
    assert running.submit(constrained(running, grammar), max_tokens=30).wait().last.error is None


class Growing:
    """A constraint that becomes too complex once so many tokens are taken."""

    def __init__(self, inner, left):
        self.inner, self.left = inner, left

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def copy(self):
        return Growing(self.inner.copy(), self.left)

    def take(self, token):
        self.left -= 1
        self.inner.take(token)

    def bits(self):
        if self.left <= 0:
            raise InvalidRequestError("guided_regex: the grammar became too complex.", param="guided_regex")
        return self.inner.bits()


@pytest.mark.parametrize("left", [0, 3])
def test_a_grammar_that_becomes_too_complex_ends_its_sequence_alone(tokenizers, run, left):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = constrained(running, regex("[a-z]{30}"))
    growing = {pivot: Growing(constraint, left) for pivot, constraint in prompt.constraints.items()}
    failed = running.submit(replace(prompt, constraints=growing), max_tokens=40)
    other = running.submit(prompt, max_tokens=60)
    assert failed.wait().last.error.param == "guided_regex"
    assert len(other.wait().text) == 30
    assert running.fuser.open_sequences() == 0
