"""An ensemble of one, and of the same checkpoint twice, decodes exactly as transformers' own `generate` does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.checkpoints import read_vocabulary
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End, Prompt
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.checkpoint import quiet
from fusion.members.hosts.inline import InlineMember
from fusion.members.transformers.engine import TransformersEngine
from fusion.options import SamplingParams
from tests.support.demo import MODELS, questions, user

PROMPTS = 32
LENGTH = 64
AT_A_TIME = 16

Answers = dict[tuple[int, int], list[int]]  # by prompt and `min_tokens`


@dataclass
class Site:
    """A checkpoint in two engines, and what `generate` answers: until the end token, and for all of LENGTH."""

    fuser: Fuser
    ensembles: dict[str, Ensemble]
    prompts: list[list[int]]
    expected: Answers


@pytest.fixture(scope="module", params=sorted(folder.name for folder in MODELS.iterdir()))
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    source = str(MODELS / request.param)
    tokenizer = Tokenizer.load(source)
    ends = read_vocabulary(source).stop_ids

    def model(name: str) -> Model:
        engine = TransformersEngine.load(source, cache_tokens=4096)
        return Model(InlineMember(name, engine), tokenizer, ends, source)

    models = {name: model(name) for name in ("first", "second")}
    ensembles = {
        "one": build_ensemble("one", {"first": models["first"]}, "first"),
        "twice": build_ensemble("twice", models, "first"),
    }
    prompts = [tokenizer.encode_chat(user(text)) for text in questions(PROMPTS)]
    fuser = Fuser({name: model.member for name, model in models.items()})
    fuser.start()
    yield Site(fuser, ensembles, prompts, references(source, prompts, ends))
    fuser.stop()


def references(source: str, prompts: list[list[int]], ends: tuple[int, ...]) -> Answers:
    """Greedy answers of `generate`, up to and including the end token.

    All prompts share a batch, padded on the left, because that takes a tenth of the time. The shortest, which is
    padded most, and the longest are generated alone as well, so that the batch is known to give the same.
    """
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def generate(batch: list[list[int]], least: int) -> list[list[int]]:
        width = max(map(len, batch))
        ids = torch.tensor([[ends[0]] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            rows = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=LENGTH, min_new_tokens=least
            )
        return [until_end(row, ends) for row in rows[:, width:].tolist()]

    answers: Answers = {}
    for least in (0, LENGTH):
        rows = generate(prompts, least)
        answers |= {(index, least): row for index, row in enumerate(rows)}
        by_length = sorted(range(PROMPTS), key=lambda index: len(prompts[index]))
        for index in (by_length[0], by_length[-1]):
            assert generate([prompts[index]], least) == [rows[index]]
    return answers


def until_end(ids: list[int], ends: tuple[int, ...]) -> list[int]:
    first = min((ids.index(end) for end in ends if end in ids), default=len(ids))
    return ids[: first + 1]


@dataclass
class Run:
    """Requests to one ensemble, so many at a time, in the order given."""

    site: Site
    ensemble: Ensemble
    at_a_time: int
    answers: Answers = field(default_factory=dict)
    problems: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = threading.Semaphore(self.at_a_time)

    def answer(self, requests: list[tuple[int, int]]) -> Answers:
        for request in requests:
            assert self.places.acquire(timeout=60)
            self.submit(request)
        for _ in range(self.at_a_time):
            assert self.places.acquire(timeout=60)
        assert not self.problems
        assert self.site.fuser.open_sequences() == self.site.fuser.waiting_sequences() == 0
        return self.answers

    def submit(self, request: tuple[int, int]) -> None:
        index, least = request
        ids = self.answers[request] = []

        def take(update: Delta) -> None:
            ids.extend(token.chosen.id for token in update.tokens)
            if isinstance(update, End) and update.error is not None:
                self.problems.append(update.error)
            if isinstance(update, End):
                self.places.release()

        names = list(self.ensemble.models)
        prompt = Prompt(dict.fromkeys(names, self.site.prompts[index]), dict.fromkeys(names, b""))
        sampling = SamplingParams(max_tokens=LENGTH, min_tokens=least, temperature=0.0)
        self.site.fuser.submit(self.ensemble, prompt, sampling, self.ensemble.defaults, on_update=take)


@pytest.mark.parametrize("size", ["one", "twice"])
def test_alone_token_for_token(site: Site, size: str) -> None:
    """One prompt after another, all to the full length: every sixth, since each token takes a round of its own."""
    requests = [(index, LENGTH) for index in range(0, PROMPTS, 6)]
    answers = Run(site, site.ensembles[size], at_a_time=1).answer(requests)
    assert answers == {request: site.expected[request] for request in requests}


@pytest.mark.parametrize("size", ["one", "twice"])
def test_sixteen_at_a_time_in_any_order_token_for_token(site: Site, size: str) -> None:
    requests = list(site.expected)
    random.Random(size).shuffle(requests)
    assert Run(site, site.ensembles[size], AT_A_TIME).answer(requests) == site.expected


def test_what_is_compared_is_worth_comparing(site: Site) -> None:
    """Answers that end by themselves at many lengths, and ones of the full length."""
    lengths = {least: {len(ids) for (_, m), ids in site.expected.items() if m == least} for least in (0, LENGTH)}
    assert lengths[LENGTH] == {LENGTH}
    assert len(lengths[0]) >= 8
    assert min(lengths[0]) < 20
