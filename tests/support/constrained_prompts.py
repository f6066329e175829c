"""Prompts whose answers are limited, for any pivot of an ensemble."""

from __future__ import annotations

from dataclasses import replace

from fusion.core import Prompt
from fusion.sequence.constraint import BadWords, Constraint
from fusion.sequence.grammar import Grammar
from fusion.sequence.thoughts import Budget
from tests.support.toy_fuser import Running


def constrained(
    running: Running,
    grammar: Grammar | None = None,
    *,
    words=(),
    text="Hello",
    budget: Budget | None = None,
    **options,
) -> Prompt:
    """A prompt whose answers are limited."""
    ensemble = running.ensemble
    prompt = ensemble.encode_chat([{"role": "user", "content": text}], locate=ensemble.scores(ensemble.defaults))
    constraints = {
        pivot: Constraint(
            view.grammar_table,
            grammar=grammar,
            bad_words=BadWords(words, view.grammar_table) if words else None,
            thoughts=budget.of(view.grammar_table) if budget else None,
            **options,
        )
        for pivot, view in ensemble.views.items()
    }
    return replace(prompt, constraints=constraints)
