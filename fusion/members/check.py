"""Start-up check: an engine must give equal results for a text at once and in parts, rollbacks included.

Every engine passes it before it serves. The answers are compared with the plain forward pass of the model, where
the engine can have one, or with the engine's own answer to the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fusion.core import Advance, AdvanceFailed, NextTokens, Task
from fusion.members.engine import Engine

Difference = Callable[[int, int, Sequence[int], NextTokens], float]
"""(text 0 or 1, tokens kept, tokens appended, answer) -> the largest difference from what is expected, in nats."""


class CheckFailedError(Exception):
    """An engine does not compute what it should; says how."""


class StartUpCheck:
    """Two texts of random tokens, and ways of running them that must give equal results.

    Attributes:
        texts: a long one and a short one, the same every time.
    """

    def __init__(self, known_ids: int, room: int) -> None:
        """Ids are below `known_ids`; `room` tokens hold both texts."""
        draw = np.random.default_rng(0)
        long, short = max(2, min(24, room * 2 // 3)), max(1, min(9, room // 3))
        self.texts: tuple[list[int], list[int]] = (
            draw.integers(known_ids, size=long).tolist(),
            draw.integers(known_ids, size=short).tolist(),
        )
        self._wrong = [(token + 1) % known_ids for token in self.texts[0][long // 2 :]]

    def run(self, engine: Engine, difference: Difference, *, together: bool = True) -> float:
        """Run ragged rows, a prompt in two parts, rollbacks, and single tokens; returns the worst difference.

        With `together` False the long text runs alone.

        Raises CheckFailedError where the engine fails at one.
        """
        (long, short), wrong = self.texts, self._wrong
        cut, end, last = len(long) // 2, len(long) - 1, len(short) - 1
        first = max(1, last)
        passes: list[list[tuple[int, int, list[int], bool]]] = [  # (text, keep, append, compared)
            [(0, 0, long[:cut], True), (1, 0, short[:first], True)],
            # Single tokens in turns: a model that keeps its state in its layers takes one text's for the other's.
            [(0, cut, long[cut : cut + 1], True), (1, first, short[first:], True)],
            [(0, cut + 1, long[cut + 1 :], True)],
            [(0, cut, wrong, False)],
            [(0, cut - 1, long[cut - 1 :], True), (1, last, short[last:], True)],
            [(0, end, long[end:], True), (1, last, short[last:], True)],
        ]
        worst = 0.0
        try:
            for batch in passes:
                some = [one for one in batch if one[2]]
                chosen = some if together and engine.capacity.sequences > 1 else some[:1]
                answers = run(engine, [Advance(1 + text, keep, append, "all") for text, keep, append, _ in chosen])
                for text, keep, append, compared in chosen:
                    if compared:
                        worst = max(worst, difference(text, keep, append, answers[1 + text]))
        finally:
            engine.close([1, 2])
        return worst


def run(engine: Engine, work: list[Task]) -> dict[int, NextTokens]:
    """Step an idle engine until it has answered; by sequence. Raises CheckFailedError if an advance fails."""
    engine.add(work)
    answers: dict[int, NextTokens] = {}
    while engine.has_work():
        for answer in engine.step():
            if isinstance(answer, AdvanceFailed):
                raise CheckFailedError(answer.reason)
            assert isinstance(answer, NextTokens)
            answers[answer.sequence] = answer
    return answers


def of_itself(engine: Engine, check: StartUpCheck) -> Difference:
    """Compare with the engine's own answers to the whole texts, which are run at once here."""
    wholes = []
    for text in check.texts:
        wholes.append(run(engine, [Advance(1, 0, text, "all")])[1])
        engine.close([1])

    def difference(text: int, keep: int, append: Sequence[int], answer: NextTokens) -> float:
        whole, rows = wholes[text], slice(keep, keep + len(append))
        worst = float(np.abs(whole.logprobs[rows, 0] - answer.logprobs[:, 0]).max())
        if answer.appended_logprobs is not None and len(append) > 1:
            assert whole.appended_logprobs is not None
            given = whole.appended_logprobs[keep : keep + len(append) - 1]
            worst = max(worst, float(np.abs(given - answer.appended_logprobs).max()))
        return worst if worst == worst else float("inf")

    return difference
