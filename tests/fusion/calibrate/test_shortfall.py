"""Shortfall: a lead of the best member in one task counts, as far as it is no chance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.calibrate.shortfall import shortfall


def test_one_question_lost_is_chance_and_many_are_not():
    tasks = ["a"] * 50
    right = [1.0] * 50
    assert shortfall([0.0, *right[1:]], [right], tasks) == pytest.approx((1 / 50, 0))
    assert shortfall([0.0] * 4 + right[4:], [right], tasks) == pytest.approx((4 / 50, 2 / 50))
    assert shortfall([0.0] * 50, [right], tasks) == pytest.approx((1, 1 - 1 / 50**0.5))


def test_the_worst_task_and_the_best_member_in_it_decide():
    tasks = ["a", "b"] * 16
    first, second = [1.0, 0.0] * 16, [0.0, 1.0] * 16
    assert shortfall([1.0, 0.5] * 16, [first, second], tasks) == pytest.approx((0.5, 0.5 - 0.5 / 4))
    assert shortfall([1.0, 1.0] * 16, [first, second], tasks) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_it_is_no_larger_than_the_lead_and_nothing_without_members(rows):
    tasks, own, other = (list(column) for column in zip(*rows, strict=True))
    leads = [sum(b - a for task, a, b in rows if task == one) / tasks.count(one) for one in dict.fromkeys(tasks)]
    lead, certain = shortfall(own, [other], tasks)
    assert 0 <= certain <= lead == pytest.approx(max(0.0, *leads))
    assert shortfall(own, [], tasks) == (0, 0)
