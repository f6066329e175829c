"""Verdict: whether fusing pays, in plain words, from scores on questions that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.calibrate.intervals import Estimate, bootstrap, chance, difference

FEWEST = 10  # questions from which on an interval says anything
APART = 10.0  # times the perplexity of another member's from which on equal weights are warned of


@dataclass(frozen=True, slots=True)
class Result:
    """One way to answer, on the untouched questions.

    Attributes:
        name: of the candidate, or of voting.
        scores: 0 to 1, one per question.
        tokens: emitted for all questions.
        passes: member passes for all questions.
        seconds: for all questions.
    """

    name: str
    scores: tuple[float, ...]
    tokens: int
    passes: float
    seconds: float

    @property
    def points(self) -> Estimate:
        """The mean score in points of 100, with its interval."""
        return bootstrap([100 * score for score in self.scores])

    @property
    def passes_per_question(self) -> float:
        """Member passes for a question."""
        return self.passes / max(1, len(self.scores))

    @property
    def milliseconds_per_token(self) -> float:
        """Time for a token of the answers."""
        return 1e3 * self.seconds / max(1, self.tokens)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence, and whether fusing pays: True, False, or None where the questions cannot tell."""

    pays: bool | None
    sentence: str
    gain: Estimate


def verdict(members: Sequence[Result], voting: Result | None, chosen: Result | None, *, best: int) -> Verdict:
    """Compare the chosen ensemble with the best member, and with voting, question by question.

    `best` is the index of the member that was best on the questions that the ensemble was chosen on: the best on
    these would be so by chance as well.
    """
    alone = members[best]
    name = alone.name.removesuffix(" alone")
    if chosen is None or chosen.name in [member.name for member in members]:
        nothing = Estimate(0.0, 0.0, 0.0)
        return Verdict(False, f"Fusing does not pay here: no ensemble answered better than {alone.name}.", nothing)
    gain = difference([100 * s for s in chosen.scores], [100 * s for s in alone.scores])
    cost = chosen.passes_per_question / max(alone.passes_per_question, 1e-9)
    text = (
        f"{gain.mean:+.1f} points ({gain.low:+.1f} to {gain.high:+.1f}) at {cost:.1f} x the cost of {name} alone"
    )
    if voting is not None:
        over = difference([100 * s for s in chosen.scores], [100 * s for s in voting.scores])
        text += f", {over.mean:+.1f} over a vote of the members"
    if len(chosen.scores) < FEWEST:
        return Verdict(
            None, f"Fusing may pay, but {len(chosen.scores)} questions are too few to tell: {text}.", gain
        )
    if gain.low > 0 and chance(chosen.scores, alone.scores) <= 0.025:
        return Verdict(True, f"Fusing pays: {text}.", gain)
    if gain.high <= 0 or gain.mean <= 0:
        why = f"{name} alone is as good" if gain.high >= 0 else f"{name} alone is better"
        return Verdict(False, f"Fusing does not pay here, because {why}: {text}.", gain)
    return Verdict(None, f"Fusing may pay, but the questions are too few to tell: {text}.", gain)


def vote(answers: Sequence[str | None], by_rank: Sequence[int]) -> int:
    """The index of an answer that most members gave; of equals the one of the member that ranks first.

    `by_rank` holds the members' indices, best first. None is no answer, and wins only where there is no other.
    """
    times = {index: 0 if answers[index] is None else answers.count(answers[index]) for index in by_rank}
    return max(by_rank, key=lambda index: (times[index], -list(by_rank).index(index)))


def disagreement(answers: Sequence[Sequence[str | None]]) -> float:
    """The share of questions that not all members answer alike; answers [Q][M]."""
    return float(np.mean([len(set(each)) > 1 for each in answers])) if answers else 0.0


def warnings(members: Sequence[Result], perplexity: Mapping[str, float]) -> list[str]:
    """Sentences on members that are unequal: by their scores, and by their perplexity of the prompts."""
    found = []
    best = max(members, key=lambda result: float(np.mean(result.scores)))
    for member in members:
        behind = difference([100 * s for s in best.scores], [100 * s for s in member.scores])
        if behind.low > 10:
            found.append(
                f"{member.name.removesuffix(' alone')} is {behind.mean:.1f} points behind "
                f"{best.name.removesuffix(' alone')}: beside a much weaker member equal weights can cost more "
                "than they bring."
            )
    if perplexity:
        low = min(perplexity, key=lambda name: perplexity[name])
        for name, value in perplexity.items():
            if value > APART * perplexity[low]:
                found.append(
                    f"The perplexity of {name} on the prompts is {value / perplexity[low]:,.0f} times that of "
                    f"{low}: leave it out, or measure the weights on the prompt."
                )
    return found
