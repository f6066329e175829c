"""Running models that are asked many things at a time, in JSON where that is wanted, and for probabilities."""

from __future__ import annotations

import json

import pytest
import torch

from fusion.distill.bohdi import wording
from fusion.distill.bohdi.settings import JUDGES
from fusion.distill.bohdi.voices import Panel, Request, open_voices
from fusion.distill.training.reading import open_tokenizer
from fusion.distill.training.train import load_student
from fusion.options import SamplingParams


@pytest.fixture(scope="module")
def sources(models):
    return {"ada": models.base, **models.sources}


@pytest.fixture(scope="module")
def voices(sources):
    with open_voices(sources, Panel(("ada", "ben"), "ada", "exact")) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(sources):
    with open_voices(sources, Panel(("ada",), "ada", "exact")) as opened:
        yield opened


def test_replies_come_in_the_order_of_the_requests_and_the_same_for_a_seed(voices):
    def requests():
        for number in range(12):
            model = ("ada", "ben", JUDGES)[number % 3]
            yield Request(model, f"the cat {number}", SamplingParams(max_tokens=8, seed=number))

    replies = voices.ask(list(requests()))
    assert len({reply.text for reply in replies}) > 6
    assert all(reply.error is None for reply in replies)
    assert voices.ask(list(requests())) == replies


def test_a_schema_is_kept_to_by_every_model(voices):
    schema = wording.best_of(3)
    requests = [
        Request(name, "which?", SamplingParams(max_tokens=32, seed=1), schema) for name in ("ada", "ben", JUDGES)
    ]
    for reply in voices.ask(requests):
        assert json.loads(reply.text)["best"] in (1, 2, 3)
        assert reply.finished


def test_an_answer_at_the_longest_length_is_not_finished(voices):
    (reply,) = voices.ask([Request("ada", "the", SamplingParams(max_tokens=2, temperature=0.0))])
    assert not reply.finished


def test_a_request_that_does_not_fit_has_an_error_and_the_others_go_on(voices):
    long = Request("ada", "cat " * 400, SamplingParams(max_tokens=2))
    short = Request("ada", "cat", SamplingParams(max_tokens=2))
    refused, answered = voices.ask([long, short])
    assert "context" in refused.error
    assert answered.error is None


def test_a_probability_is_that_of_the_answer_and_its_end(alone, sources):
    student = load_student(sources["ada"])
    tokenizer, stops = open_tokenizer(sources["ada"])
    pairs = [("the cat", "sees the house"), ("red", "blue"), ("here", "ĉ!")]
    found = alone.log_probabilities(pairs)
    for (question, answer), value in zip(pairs, found, strict=True):
        asked = [{"role": "user", "content": question}]
        begin = tokenizer.encode_chat(asked, add_generation_prompt=True)
        ids = tokenizer.encode_chat(
            [*asked, {"role": "assistant", "content": answer}], add_generation_prompt=False
        )
        end = next(at for at in range(len(begin), len(ids)) if ids[at] in stops) + 1
        with torch.no_grad():
            logprobs = student(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[at - 1, ids[at]]) for at in range(len(begin), end))
        assert value == pytest.approx(expected, abs=1e-3)


def test_an_ensemble_has_probabilities_of_its_own_and_none_of_what_it_cannot_read(voices, alone):
    pairs = [("the cat", "sees the house")]
    assert voices.log_probabilities(pairs)[0] != pytest.approx(alone.log_probabilities(pairs)[0], abs=1e-3)
    assert voices.log_probabilities([("cat " * 400, "sees")]) == [None]
