"""Saying: engines of random parameters that give answers known in advance, at the cost of real passes.

Random models neither copy their prompts nor agree with each other. Here every forward pass is run as it is, and
then the logit of the token that the answer goes on with is raised.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from alignment.text.tokenizer import Tokenizer
from fusion.ensemble import Ensemble, Model
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.members.transformers.forward.base import Part

SURE = 25.0  # added to a logit, in a vocabulary whose logits are about 1
UNSURE = 10.0
READ_AHEAD = 32  # characters that are tokenised for the next token
END = 2


class Saying:
    """The forward pass of an engine, and the answers that it is to give, by prompt in the member's tokens.

    `wrong` is the share of positions at which it is not sure, and prefers another token.
    """

    def __init__(self, engine: TransformersEngine, tokenizer: Tokenizer, wrong: float) -> None:
        self.answers: dict[tuple[int, ...], str] = {}
        self._tokenizer = tokenizer
        self._wrong = wrong
        self._texts: dict[int, list[int]] = {}
        self._known: dict[int, tuple[int, bytes]] = {}  # by sequence: tokens of its prompt, and the answer
        self._forward = engine._forward
        self._forgets = self._forward.forget
        self._forward.forget = self._forget  # type: ignore[method-assign]
        self._runs = self._forward.run
        self._forward.run = self._run  # type: ignore[method-assign]

    def _run(self, parts: list[Part]) -> tuple[list[int], torch.Tensor | None]:
        order, logits = self._runs(parts)
        row = 0
        for part in (parts[i] for i in order):
            text = self._texts.setdefault(part.sequence, [])
            text[part.first :] = part.ids
            if part.sequence not in self._known and tuple(text) in self.answers:
                self._known[part.sequence] = len(text), self.answers[tuple(text)].encode()
            for index in part.scored:
                if logits is not None and part.sequence in self._known:
                    token, boost = self._next(text[: part.first + index + 1], *self._known[part.sequence])
                    logits[row, token] += boost
                row += 1
        return order, logits

    def _next(self, text: list[int], start: int, answer: bytes) -> tuple[int, float]:
        said = self._tokenizer.surface_of(text[start:])
        rest = answer.removeprefix(said)
        if not rest or (said and rest == answer):
            return END, SURE
        drawn = int.from_bytes(hashlib.sha256(answer + str(len(said)).encode()).digest()[:4], "big") / 2**32
        if drawn < self._wrong:
            return END + 1 + int(drawn * 1e4) % 1000, UNSURE
        ahead = self._tokenizer.continuation.encode(rest.decode(errors="ignore")[:READ_AHEAD])
        return ahead[0], SURE

    def _forget(self, sequence: int) -> None:
        self._texts.pop(sequence, None)
        self._known.pop(sequence, None)
        self._forgets(sequence)


def load(
    folders: dict[str, Path],
    sequences: int,
    wrong: dict[str, float],
    *,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[dict[str, Model], list[Saying]]:
    """Members over checkpoints, and what makes them say their answers; `wrong` is by member, 0 by default."""
    models, saying = {}, {}
    for name, folder in folders.items():
        engine = TransformersEngine.load(
            str(folder), dtype=dtype, device=device, cache_tokens=sequences * 1024, max_sequences=sequences
        )
        tokenizer = Tokenizer.load(str(folder))
        models[name] = Model(InlineMember(name, engine), tokenizer, (END,), str(folder))
        saying[name] = Saying(engine, tokenizer, wrong.get(name, 0.0))
    return models, list(saying.values())


def expect(ensemble: Ensemble, saying: list[Saying], prompt: str, answer: str) -> None:
    """Have every member answer a prompt with this text."""
    ids = ensemble.encode_text(prompt).ids
    for name, one in zip(ensemble.models, saying, strict=True):
        one.answers[tuple(ids[name])] = answer
