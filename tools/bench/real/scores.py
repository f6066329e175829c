"""Scores: each model reads each text once; every fusion of them is then a computation on what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from alignment.methods.method import ModelVocabulary
from alignment.text.boundaries import Located
from fusion.assembly.checkpoints import read_vocabulary
from fusion.core import NextTokens, Prompt
from fusion.ensemble import Model
from fusion.members.checkpoint import load_model, resolved
from fusion.options import EngineOptions
from fusion.prompt.scoring import ScoredPrompt


@dataclass(frozen=True)
class Scored:
    """A model's vocabulary, and for each text its tokens, where they stand, and the answer to all of them."""

    vocabulary: ModelVocabulary
    texts: Sequence[str]
    tokens: list[tuple[list[int], Located]]
    answers: list[NextTokens]

    @property
    def bits_per_byte(self) -> float:
        """Of the model alone."""
        nats = -sum(float(answer.appended_logprobs.sum()) for answer in self.answers)
        return nats / sum(len(text.encode()) for text in self.texts) / float(np.log(2))

    def model(self, name: str) -> Model:
        """A member that has said everything it will."""
        tokenizer = self.vocabulary.tokenizer
        member: Any = SimpleNamespace(name=name, vocabulary_size=tokenizer.vocabulary_size)
        return Model(member, tokenizer, self.vocabulary.stop_ids, self.vocabulary.source)

    def prompt(self, index: int) -> ScoredPrompt:
        """One text as the engine would have scored it."""
        ids = np.array(self.tokens[index][0], np.int32)
        return ScoredPrompt(ids, np.arange(len(ids) - 1), self.answers[index])


def score(source: Path, texts: Sequence[str], best: int = EngineOptions.candidates) -> Scored:
    """Read every text with the checkpoint in a folder or GGUF file, in float32."""
    folder, revision = resolved(str(source))
    vocabulary = read_vocabulary(folder)
    cpu = torch.device("cpu")
    model: Any = load_model(folder, dtype=torch.float32, device=cpu, revision=revision, trust_remote_code=False)
    tokens = [vocabulary.tokenizer.locate(text, add_special_tokens=True) for text in texts]
    return Scored(vocabulary, texts, tokens, [_answer(model, ids, best) for ids, _ in tokens])


def _answer(model: Any, ids: list[int], best: int) -> NextTokens:
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    values, places = logprobs.topk(best, dim=-1)
    given = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return NextTokens(0, places.to(torch.int32).numpy(), values.numpy(), given.numpy())


def joint_prompt(scored: dict[str, Scored], index: int) -> Prompt:
    """One text in every member's tokens."""
    tokens = {name: one.tokens[index] for name, one in scored.items()}
    located = {name: places for name, (_, places) in tokens.items()}
    return Prompt({name: ids for name, (ids, _) in tokens.items()}, dict.fromkeys(scored, b""), located)
