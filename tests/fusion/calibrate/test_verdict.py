"""The verdict: what the untouched questions can tell, in plain words."""

from __future__ import annotations

from fusion.calibrate.intervals import chance
from fusion.calibrate.verdict import Result, disagreement, verdict, vote, warnings


def result(name, right, of=100, passes=1000.0):
    return Result(name, (1.0,) * right + (0.0,) * (of - right), 1000, passes, 10.0)


def test_a_clear_gain_pays_and_says_what_it_costs():
    found = verdict(
        [result("ada alone", 50), result("ben alone", 40)], None, result("both", 80, passes=2400.0), best=0
    )
    assert found.pays is True
    assert found.sentence.startswith("Fusing pays: +30.0 points (")
    assert "at 2.4 x the cost of ada alone" in found.sentence


def test_a_small_gain_is_left_open_and_none_is_none():
    members = [result("ada alone", 50)]
    assert verdict(members, None, result("both", 51), best=0).pays is None
    same = verdict(members, None, result("both", 50), best=0)
    assert same.pays is False
    assert "because ada alone is as good" in same.sentence
    worse = verdict(members, None, result("both", 20), best=0)
    assert worse.pays is False
    assert "because ada alone is better" in worse.sentence
    assert verdict(members, None, None, best=0).pays is False


def test_the_member_that_was_best_before_is_the_one_to_beat():
    """Not the one that these questions happen to favour."""
    members = [result("ada alone", 50), result("ben alone", 55)]
    assert "x the cost of ada alone" in verdict(members, None, result("both", 80), best=0).sentence


def test_four_questions_more_are_no_gain_however_alike_the_rest_is():
    """Of 200, where the bootstrap leaves out 0: by chance this comes about once in sixteen times."""
    members = [result("ada alone", 100, of=200)]
    found = verdict(members, None, result("both", 104, of=200), best=0)
    assert found.gain.low > 0
    assert found.pays is None
    assert verdict(members, None, result("both", 106, of=200), best=0).pays is True
    assert chance([1, 1, 1, 1], [0, 0, 0, 0]) == 1 / 16
    assert chance([1, 0], [1, 0]) == 1.0


def test_few_questions_tell_nothing_however_clear_they_are():
    found = verdict([result("ada alone", 0, of=9)], None, result("both", 9, of=9), best=0)
    assert found.pays is None
    assert found.sentence.startswith("Fusing may pay, but 9 questions are too few to tell: +100.0 points")


def test_votes_go_to_the_majority_and_ties_to_the_better_member():
    assert vote(["x", "y", "y"], [0, 1, 2]) in (1, 2)
    assert vote(["x", "y", "z"], [2, 0, 1]) == 2
    assert vote([None, None, "x"], [0, 1, 2]) == 2
    assert vote([None, None], [1, 0]) == 1
    assert disagreement([["a", "a"], ["a", "b"]]) == 0.5
    assert disagreement([]) == 0.0


def test_unequal_members_are_warned_of():
    members = [result("ada alone", 90), result("ben alone", 10)]
    [one] = warnings(members, {})
    assert one.startswith("ben is 80.0 points behind ada")
    assert any("perplexity of ben" in sentence for sentence in warnings(members, {"ada": 5.0, "ben": 500000.0}))
    assert warnings([result("ada alone", 50), result("ben alone", 50)], {"ada": 5.0, "ben": 6.0}) == []
