"""A policy decides who is asked; members that rest catch up in one advance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fusion.options import FusionParams
from fusion.policy.gates import Confident, Draw
from fusion.policy.policy import ALL, Ask
from tests.support.toy_fuser import toy_ensemble

EVERY = 4


class Sometimes:
    """Asks everyone for every fourth token, and the pivot alone for the others."""

    def ask(self, sequence):
        return Ask() if sequence.length % EVERY == 0 else Ask((sequence.view.pivot,))

    def answered(self, sequence):
        return None


class Persuaded(Sometimes):
    """Asks the pivot, and once it has answered everyone else as well."""

    def ask(self, sequence):
        return Ask((sequence.view.pivot,))

    def answered(self, sequence):
        return Ask() if len(sequence.voters) < len(sequence.seats) else None


@pytest.fixture
def with_policy(monkeypatch, tokenizers, run):
    def start(policy, pivot):
        monkeypatch.setattr("fusion.sequence.sequence.policy_of", lambda fusion: policy())
        return run(toy_ensemble(tokenizers, pivot=pivot))

    return start


@pytest.mark.parametrize("pivot", ["lingvo", "almanac"])
def test_a_member_that_rests_catches_up_in_one_advance(with_policy, pivot):
    running = with_policy(Sometimes, pivot)
    listener = running.submit(fusion=FusionParams(report=True), max_tokens=24, temperature=1.0, seed=3).wait()
    reports = listener.last.rounds
    assert len(reports) == 24
    for number, report in enumerate(reports):
        everyone = number % EVERY == 0
        assert len(report.weights) == (3 if everyone else 1)
    for member in running.members():
        advances = sum(map(len, member.submitted))
        assert advances == 24 if member.name == pivot else advances <= 24 // EVERY + 1


@pytest.mark.parametrize("pivot", ["lingvo", "almanac"])
def test_members_asked_later_in_a_round_see_the_same_text(with_policy, tokenizers, run, monkeypatch, pivot):
    """Asking one after the other changes nothing about the answer."""
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 5}
    plain = run(toy_ensemble(tokenizers, pivot=pivot)).submit(**options).wait()
    later = with_policy(Persuaded, pivot).submit(**options).wait()
    assert (plain.ids, plain.text) == (later.ids, later.text)


def test_inside_a_character_the_leader_is_sure_of_what_comes_next_of_it():
    """Its newest answer is from before the character, and says nothing of the byte that is to come."""
    row = np.array([[7, 8]]), np.log(np.array([[0.95, 0.05]], np.float32))
    after = np.array([[1, 2]]), np.log(np.array([[0.6, 0.4]], np.float32))
    seat = SimpleNamespace(latest=SimpleNamespace(ids=row[0], logprobs=row[1]), inside=None)
    view = SimpleNamespace(vocabulary_size=9)
    sequence = led_by(seat, view)
    assert Confident(0.9).answered(sequence) is None
    seat.inside = after
    assert Confident(0.9).answered(sequence) == ALL
    assert Confident(0.5).answered(sequence) is None


@pytest.mark.parametrize(
    ("rest", "sure"), [([0.06, 0.03], False), ([0.095, 0.004], True), ([], False), ([0.1], True)]
)
def test_the_leader_is_not_sure_of_an_end_that_must_not_come(rest, sure):
    """As before `min_tokens`: of the rest it may think anything."""
    seat, view = SimpleNamespace(latest=answer(0.9, *rest), inside=None), SimpleNamespace(vocabulary_size=9)
    assert Confident(0.8, 0.2).answered(led_by(seat, view)) is None
    assert Confident(0.8, 0.2).answered(led_by(seat, view, forbidden={0})) == (None if sure else ALL)


def only_text(*special):
    """A constraint that admits any text, and none of these special tokens."""
    return SimpleNamespace(is_open=False, admits_any_text=True, allowed=lambda ids: ~np.isin(ids, special))


@pytest.mark.parametrize(("rest", "sure"), [([0.06, 0.03], False), ([0.095, 0.004], True)])
def test_the_leader_is_not_sure_of_a_special_token_that_must_not_come(rest, sure):
    latest = answer(0.9, *rest)
    view = SimpleNamespace(vocabulary_size=9, follows_ids=lambda name: False)
    seat = SimpleNamespace(latest=latest, inside=None)
    assert Confident(0.8, 0.2).answered(led_by(seat, view, constraint=only_text(5))) is None
    assert Confident(0.8, 0.2).answered(led_by(seat, view, constraint=only_text(0))) == (None if sure else ALL)


def test_the_leader_is_as_sure_as_it_is_among_what_a_grammar_admits():
    """A member with the pivot's ids lists nothing else, so that most of its probability may be missing."""
    seat = SimpleNamespace(latest=answer(0.0198, 0.0002), inside=None)
    view = SimpleNamespace(vocabulary_size=9, follows_ids=lambda name: True)
    assert Confident(0.9).answered(led_by(seat, view, constraint=only_text(5))) is None
    assert Confident(0.995).answered(led_by(seat, view, constraint=only_text(5))) == ALL


def test_everyone_is_asked_where_the_member_that_was_drawn_says_what_must_not_come():
    seat, view = SimpleNamespace(latest=answer(0.9, 0.1), inside=None), SimpleNamespace(vocabulary_size=9)
    assert Draw().answered(led_by(seat, view)) is None
    assert Draw().answered(led_by(seat, view, constraint=only_text(0))) is None
    assert Draw().answered(led_by(seat, view, constraint=only_text(0, 1))) == ALL


def test_where_any_text_may_come_the_leader_is_the_member_that_was_followed():
    seats = dict.fromkeys("pm")
    sequence = SimpleNamespace(
        view=SimpleNamespace(pivot="p"),
        followed=SimpleNamespace(share={"p": 0.1, "m": 0.9}.get),
        seats=seats,
        weights=dict.fromkeys(seats, 0.5),
        constraint=only_text(0),
    )
    assert Confident(0.5).ask(sequence) == Ask(("m",))
    sequence.constraint.admits_any_text = False
    assert Confident(0.5).ask(sequence) == Ask(("p",))


def answer(*probabilities):
    row = np.array([probabilities], np.float32)
    return SimpleNamespace(ids=np.arange(row.size)[None], logprobs=np.log(row))


def led_by(seat, view, forbidden=frozenset(), constraint=None):
    ends = SimpleNamespace(forbidden=lambda length: forbidden)
    return SimpleNamespace(
        asked=Ask(("m",)),
        seats={"m": seat},
        view=view,
        map_of=lambda name: None,
        ends=ends,
        length=3,
        constraint=constraint,
    )
