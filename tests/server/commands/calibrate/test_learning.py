"""The right answers that weights are learned from."""

from __future__ import annotations

from server.commands.calibrate.learning import with_references
from server.commands.evaluate.questions import Question


def references(questions: list[Question], answers: list[list[str]]) -> list[str | None]:
    return [None if one is None else one.reference for one in with_references(questions, answers)]


def test_of_texts_that_are_likened_the_first_reference_counts_whatever_the_members_say():
    texts = Question("1", "describe", "Describe it.", ("A pub.", "An inn."), metric="chrf")
    assert references([texts], [["An inn.", "no"]]) == ["A pub."]


def test_of_texts_that_are_matched_a_right_answer_counts_as_it_was_written():
    """With the space that a member's tokenizer puts before it, say."""
    texts = Question("1", "describe", "Describe it.", ("A pub.", "An inn."))
    assert references([texts], [["  An inn.", "no"]]) == ["  An inn."]
    assert references([texts], [["no", "no"]]) == ["A pub."]


def test_of_numbers_the_answer_of_the_member_counts_that_is_right_most_often():
    sums = [Question(str(n), "sums", f"What is {n} + 1?", (str(n + 1),)) for n in range(3)]
    answers = [["0 + 1 = 1", "It is 1."], ["I say 7", "It is 2."], ["5", "6"]]
    assert references(sums, answers) == ["It is 1.", "It is 2.", None]


def test_of_choices_a_right_answer_counts():
    choice = Question("1", "facts", "Which?\nA. x\nB. y", ("B",), ("A", "B"))
    assert references([choice], [["A", "(B) y"]]) == ["(B) y"]
    assert references([choice], [["A", "A"]]) == [None]
