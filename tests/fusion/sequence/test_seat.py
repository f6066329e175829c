"""Seat: what an engine is given where a draft that was taken back has changed tokens of the text before it."""

from __future__ import annotations

import pytest

from alignment.spelling import Spelling
from fusion.sequence.seat import Seat


@pytest.fixture
def seat(tokenizers):
    return Seat(3, Spelling(tokenizers["abacus"]), 100)


def engine(seat, held, text):
    """What the engine holds of the answer once it has been given a text."""
    edit = seat.given(seat.extend([0], text.encode()))
    assert edit.keep <= len(held), "it keeps what it has"
    return held[: edit.keep] + edit.append


@pytest.mark.parametrize("drafted", [["y"], ["yw", "here"], ["ywhere", " else"], [" thing"]])
@pytest.mark.parametrize("after", ["", "t", " else", "ywhere", "body"])
def test_after_a_draft_the_engine_holds_the_tokens_of_the_text(seat, drafted, after):
    held = engine(seat, engine(seat, [], "an"), " ever")
    seat.point()
    for part in drafted:
        held = engine(seat, held, part)
        seat.point()
    seat.back_to(seat.points[0])
    seat.points = []
    seat.point()  # another draft, which is taken back at once
    seat.back_to(seat.points[0])
    seat.points = []
    held = engine(seat, held, f"{after}.")
    assert held == seat.spelling.ids
