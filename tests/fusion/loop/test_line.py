"""The waiting line is bounded, and nobody's requests alone keep the others out of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import OverloadedError
from fusion.loop.line import Line, most_of_one_flow


def sequence(flow, number=0):
    return SimpleNamespace(flow=flow, number=number)


def fill(line, flow):
    """Join until it is refused; returns how many did."""
    for joined in range(line.limit + 1):
        try:
            line.put(sequence(flow))
        except OverloadedError:
            return joined
    raise AssertionError("the line takes more than its limit")


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 10, 256])
def test_one_flow_gets_most_of_the_line_and_what_is_promised(limit):
    assert fill(Line(limit), "many") == most_of_one_flow(limit) <= limit


def test_a_newcomer_finds_a_place_beside_one_that_takes_all_it_gets():
    line = Line(256)
    assert fill(line, "many") == 205
    with pytest.raises(OverloadedError, match="205 of your sequences are waiting already"):
        line.put(sequence("many"))
    assert fill(line, "second") == 41
    assert fill(line, "third") == 8
    assert fill(line, "fourth") == 2


def test_places_that_come_free_go_to_those_who_have_fewer():
    line = Line(100)
    many = [sequence("many", number) for number in range(80)]
    for one in many:
        line.put(one)
    assert fill(line, "few") == 16
    for one in many[:10]:
        line.remove(one)
    with pytest.raises(OverloadedError):
        line.put(sequence("many"))
    line.put(sequence("few"))


@given(st.integers(0, 12), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_never_more_than_the_limit_whoever_comes_and_goes(limit, events):
    line, waiting = Line(limit), []
    for flow, joins in events:
        if joins:
            try:
                line.put(one := sequence(flow, len(waiting)))
            except OverloadedError:
                continue
            waiting.append(one)
        elif waiting:
            line.remove(waiting.pop(0))
        assert len(line) == len(waiting) <= limit
        assert {id(one) for one in line.in_turn()} == {id(one) for one in waiting}
