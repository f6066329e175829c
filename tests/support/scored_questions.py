"""Questions of two tasks whose references two or three members predict with known skill."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion.calibrate.references import Question, Rows, Scored
from fusion.learned.features import PromptLosses
from fusion.learned.weights import Fingerprint
from fusion.options import FusionParams
from fusion.step import Candidates

TEXTS = {
    "sums": "Add up these numbers: {n} and {n}. What is the sum of number {n}?",
    "towns": "Name the capital of the country called {n} land, please, and {n} its river.",
}
UNITS, IDS = 12, 5


def fingerprints(members: int) -> dict[str, Fingerprint]:
    return {name: Fingerprint(f"c{name}", f"t{name}") for name in "abcd"[:members]}


def scored(skill: Mapping[str, list[float]], each: int, *, seed: int = 0) -> list[Scored]:
    """`each` questions of each task, whose members predict a unit of text with about this probability."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(each):
        for task, probabilities in skill.items():
            given = np.clip(
                np.array(probabilities) + 0.02 * rng.standard_normal((UNITS, len(probabilities))), 1e-3, 1
            )
            rows = np.repeat(((1 - given) / (IDS - 1))[:, :, None], IDS, axis=2)
            rows[:, :, 0] = given
            text = TEXTS[task].format(n=number * 7 + 3)
            losses = 3.0 + 0.1 * rng.standard_normal(len(probabilities))
            found.append(
                Scored(
                    Question(text, "yes", task),
                    text,
                    PromptLosses(losses, losses),
                    np.tile(losses, (len(losses), 1)),
                    given,
                    Rows.of(
                        Candidates(np.tile(np.arange(IDS), (UNITS, 1)), rows),
                        np.zeros(UNITS, np.int64),
                        0,
                        np.zeros(len(probabilities), np.bool_),
                        FusionParams(),
                    ),
                )
            )
    return found
