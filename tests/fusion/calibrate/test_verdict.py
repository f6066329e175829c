"""The verdict: what the untouched questions can tell, in plain words."""

from __future__ import annotations

from fusion.calibrate.verdict import Result, disagreement, verdict, vote, warnings


def result(name, right, of=100, passes=1000.0):
    return Result(name, (1.0,) * right + (0.0,) * (of - right), 1000, passes, 10.0)


def test_a_clear_gain_pays_and_says_what_it_costs():
    found = verdict([result("ada alone", 50), result("ben alone", 40)], None, result("both", 80, passes=2400.0))
    assert found.pays is True
    assert found.sentence.startswith("Fusing pays: +30.0 points (")
    assert "at 2.4 x the cost of ada alone" in found.sentence


def test_a_small_gain_is_left_open_and_none_is_none():
    members = [result("ada alone", 50)]
    assert verdict(members, None, result("both", 51)).pays is None
    same = verdict(members, None, result("both", 50))
    assert same.pays is False
    assert "because ada alone is as good" in same.sentence
    worse = verdict(members, None, result("both", 20))
    assert worse.pays is False
    assert "because ada alone is better" in worse.sentence
    assert verdict(members, None, None).pays is False


def test_few_questions_tell_nothing_however_clear_they_are():
    found = verdict([result("ada alone", 0, of=9)], None, result("both", 9, of=9))
    assert found.pays is None
    assert found.sentence.startswith("Fusing may pay, but 9 questions are too few to tell: +100.0 points")


def test_votes_go_to_the_majority_and_ties_to_the_better_member():
    assert vote(["x", "y", "y"], [0, 1, 2]) in (1, 2)
    assert vote(["x", "y", "z"], [2, 0, 1]) == 2
    assert disagreement([["a", "a"], ["a", "b"]]) == 0.5
    assert disagreement([]) == 0.0


def test_unequal_members_are_warned_of():
    members = [result("ada alone", 90), result("ben alone", 10)]
    [one] = warnings(members, {})
    assert one.startswith("ben is 80.0 points behind ada")
    assert any("perplexity of ben" in sentence for sentence in warnings(members, {"ada": 5.0, "ben": 500000.0}))
    assert warnings([result("ada alone", 50), result("ben alone", 50)], {"ada": 5.0, "ben": 6.0}) == []
