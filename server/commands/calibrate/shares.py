"""Shares of the questions: one to choose a configuration on, and one that stays untouched until it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from server.commands.evaluate.questions import Question


def shares(questions: Sequence[Question], development: float, seed: int) -> tuple[list[Question], list[Question]]:
    """The development share and the rest. Of every task as many, drawn by `seed`; tasks take turns in both."""
    rng = np.random.default_rng(seed)
    first: list[list[Question]] = []
    second: list[list[Question]] = []
    for task in dict.fromkeys(question.task for question in questions):
        own = [question for question in questions if question.task == task]
        own = [own[index] for index in rng.permutation(len(own))]
        size = min(max(round(development * len(own)), 1), max(len(own) - 1, 1))
        first.append(own[:size])
        second.append(own[size:])
    return _in_turn(first), _in_turn(second)


def _in_turn(tasks: list[list[Question]]) -> list[Question]:
    return [question for row in zip_longest(*tasks) for question in row if question is not None]
