"""What is drafted from a text's own past, against a look at all of it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

import fusion.policy.ngram as ngram
from fusion.policy.ngram import Ngram, PromptTable


def latest(tokens, sizes=(4, 3, 2)):
    """Where the tokens go on after the longest of these ends of them that stood there before, the last time."""
    for size in sizes:
        for at in reversed(range(size, len(tokens))):
            if tokens[at - size : at] == tokens[-size:]:
                return at
    return None


@pytest.mark.parametrize("seed", range(30))
def test_a_draft_is_what_followed_the_longest_match_the_last_time(monkeypatch, seed):
    monkeypatch.setattr(ngram, "draftable", lambda sequence, tokens: tuple(tokens))
    rng = random.Random(seed)
    vocabulary = [rng.randrange(1 << 18) for _ in range(rng.choice([1, 2, 3, 8, 40]))]
    prompt = rng.choices(vocabulary, k=rng.choice([0, 1, 2, 3, 4, 5, 60]))
    sequence = SimpleNamespace(
        prompt=SimpleNamespace(ids={"a": prompt}), view=SimpleNamespace(pivot="a"), tokens=[], company=1
    )
    policy = Ngram()
    for _ in range(60):
        text = [*prompt, *sequence.tokens]
        at, drafted = latest(text), policy.ask(sequence).draft
        assert list(drafted) == (text[at : at + len(drafted)] if at is not None else [])
        assert bool(drafted) == (at is not None)
        sequence.tokens = [*sequence.tokens, *rng.choices(vocabulary, k=rng.choice([1, 1, 3]))]


def test_the_answers_to_a_prompt_share_what_is_known_of_it():
    prompt = [1, 2, 3, 1, 2]
    table = PromptTable.of(prompt)
    assert PromptTable.of(prompt) is table
    assert PromptTable.of(list(prompt)) is not table
    assert table.longest([1, 2]) == (2, 2)
    assert table.longest([7, 3, 1, 2]) == (2, 2), "nothing follows it the second time"
    assert table.longest([2, 3, 1]) == (3, 4)
    assert table.longest([2]) is None
