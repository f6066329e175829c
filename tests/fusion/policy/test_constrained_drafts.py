"""Drafts under a grammar, lists of ids, banned words and biases change no answer either."""

from __future__ import annotations

import json
from itertools import pairwise

import jsonschema
import numpy as np
import pytest

from fusion.options import FusionParams
from fusion.sampling import BAN
from fusion.sequence.grammar import json_schema, regex
from tests.support.constrained_prompts import constrained
from tests.support.drafted_answers import Scripted, accepted_drafts, guesses, same, says
from tests.support.toy_fuser import toy_ensemble

REPORT = FusionParams(report=True)
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["green", "yellow", "a dark and heavy blue"]},
        "requires_attention": {"type": "boolean"},
        "größe": {"type": "integer", "minimum": 0, "maximum": 99999},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["colour", "requires_attention", "größe", "note"],
    "additionalProperties": False,
}
KINDS = ["schema", "expression", "words", "listed", "bias", "biased schema"]


def limited(running, kind):
    """A prompt whose answers are limited in one way, and what the request adds."""
    pivot = running.ensemble.pivot
    tokenizer = running.ensemble.models[pivot].tokenizer
    rng = np.random.default_rng(4)
    favoured = {int(id): 4.0 for id in rng.integers(300, 2000, size=20)}
    bias = favoured | {int(id): BAN for id in rng.integers(300, 2000, size=400)}
    letters = [id for id, text in enumerate(tokenizer.surfaces) if text and text.isalpha()]
    match kind:
        case "schema":
            return constrained(running, json_schema(SCHEMA)), {}
        case "expression":
            return constrained(running, regex("(The answer is: [0-9]{2,9}(, or so|, exactly)[.] )+")), {}
        case "words":
            return constrained(running, words=["e", "th"]), {}
        case "listed":
            return constrained(running, allowed_ids=letters), {}
        case "bias":
            return running.ensemble.encode_text("Hello"), {"logit_bias": bias}
    return constrained(running, json_schema(SCHEMA)), {"logit_bias": bias}


@pytest.mark.parametrize("drafter", ["right", "wrong", "random"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pivot", ["lingvo", "almanac"])
def test_drafts_under_a_constraint_change_no_answer(tokenizers, run, monkeypatch, pivot, kind, drafter):
    running = run(toy_ensemble(tokenizers, pivot=pivot, defaults=REPORT))
    prompt, more = limited(running, kind)
    options = {"max_tokens": 60, "temperature": 1.0, "seed": 6, "logprobs": 2, **more}
    plain = running.submit(prompt, **options).wait()
    assert plain.last.error is None
    assert plain.last.finish == "stop" or "schema" not in kind
    policy = Scripted(guesses(plain.ids, tokenizers[pivot].vocabulary_size)[drafter])
    monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy)
    drafted = running.submit(prompt, **options).wait()
    same(drafted, plain)
    accepted = sum(accepted for _, accepted in policy.went)
    assert accepted == 0 if drafter == "wrong" else accepted > 0
    assert sum(r.drafted for r in drafted.last.rounds) >= accepted
    if "schema" in kind:
        jsonschema.validate(json.loads(drafted.text), SCHEMA)


def test_a_draft_goes_over_what_a_grammar_forces(tokenizers, run, monkeypatch):
    """Forced tokens within a draft are nobody's choice: they come with the token before them."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=REPORT))
    prompt, _ = limited(running, "schema")
    plain = running.submit(prompt, max_tokens=80).wait()
    policy = Scripted(guesses(plain.ids, 2560, ahead=24)["right"])
    monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy)
    drafted = running.submit(prompt, max_tokens=80).wait()
    same(drafted, plain)
    rounds = drafted.last.rounds
    chosen = [at for at, one in enumerate(rounds) if one.ran]
    over = [(a, b) for a, b in pairwise(chosen) if b > a + 1 and rounds[a].drafted and rounds[b].drafted]
    assert over, "forced tokens stand between two that were drafted"


@pytest.mark.parametrize("draft", ["ngram", "auto", "almanac", "lingvo"])
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_every_drafter_drafts_under_a_constraint(tokenizers, run, monkeypatch, draft, temperature):
    went = accepted_drafts(monkeypatch)
    running = run(toy_ensemble(tokenizers, pivot="lingvo", defaults=REPORT))
    prompt = constrained(running, regex("[a-z0-9 ,.]{20,}"), words=["thorn"])
    for model in running.ensemble.models.values():
        says("a rose is a rose is a rose, and naive noses know a rose is a rose. 123 123 123", model, prompt)
    more = {"logit_bias": {500: 1.0, 701: BAN}, "frequency_penalty": 0.1}
    options = {"max_tokens": 60, "temperature": temperature, "seed": 2, **more}
    fusion = FusionParams(report=True, draft=draft)
    plain = running.submit(prompt, **options).wait()
    drafted = running.submit(prompt, fusion, **options).wait()
    same(drafted, plain)
    assert sum(went) > 0
    together = [running.submit(prompt, fusion if i % 2 else None, **options) for i in range(4)]
    for one in together:
        same(one.wait(), plain)
