"""When a sequence ends, and what of it is told."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.options import FusionParams
from tests.support.toy_fuser import toy_model


@pytest.fixture
def script(tokenizers, run):
    """An ensemble of one that says a given text, then its end token."""

    def start(text: str):
        tokenizer = tokenizers["lingvo"]
        model = toy_model(tokenizer, "speaker", seed=0)
        running = run(build_ensemble("speaker", {"speaker": model}, "speaker"))
        prompt = running.ensemble.encode_chat([{"role": "user", "content": "Hi"}])
        ids = tokenizer.encode(text, add_special_tokens=False) + list(model.stop_ids)

        def distribution(tokens):
            said = len(tokens) - len(prompt.ids["speaker"])
            p = np.full(tokenizer.vocabulary_size, 1e-9)
            p[tokenizer.encode(" never", add_special_tokens=False)[0]] = 0.01
            spoken = ids[said] if said < len(ids) else model.stop_ids[0]
            p[spoken] = 0.0
            p[spoken] = 1 - p.sum()
            return np.log(p).astype(np.float32)

        model.member.distribution = distribution
        return running, prompt, ids

    return start


def test_the_end_token_ends_it(script):
    running, prompt, ids = script("one two three")
    listener = running.submit(prompt, max_tokens=50).wait()
    assert (listener.text, listener.last.finish, listener.last.stop_reason) == ("one two three", "stop", None)
    assert listener.ids == ids


def test_max_tokens_ends_it(script):
    running, prompt, ids = script("one two three four five six seven")
    listener = running.submit(prompt, max_tokens=3).wait()
    assert listener.last.finish == "length"
    assert listener.ids == ids[:3]


@pytest.mark.parametrize("stop", ["two", "o th", "wo three fo", "e f"])
def test_a_stop_string_ends_it_across_tokens(script, stop):
    text = "one two three four"
    running, prompt, _ = script(text)
    listener = running.submit(prompt, max_tokens=50, stop=("zzz", stop)).wait()
    assert listener.text == text[: text.index(stop)]
    assert (listener.last.finish, listener.last.stop_reason) == ("stop", stop)
    included = running.submit(prompt, max_tokens=50, stop=(stop,), include_stop=True).wait()
    assert included.text == text[: text.index(stop)] + stop


def test_a_stop_token_ends_it_and_is_named(script):
    running, prompt, ids = script("one two three")
    listener = running.submit(prompt, max_tokens=50, stop_token_ids=(ids[1],)).wait()
    assert (listener.last.finish, listener.last.stop_reason) == ("stop", ids[1])
    assert listener.ids == ids[:2]
    assert listener.text == running.ensemble.first.surface(ids[0]).decode()


def test_min_tokens_holds_off_the_end(script):
    running, prompt, ids = script("one")
    listener = running.submit(prompt, max_tokens=50, min_tokens=len(ids) + 3).wait()
    assert len(listener.ids) == len(ids) + 4
    assert not set(listener.ids[:-1]) & running.ensemble.stop_ids


def test_ignore_eos_goes_on_to_max_tokens(script):
    running, prompt, _ = script("one")
    listener = running.submit(prompt, max_tokens=9, ignore_eos=True).wait()
    assert (len(listener.ids), listener.last.finish) == (9, "length")


def test_an_end_token_named_as_a_stop_token_ends_it_even_when_ends_are_ignored(script):
    running, prompt, ids = script("one")
    listener = running.submit(prompt, max_tokens=9, ignore_eos=True, stop_token_ids=(ids[-1],)).wait()
    assert (listener.ids, listener.last.finish) == (ids, "stop")


def test_text_of_the_updates_is_the_text_of_the_tokens(script):
    text = "naïve 🎉 café 中文 "
    running, prompt, _ = script(text)
    listener = running.submit(prompt, max_tokens=80).wait()
    assert listener.text == text
    assert b"".join(t.chosen.surface for u in listener.updates for t in u.tokens).decode() == text
    assert all("\ufffd" not in u.text for u in listener.updates)


def test_the_limit_leaves_no_part_of_a_character(script):
    """The answer ends with the last whole one, as its rounds' updates do; the tokens keep all their bytes."""
    text = "café 🎉"
    running, prompt, ids = script(text)
    for limit in range(1, len(ids)):
        listener = running.submit(prompt, max_tokens=limit).wait()
        data = b"".join(t.chosen.surface for u in listener.updates for t in u.tokens)
        assert listener.last.finish == "length"
        assert data == text.encode()[: len(data)]
        assert listener.text == data.decode(errors="ignore")


def test_logprobs_are_those_of_the_fused_distribution(script):
    running, prompt, _ = script("one two")
    listener = running.submit(prompt, FusionParams(), max_tokens=50, logprobs=2, temperature=1.0, seed=0).wait()
    for update in listener.updates:
        (token,) = update.tokens
        assert token.chosen.logprob == pytest.approx(np.log(0.99), abs=1e-3)
        assert [t.logprob for t in token.top] == pytest.approx(np.log([0.99, 0.01]), abs=1e-3)
        assert token.top[0].id == token.chosen.id
    assert running.submit(prompt, max_tokens=5).wait().updates[0].tokens[0].top == ()
