"""The record and the model card of a result: sources, data, settings, versions, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion.distill.fusechat.settings import FuseChat
from fusion.distill.training.conversations import Conversations
from fusion.distill.training.curve import Entry
from fusion.distill.training.record import basics


def record(
    settings: FuseChat,
    conversations: Conversations,
    inputs: str,
    curves: Mapping[str, Sequence[Entry]],
    coverage: Mapping[str, Any],
    merged: Mapping[str, Any],
    unread: Mapping[str, int],
) -> dict[str, Any]:
    """The content of `distillation.json`. Models go by their last folder: paths mean nothing elsewhere.

    `unread` are the conversations that each reader could not read.
    """
    weights = merged.get("weights", {})
    shares = [sum(values) / len(weights) for values in zip(*weights.values(), strict=True)] if weights else []
    return basics("fusechat", settings, inputs) | {
        "data": {
            "digest": conversations.digest,
            "conversations": len(conversations.messages),
            "without_answer": conversations.without_answer,
            "unread": dict(unread),
            "held_out": settings.data.held_out,
        },
        "figures": {
            "targets": {
                name: {
                    "steps": max((int(entry["step"]) for entry in curve), default=0),
                    "held_out_loss": _held_out_loss(settings, curve),
                    **coverage.get(name, {}),
                }
                for name, curve in curves.items()
            },
            "merge_weights": dict(zip(settings.targets, shares, strict=False)),
        },
    }


def _held_out_loss(settings: FuseChat, curve: Sequence[Entry]) -> float | None:
    """That of the weights that were kept: the lowest where training stops by it, else the last."""
    losses = [float(entry["held_out"]) for entry in curve if "held_out" in entry]
    if not losses:
        return None
    return losses[-1] if settings.train.patience is None else min(losses)


def model_card(settings: FuseChat, about: Mapping[str, Any]) -> str:
    """README.md of the result."""
    base = about["base"]["name"]
    sources = ", ".join(f"`{name}`" for name in settings.sources)
    rows = "\n".join(
        f"| {name} | {', '.join(settings.targets[name].teachers)} | {figures['steps']} | "
        f"{_number(figures['held_out_loss'])} |"
        for name, figures in about["figures"]["targets"].items()
    )
    method, data = settings.merge.method, about["data"]
    left_out = ", ".join(f"{number} by `{name}`" for name, number in data["unread"].items() if number)
    conversations = f"{data['conversations']} conversations" + (f" (not read: {left_out})" if left_out else "")
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [fusechat, distillation, merge]
---
# {settings.name}

Distilled with Tutti after FuseChat (arXiv 2408.07990): `{base}` was trained towards the aligned next-token
distributions of {sources}, once for each target below, and the targets were merged in parameter space ({method}).

| target | teachers | steps | held-out loss |
|---|---|---|---|
{rows}

Alignment: {settings.align.method}. Loss: {settings.train.lm_weight:g} of language modelling on the answers,
{1 - settings.train.lm_weight:g} of fusion ({settings.train.loss}). Data: {conversations}.
`distillation.json` has sources, data digest, all settings, versions and figures.
"""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
