"""The record and the model card of a Bohdi run's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion.distill.bohdi.settings import Bohdi
from fusion.distill.bohdi.state import State
from fusion.distill.training.record import about_model, basics


def record(settings: Bohdi, state: State, inputs: str) -> dict[str, Any]:
    """The content of `distillation.json`. Models go by their last folder: paths mean nothing elsewhere."""
    learned = {round: state.trained.get(round, (0, None)) for round in range(1, settings.rounds + 1)}
    about = basics("bohdi", settings, inputs)
    about["settings"]["rules"]["exclude"] = [path.name for path in settings.rules.exclude]
    return about | {
        "leaders": {name: about_model(one) for name, one in settings.leaders.items()},
        "figures": {
            "samples": len(state.samples),
            "dropped": dict(state.dropped),
            "undecided": state.undecided,
            "rounds": {
                str(round): {
                    "questions": state.questions(round),
                    "source_won": state.rewards[round][1],
                    "target_won": state.rewards[round][0],
                    "reset": [list(path) for path in state.introspected.get(round, [])],
                    "learned_from": learned[round][0],
                    "steps": learned[round][1],
                    "shares": shares(state, round),
                }
                for round in range(1, settings.rounds + 1)
            },
        },
    }


def shares(state: State, round: int) -> dict[str, float]:
    """The share of a round's questions by the domains of the first level."""
    counts = state.by_first(round)
    total = counts.total()
    return {name: float(f"{number / total:.3f}") for name, number in counts.most_common()}


def model_card(settings: Bohdi, about: Mapping[str, Any]) -> str:
    """README.md of the result."""
    base = about["base"]["name"]
    sources = ", ".join(f"`{name}`" for name in settings.sources)
    leaders = ", ".join(f"`{name}`" for name in settings.asking)
    figures = about["figures"]
    rows = "\n".join(
        f"| {number} | {one['questions']} | {one['source_won']} | {one['target_won']} | {len(one['reset'])} | "
        f"{one['learned_from']} | {one['steps']} |"
        for number, one in figures["rounds"].items()
    )
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [bohdi, distillation, synthetic]
---
# {settings.name}

Distilled with Tutti after Bohdi (arXiv 2506.15721), with synthetic data only: {leaders} wrote questions about
domains ({settings.explore.draws} draws), `{base}` and {sources} answered, a judge ({settings.judge.by}) chose, and
`{base}` learned the best answers, round by round.

| round | questions | a source won | the target won | domains reset | learned from | steps |
|---|---|---|---|---|---|---|
{rows}

`distillation.json` has models, all settings, versions and figures.
"""
