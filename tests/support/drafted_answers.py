"""Drafters of all kinds for answers that are known, and the comparison of an answer with that of plain rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.options import FusionParams
from fusion.policy.pace import Pace
from fusion.policy.policy import ALL, Ask
from fusion.sequence.steps import draftable


class Scripted:
    """Drafts what `guess` makes of the tokens so far."""

    def __init__(self, guess) -> None:
        self.guess = guess
        self.went: list[tuple[int, int]] = []

    def ask(self, sequence):
        draft = draftable(sequence, self.guess(sequence.tokens))
        return Ask(None, draft) if draft else ALL

    def answered(self, sequence):
        return None

    def checked(self, drafted, accepted):
        self.went.append((drafted, accepted))


def same(one, other, within: float = 1e-5) -> None:
    assert (one.text, one.ids) == (other.text, other.ids)
    assert (one.last.finish, one.last.stop_reason) == (other.last.finish, other.last.stop_reason)
    for mine, theirs in zip(one.updates, other.updates, strict=True):
        for token, its in zip(mine.tokens, theirs.tokens, strict=True):
            assert [t.id for t in token.top] == [t.id for t in its.top]
            assert token.chosen.logprob == pytest.approx(its.chosen.logprob, abs=within, nan_ok=True)
    assert [r.token for r in one.last.rounds] == [r.token for r in other.last.rounds]
    for mine, theirs in zip(one.last.rounds, other.last.rounds, strict=True):
        assert (mine.kept, mine.rolled_back) == (theirs.kept, theirs.rolled_back)
        assert mine.contribution == pytest.approx(theirs.contribution, abs=within)


def guesses(right, vocabulary, ahead=6):
    """Drafters that are always right, always wrong, and sometimes right, for answers that are known."""
    rng = np.random.default_rng(1)

    def coming(tokens):
        return right[len(tokens) : len(tokens) + ahead]

    def mixed(tokens):
        return [t if rng.random() < 0.7 else int(rng.integers(vocabulary)) for t in coming(tokens)]

    return {
        "right": coming,
        "wrong": lambda tokens: [(t + 1) % vocabulary for t in coming(tokens)],
        "random": mixed,
    }


def accepted_drafts(monkeypatch) -> list[int]:
    """How many tokens of each draft were accepted, of every drafter from now on."""
    went: list[int] = []
    checked = Pace.checked
    monkeypatch.setattr(Pace, "checked", lambda *args: (went.append(args[2]), checked(*args))[1])
    return went


def drafts_change_nothing(running, vocabulary: int, monkeypatch) -> None:
    """Right, wrong and random drafts of any members, and their own, give the answer of plain rounds."""
    sampling = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.8, "seed": 5}
    fusion = FusionParams(report=True)
    plain = running.submit("Hello", fusion, **sampling).wait()
    for draft in ("auto", "ngram"):
        same(running.submit("Hello", replace(fusion, draft=draft), **sampling).wait(), plain)
    for kind, guess in guesses(plain.ids, vocabulary).items():
        policy = Scripted(guess)
        with monkeypatch.context() as patch:
            patch.setattr("fusion.sequence.sequence.policy_of", lambda fusion, policy=policy: policy)
            same(running.submit("Hello", fusion, **sampling).wait(), plain)
        assert (sum(accepted for _, accepted in policy.went) > 0) == (kind != "wrong")


def says(text, model, prompt):
    """Lets a toy member say a text in its own tokens, with some doubt."""
    tokenizer, start = model.tokenizer, len(prompt.ids[model.name])
    doubts = np.random.default_rng(len(model.name)).normal(size=tokenizer.vocabulary_size) * 1.5
    known = {}  # all answers come by the same texts

    def distribution(tokens):
        if tuple(tokens) not in known:
            said = tokenizer.surface_of(tokens[start:])
            rest = text.encode().removeprefix(said)
            scores = np.roll(doubts, np.random.default_rng(tokens).integers(len(doubts)))
            if rest != text.encode() or not said:
                ids = tokenizer.encode(rest.decode(errors="ignore"), add_special_tokens=False)
                scores[ids[:1]] = 12.0 + len(said) % 3 * 3
            known[tuple(tokens)] = (scores - np.log(np.exp(scores).sum())).astype(np.float32)
        return known[tuple(tokens)]

    model.member.distribution = distribution
