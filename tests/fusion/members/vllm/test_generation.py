"""A model alone is decoded by vLLM's own loop, with the results that decoding it token by token has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Delta, End, FinishReason, Generate, Token
from fusion.ensemble import Ensemble, Model
from fusion.loop.fuser import Fuser
from fusion.members.hosts.inline import InlineMember
from fusion.options import FusionParams, SamplingParams

pytest.importorskip("vllm")

from fusion.assembly.checkpoints import read_vocabulary
from fusion.members.vllm.engine import VllmEngine

SOURCE = str(Path(__file__).parents[4] / "deploy" / "demo" / "models" / "lingvo")
PROMPTS = ["What is the capital of France?", "Translate to French: the house is red.", "What is 4 plus 17?", "Hi"]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, logprobs=3)


# Who reports what each member did in each round has to ask for every token.
FUSION = {"own": FusionParams(), "stepped": FusionParams(report=True)}


@dataclass
class Answer:
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def ids(self) -> list[int]:
        return [token.chosen.id for token in self.tokens]


@dataclass
class Site:
    fuser: Fuser
    ensemble: Ensemble
    engine: VllmEngine
    tasks: list[type]

    def ask(self, way: str, text: str, sampling: SamplingParams) -> Answer:
        return self.ask_all(way, [(text, sampling)])[0]

    def ask_all(self, way: str, requests: list[tuple[str, SamplingParams]]) -> list[Answer]:
        ended = threading.Semaphore(0)
        answers, errors = [Answer() for _ in requests], []

        def listener(answer: Answer):
            def on_update(update: Delta) -> None:
                answer.text += update.text
                answer.tokens += update.tokens
                answer.finish = update.finish if isinstance(update, End) else None
                answer.stop_reason = update.stop_reason if isinstance(update, End) else None
                if isinstance(update, End) and update.error is not None:
                    errors.append(update.error)
                if isinstance(update, End):
                    ended.release()

            return on_update

        for answer, (text, sampling) in zip(answers, requests, strict=True):
            prompt = self.ensemble.encode_chat([{"role": "user", "content": text}])
            self.fuser.submit(self.ensemble, prompt, sampling, FUSION[way], on_update=listener(answer))
        for _ in answers:
            assert ended.acquire(timeout=60)
        assert not errors
        return answers


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    engine = VllmEngine.load(
        SOURCE,
        dtype="float32",
        cache_tokens=8192,
        max_context=200,
        max_sequences=16,
        candidates=2560,
        prefill_chunk=32,
        engine_args={"enforce_eager": True},
    )
    tasks: list[type] = []
    add = engine.add
    engine.add = lambda work: (tasks.extend(map(type, work)), add(work))[1]
    member = InlineMember("lingvo", engine)
    model = Model(member, Tokenizer.load(SOURCE), read_vocabulary(SOURCE).stop_ids, "lingvo")
    fuser = Fuser({"lingvo": member})
    fuser.start()
    yield Site(fuser, build_ensemble("lingvo", {"lingvo": model}, "lingvo"), engine, tasks)
    fuser.stop()


SAMPLINGS = {
    "greedy": GREEDY,
    "no logprobs": replace(GREEDY, logprobs=None),
    "chosen token alone": replace(GREEDY, logprobs=0),
    "cut short": replace(GREEDY, max_tokens=3),
    "one token": replace(GREEDY, max_tokens=1),
    "at least": replace(GREEDY, min_tokens=20),
    "past the end": replace(GREEDY, ignore_eos=True),
    "stop string": replace(GREEDY, stop=("is", "e ")),
    "stop string, kept": replace(GREEDY, stop=("is", "a "), include_stop=True),
    "bias": replace(GREEDY, logit_bias={40: 100.0, 5_000_000: 3.0}),
    "bias against": replace(GREEDY, logit_bias={40: -100.0}),
    "frequency penalty": replace(GREEDY, frequency_penalty=2.0, min_tokens=20),
    "presence penalty": replace(GREEDY, presence_penalty=2.0, min_tokens=20),
    "nothing but the best": replace(GREEDY, temperature=1.0, top_p=1e-6),
    "the best of one": replace(GREEDY, temperature=1.0, top_k=1),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_results_are_those_of_decoding_token_by_token(site: Site, name: str) -> None:
    requests = [(text, SAMPLINGS[name]) for text in PROMPTS]
    for own, stepped in zip(site.ask_all("own", requests), site.ask_all("stepped", requests), strict=True):
        assert (own.text, own.ids, own.finish, own.stop_reason) == (
            stepped.text,
            stepped.ids,
            stepped.finish,
            stepped.stop_reason,
        )
        for token, other in zip(own.tokens, stepped.tokens, strict=True):
            assert token.chosen.surface == other.chosen.surface
            assert [top.id for top in token.top] == [top.id for top in other.top]
            if SAMPLINGS[name].logprobs is not None:
                assert token.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-3)
                told = [top.logprob for top in other.top]
                assert [top.logprob for top in token.top] == pytest.approx(told, abs=1e-3)


def test_stop_tokens_of_the_request_end_it_and_are_named(site: Site) -> None:
    stop = site.ask("own", PROMPTS[0], GREEDY).ids[2]
    sampling = replace(GREEDY, stop_token_ids=(stop, 7_000_000))
    own, stepped = (site.ask(name, PROMPTS[0], sampling) for name in ("own", "stepped"))
    assert (own.finish, own.stop_reason) == ("stop", stop)
    assert (own.text, own.ids) == (stepped.text, stepped.ids)


def test_it_is_the_engines_own_loop_unless_a_report_is_wanted(site: Site) -> None:
    site.tasks.clear()
    site.ask("own", PROMPTS[0], GREEDY)
    assert site.tasks == [Generate]
    site.ask("stepped", PROMPTS[0], GREEDY)
    assert Generate not in site.tasks[1:]
    assert len(site.tasks) > 2


def test_a_seed_repeats_an_answer_in_any_company(site: Site) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=7, ignore_eos=True)
    alone = site.ask("own", PROMPTS[1], sampling)
    others = [(text, replace(sampling, seed=seed)) for seed, text in enumerate(PROMPTS)]
    together = site.ask_all("own", [*others, (PROMPTS[1], sampling)])
    assert together[-1].ids == alone.ids
    assert len({tuple(answer.ids) for answer in together}) == len(together)


def test_a_seed_repeats_an_answer_to_a_prompt_that_comes_in_chunks(site: Site) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=7, ignore_eos=True)
    long = "What is 4 plus 17? " * 9
    alone = site.ask("own", long, sampling)
    together = site.ask_all(
        "own", [(long + str(i), replace(sampling, seed=i)) for i in range(9)] + [(long, sampling)]
    )
    assert together[-1].ids == alone.ids


def test_both_ways_side_by_side(site: Site) -> None:
    """Requests of one engine that it decodes itself, and those it is asked for token by token, share its steps."""
    expected = [site.ask("own", text, GREEDY).ids for text in PROMPTS]
    found: dict[str, list[Answer]] = {}
    threads = [
        threading.Thread(
            target=lambda name=name: found.update({name: site.ask_all(name, [(t, GREEDY) for t in PROMPTS])})
        )
        for name in ("own", "stepped")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: [answer.ids for answer in answers] for name, answers in found.items()} == {
        "own": expected,
        "stepped": expected,
    }


def test_a_cancelled_answer_gives_its_room_back(site: Site) -> None:
    prompt = site.ensemble.encode_chat([{"role": "user", "content": PROMPTS[0]}])
    begun = threading.Event()
    sampling = SamplingParams(max_tokens=150, ignore_eos=True)
    number = site.fuser.submit(
        site.ensemble, prompt, sampling, FUSION["own"], on_update=lambda update: begun.set()
    )
    assert begun.wait(60)
    site.fuser.cancel(number)
    deadline = time.monotonic() + 20
    while site.engine._open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not site.engine._open
    assert site.engine._taken == 0
    assert not site.engine._core._core.scheduler.requests
