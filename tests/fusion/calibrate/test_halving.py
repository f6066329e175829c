"""Successive halving: more questions for fewer candidates, and what is left when time runs out."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fusion.calibrate.halving import FEWEST, OutOfTime, Standing, planned, ranked, rungs, search


@given(candidates=st.integers(1, 100), questions=st.integers(1, 1000))
def test_rungs_double_up_to_all_questions(candidates, questions):
    sizes = rungs(candidates, questions)
    assert sizes[-1] == questions
    assert all(2 * one <= other <= 2 * one + 1 for one, other in pairwise(sizes))
    assert sizes[0] >= min(FEWEST, questions)


def measured(quality, asked, stop_after=None):
    def measure(name, size):
        if stop_after is not None and len(asked) >= stop_after:
            raise OutOfTime
        asked.append((name, size))
        return Standing(name, (quality[name],) * size, 1.0)

    return measure


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 1), min_size=1, max_size=20))
def test_the_best_one_wins_and_the_worse_half_is_asked_no_more(quality):
    asked = []
    found = search(list(quality), 64, measured(quality, asked))
    assert found[0].mean >= max(quality.values()) - 0.03
    assert {one.candidate for one in found} == set(quality)
    assert len(quality) == 1 or sum(size == 64 for _, size in asked) < max(len(quality), 3)


@given(candidates=st.integers(1, 100), questions=st.integers(1, 200))
def test_a_search_takes_what_was_planned(candidates, questions):
    asked = []
    search(range(candidates), questions, measured([0.5] * candidates, asked))
    assert sum(dict(asked).values()) == planned(candidates, questions)


def test_time_that_runs_out_leaves_what_was_measured():
    quality = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.4}
    assert search(list(quality), 64, measured(quality, [], 0)) == []
    assert [one.candidate for one in search(list(quality), 64, measured(quality, [], 2))] == ["b", "a"]
    assert [one.candidate for one in search(list(quality), 64, measured(quality, [], 5))] == ["b", "c", "d", "a"]


def test_one_that_never_answers_is_last():
    silent, wrong = Standing("silent", (0.0,), float("inf")), Standing("wrong", (0.0,), 9.0)
    assert [one.candidate for one in ranked([silent, wrong])] == ["wrong", "silent"]


def test_of_equals_the_cheaper_one_is_first():
    dear, cheap, bad = (
        Standing("dear", (0.802,), 3.0),
        Standing("cheap", (0.8,), 2.0),
        Standing("bad", (0.5,), 1.0),
    )
    assert [one.candidate for one in ranked([bad, dear, cheap])] == ["cheap", "dear", "bad"]


def test_a_worst_task_costs_its_shortfall_and_small_differences_of_cost_nothing():
    uneven, even = Standing("uneven", (0.9,), 2.0, shortfall=0.05), Standing("even", (0.88,), 2.0)
    assert [one.candidate for one in ranked([uneven, even])] == ["even", "uneven"]
    better, as_dear = Standing("better", (0.9,), 20.9), Standing("as dear", (0.896,), 20.0)
    assert [one.candidate for one in ranked([as_dear, better])] == ["better", "as dear"]
    behind, level = Standing("behind", (0.9,), 2.0, behind=0.02), Standing("level", (0.896,), 2.0)
    assert [one.candidate for one in ranked([behind, level])] == ["level", "behind"]
