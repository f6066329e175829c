"""Drafts change no answer, whatever else a request asks for: options of all kinds, drawn together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion.assembly.ensembles import build_for_any_pivot
from fusion.loop.fuser import Fuser
from fusion.options import FusionParams, Weighting
from fusion.sampling import BAN
from fusion.sequence.grammar import json_schema, regex
from tests.support.constrained_prompts import constrained
from tests.support.drafted_answers import Scripted, guesses, same
from tests.support.toy_fuser import Running, toy_ensemble, toy_model

SCHEMA = {"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 2, "maxItems": 4}
ANSWERS = 3

FUSIONS = st.builds(
    FusionParams,
    report=st.just(True),
    combine=st.sampled_from(["mixture", "product"]),
    filter_top=st.sampled_from([None, 3, 40]),
    guard=st.booleans(),
    renormalize=st.booleans(),
    weighting=st.sampled_from(
        [Weighting(), Weighting(method="packllm-sim", prune=0.3), Weighting(method="packllm-opt")]
    ),
)
SAMPLINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "logprobs": st.sampled_from([None, 2]),
        "min_tokens": st.sampled_from([0, 12]),
        "ignore_eos": st.booleans(),
        "frequency_penalty": st.sampled_from([0.0, 0.7]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logit_bias": st.sampled_from([{}, {300: 3.0, 301: BAN, 450: 1.0, 451: BAN}]),
    }
)
DRAFTERS = st.sampled_from(["right", "wrong", "random"])
LIMITS = st.sampled_from(["", "schema", "expression", "words", "listed"])


def limited(running: Running, kind: str):
    match kind:
        case "schema":
            return constrained(running, json_schema(SCHEMA))
        case "expression":
            return constrained(running, regex("([a-z ]{3,9}[.]( Then, however, )?)+"))
        case "words":
            return constrained(running, words=["e", "and"])
        case "listed":
            return constrained(running, allowed_ids=range(200, 1200))
    return constrained(running)


@pytest.fixture(scope="module")
def runnings(tokenizers) -> Iterator[dict[str, Running]]:
    """An ensemble whose prompts decide on the pivot, and one with a fixed pivot."""

    def started(ensemble) -> Running:
        fuser = Fuser({name: model.member for name, model in ensemble.models.items()})
        fuser.start()
        return Running(fuser, ensemble)

    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(tokenizers.items())}
    found = {
        "auto": started(build_for_any_pivot("any", models)),
        "fixed": started(toy_ensemble(tokenizers, pivot="lingvo")),
    }
    yield found
    for running in found.values():
        running.fuser.stop()


def gone(policies: list[Scripted], drafter: str) -> bool:
    """Whether anything was drafted; all of that was accepted where it is right, and none where it is wrong."""
    went = [one for policy in policies for one in policy.went]
    drafted, accepted = sum(drafted for drafted, _ in went), sum(accepted for _, accepted in went)
    assert accepted == {"right": drafted, "wrong": 0, "random": accepted}[drafter]
    return drafted > 0


def test_drafts_change_no_answer(runnings):
    went: Counter[str] = Counter()

    @settings(max_examples=20, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["auto", "fixed"]), FUSIONS, SAMPLINGS, LIMITS, DRAFTERS)
    def check(pivot, fusion, sampling, kind, drafter):
        running = runnings[pivot]
        if kind and sampling["ignore_eos"]:
            sampling["ignore_eos"] = False
        prompt = limited(running, kind)
        options = [{**sampling, "seed": seed, "max_tokens": 24} for seed in range(ANSWERS)]
        first = running.submit(prompt, fusion, **options[0]).wait()
        if len(first.text) > 20 and not kind:
            stop = (first.text[12:16],)
            options = [{**one, "stop": stop, "include_stop": True} for one in options]
        plain = [running.submit(prompt, fusion, **one).wait() for one in options]
        policies = [Scripted(guesses(one.ids, 1400)[drafter]) for one in plain]
        known = iter(policies)
        with patch("fusion.sequence.sequence.policy_of", lambda fusion: next(known)):
            drafted = [running.submit(prompt, fusion, **one) for one in options]
        for one, other in zip(drafted, plain, strict=True):
            assert one.wait().last.error is other.last.error is None
            same(one, other)
        went[drafter] += gone(policies, drafter)

    check()
    assert min(went[drafter] for drafter in ("right", "wrong", "random")) >= 2


def test_drafts_change_no_sum_of_log_probabilities(runnings):
    running, went = runnings["fixed"], 0

    @settings(max_examples=6, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(SAMPLINGS, LIMITS, DRAFTERS)
    def check(sampling, kind, drafter):
        nonlocal went
        if kind and sampling["ignore_eos"]:
            sampling["ignore_eos"] = False
        weights = {"lingvo": 1.5, "abacus": -0.3, "almanac": 0.5}
        fusion = FusionParams(report=True, combine="arithmetic", weights=weights)
        prompt, options = limited(running, kind), {**sampling, "seed": 1, "max_tokens": 24}
        plain = running.submit(prompt, fusion, **options).wait()
        policy = Scripted(guesses(plain.ids, 1400, ahead=20)[drafter])
        with patch("fusion.sequence.sequence.policy_of", lambda fusion: policy):
            same(running.submit(prompt, fusion, **options).wait(), plain)
        went += gone([policy], drafter)

    check()
    assert went >= 4
