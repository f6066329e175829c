"""Learned weights made by hand: words of a prompt that speak for a member."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion.learned.features import bucket
from fusion.learned.vocabulary import NEAREST, Prototypes, Vocabulary
from fusion.learned.weights import TEXT, About, Fingerprint, LearnedWeights


def by_words(
    experts: Mapping[str, str],
    members: Mapping[str, Fingerprint] | list[str],
    *,
    kind: str = TEXT,
    score: float = 9.0,
) -> LearnedWeights:
    """Weights by which each of these words sends a prompt to its member; prompts without any get equal ones."""
    known = members if isinstance(members, Mapping) else {name: Fingerprint(name, name) for name in members}
    names = list(known)
    rows = sorted((bucket(word), names.index(member)) for word, member in experts.items())
    buckets = np.array([at for at, _ in rows], np.int32)
    text = np.zeros((len(rows), len(names)), np.float32)
    text[np.arange(len(rows)), [member for _, member in rows]] = score
    numeric = 2 * len(names) + 2
    about = About(dict(known), kind, "mixture", 1.0, 0.05, {}, 20, ("words",), ())
    ones = np.ones(len(rows), np.float32)
    vocabulary = Vocabulary(buckets, ones)
    seen = [vocabulary.look_up([word]) for word in experts]
    return LearnedWeights(
        about,
        vocabulary,
        np.zeros(len(names)),
        text,
        np.zeros((numeric, len(names))),
        np.stack([np.zeros(numeric), np.ones(numeric)]),
        Prototypes.of([one for one in seen for _ in range(NEAREST)]),
    )
