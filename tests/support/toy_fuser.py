"""A fuser over toy members, and the answers of its sequences."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Capacity, Delta, End, Prompt
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.options import FusionParams, SamplingParams
from tests.support.toy_members import ToyMember, seeded

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "models"
ROOMY = Capacity(context=1024, cache_tokens=100_000, sequences=64)


def toy_model(
    tokenizer: Tokenizer, name: str, *, seed: int, capacity: Capacity = ROOMY, sharpness: float = 3.0
) -> Model:
    size = tokenizer.vocabulary_size
    member = ToyMember(name, seeded(size, seed, sharpness), size, capacity)
    return Model(member, tokenizer, (tokenizer.hf.eos_token_id,), f"toy:{seed}")


def toy_ensemble(
    tokenizers, *, pivot: str, capacity: Capacity = ROOMY, defaults=None, on_member_failure="fail"
) -> Ensemble:
    models = {
        name: toy_model(tokenizer, name, seed=i, capacity=capacity)
        for i, (name, tokenizer) in enumerate(tokenizers.items())
    }
    return build_ensemble("toys", models, pivot, defaults=defaults, on_member_failure=on_member_failure)


def teach(model: Model, ids: list[int], boost: float = 6.0) -> None:
    """Make a toy expect these tokens."""
    plain = model.member.distribution

    def distribution(tokens):
        logits = plain(tokens).astype(np.float64)
        if len(tokens) < len(ids) and tokens == ids[: len(tokens)]:
            logits[ids[len(tokens)]] += boost
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    model.member.distribution = distribution


@dataclass
class Listener:
    """Collects the updates of one sequence."""

    updates: list[Delta] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, update: Delta) -> None:
        assert not self.done.is_set(), "no update may follow the last one"
        self.updates.append(update)
        if isinstance(update, End):
            self.done.set()

    def wait(self) -> Listener:
        assert self.done.wait(30), "the sequence did not end"
        return self

    @property
    def ids(self) -> list[int]:
        return [token.chosen.id for update in self.updates for token in update.tokens]

    @property
    def text(self) -> str:
        return "".join(update.text for update in self.updates)

    @property
    def last(self) -> End:
        return self.updates[-1]


@dataclass
class Running:
    """A started fuser with shorthands."""

    fuser: Fuser
    ensemble: Ensemble

    def submit(
        self,
        prompt: str | Prompt = "Hello",
        fusion: FusionParams | None = None,
        *,
        flow: str = "",
        listener: Listener | None = None,
        **sampling,
    ) -> Listener:
        sampling = {"max_tokens": 12, "temperature": 0.0, **sampling}
        if isinstance(prompt, str):
            prompt = self.ensemble.encode_chat([{"role": "user", "content": prompt}])
        listener = listener or Listener()
        listener.number = self.fuser.submit(
            self.ensemble,
            prompt,
            SamplingParams(**sampling),
            fusion or self.ensemble.defaults,
            flow=flow,
            on_update=listener,
        )
        return listener

    def members(self) -> list[ToyMember]:
        return list(self.fuser.members.values())
