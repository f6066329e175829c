"""The last resort: no cache at all, every pass runs a sequence from its first token."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fusion.members.transformers.forward.base import Forward, Part


class WholeForward(Forward):
    """Plain forward passes over whole texts; implements `forward.Forward`.

    It works whatever a model keeps between calls. The time of a token grows with the length of its text.
    """

    path = "without cache"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._texts: dict[int, list[int]] = {}
        self._few_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def run(self, parts: list[Part]) -> tuple[list[int], Tensor | None]:
        """As `Forward.run`; parts that are not scored only wait for those that are."""
        found = []
        for part in parts:
            text = self._texts.setdefault(part.sequence, [])
            text[part.first :] = part.ids
            if part.scored:
                most = len(part.ids) - part.scored[0]
                arguments = {"logits_to_keep": most} if self._few_logits else {}
                ids = torch.tensor([text], device=self._model.device)
                logits = self._model(input_ids=ids, use_cache=False, **arguments).logits[0, -most:]
                found.append(logits[[index - part.scored[0] for index in part.scored]].float())
        return list(range(len(parts))), torch.cat(found) if found else None

    def rollback(self, sequence: int, keep: int) -> None:
        """Shorten the text."""
        if sequence in self._texts:
            del self._texts[sequence][keep:]

    def forget(self, sequence: int) -> None:
        """Drop the text."""
        self._texts.pop(sequence, None)
