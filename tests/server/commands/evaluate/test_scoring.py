"""Right answers, chrF and intervals: what counts as right, and how sure a score is."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.calibrate.intervals import bootstrap
from server.commands.evaluate.scoring import chosen_letter, chrf, is_right, last_number, said, score
from tests.support.questions import question


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("Anna has 12 + 7 = 19 apples. The answer is 19.", 19),
        ("That is $1,234.50", Decimal("1234.5")),
        ("-5", -5),
        ("It is −5 degrees.", -5),
        ("x = -2", -2),
        ("10-3", 3),
        ("10 - 3", 3),
        ("on pages 3-4", 4),
        ("1,2,3", 3),
        ("0.0", 0),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_an_answer(answer, number):
    assert last_number(answer) == number


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12), st.text()
)
def test_a_number_is_found_behind_any_text_however_it_is_written(number, before):
    for spelling in (f"{number:f}", f"{number:,f}"):
        assert last_number(f"{before}\n= {spelling}.") == number


@given(st.integers(), st.integers())
def test_a_number_is_right_exactly_if_it_is_the_same_number(said, wanted):
    assert is_right(question(str(wanted)), f"So the answer is {said}.") == (said == wanted)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B. water", "B"),
        (" (B) water", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("A good guess is B", "B"),
        ("Not A, so B", "B"),
        ("E", None),
        ("water", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_chooses(answer, letter):
    assert chosen_letter(answer, "ABCD") == letter


def test_a_question_asks_for_a_letter_a_number_or_a_text():
    assert question("A", choices=("A", "B")).matching == "choice"
    assert question("1,200").matching == "last_number"
    assert question("7", "seven").matching == "exact"


@given(st.text())
def test_white_space_does_not_make_a_text_wrong(text):
    reference = f"The {text} cat."
    assert is_right(question("another", reference), "\n The\t" + reference.removeprefix("The ") + "  ")
    assert not is_right(question(reference), reference + "!")


def test_chrf_compares_with_the_closest_reference():
    both = question("La kato dormas.", "The cat sleeps.")
    assert chrf(both, "The cat sleeps.") == 100
    assert 0 < chrf(both, "The cat slept.") < 100
    assert chrf(both, "") == 0
    assert chrf(question("7"), "7") is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_holds_the_mean_and_is_the_same_every_time(values):
    estimate = bootstrap(values)
    assert estimate == bootstrap(values)
    assert min(values) - 1e-9 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= max(values) + 1e-9


def test_an_interval_is_as_wide_as_theory_says():
    """400 coin flips: the standard error is 0.5 / 20, the interval 1.96 of these to either side."""
    estimate = bootstrap([0.0, 1.0] * 200)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)


SENTENCE = "The capital of France is **Paris**."


@pytest.mark.parametrize(
    ("match", "answer", "right"),
    [
        ("exact", "Paris", True),
        ("exact", " Paris\n", True),
        ("exact", "paris", False),
        ("exact", SENTENCE, False),
        ("normalized", "paris.", True),
        ("normalized", "The Paris", True),
        ("normalized", SENTENCE, False),
        ("contains", SENTENCE, True),
        ("contains", "PARIS!", True),
        ("contains", "Parisian fashion", False),
        ("contains", "", False),
    ],
)
def test_a_text_can_be_matched_in_three_ways(match, answer, right):
    assert is_right(replace(question("Paris"), match=match), answer) is right


def test_a_question_may_ask_for_another_way_than_its_references_suggest():
    seven = question("7")
    assert is_right(seven, "5 + 2 = 7")
    assert not is_right(replace(seven, match="exact"), "5 + 2 = 7")
    assert chrf(replace(seven, match="exact"), "7") == 100
    assert is_right(replace(seven, match="contains"), "7 of them, or 8")
    options = question("B", choices=("A", "B"))
    assert is_right(options, "B. water")
    assert not is_right(replace(options, match="exact"), "B. water")


@given(st.text(), st.text())
def test_what_is_exactly_right_is_right_in_every_looser_way(before, after):
    reference = f"{before}x{after}"
    for match in ("normalized", "contains"):
        assert is_right(replace(question(reference), match=match), f" {reference}\n")


def test_metrics_of_texts_are_shares_of_one():
    asked = replace(question("the cat sat", "a cat"), metric="f1")
    assert score(asked, "the cat sat") == 1
    assert 0 < score(asked, "the cat ran") < 1
    assert score(replace(asked, metric="chrf"), "the cat sat") == pytest.approx(1)
    assert score(replace(asked, metric="bleu"), "nothing alike") < 0.2
    assert score(replace(asked, metric="match"), "the  cat sat") == 1
    assert said(asked, "The CAT, sat.") == said(asked, "cat sat")
    assert said(asked, " . ") is None
    counted = question("18")
    assert said(counted, "It is 18.") == said(counted, "18.00")
    assert said(counted, "I do not know") is None
