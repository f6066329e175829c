"""A bias counts for ids that are among nobody's best, and a ban holds whatever else is left."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.ensemble import Model
from fusion.options import FusionParams, SamplingParams
from fusion.sampling import sample
from tests.support import small_tokenizers as small
from tests.support.toy_fuser import ROOMY, Running
from tests.support.toy_members import ToyMember, seeded


def model(name: str, tokenizer, seed: int, k: int) -> Model:
    size = tokenizer.vocabulary_size
    return Model(ToyMember(name, seeded(size, seed), size, ROOMY, k=k), tokenizer, (2,), name)


def members(kind: str, k: int) -> dict[str, Model]:
    byte_level = small.byte_level()
    match kind:
        case "alone":
            return {"p": model("p", byte_level, 1, k)}
        case "twins":
            return {"p": model("p", byte_level, 1, k), "m": model("m", byte_level, 2, k)}
    return {"p": model("p", byte_level, 1, k), "m": model("m", small.sentencepiece(), 2, k)}


@pytest.mark.parametrize("combine", ["mixture", "product"])
@pytest.mark.parametrize("kind", ["alone", "twins", "mixed"])
def test_labels_are_distinct_as_if_all_of_the_vocabulary_were_listed(run, kind, combine):
    size = small.byte_level().vocabulary_size
    rng = np.random.default_rng(0)
    few = run(build_ensemble("few", members(kind, 5), "p"))
    all_of_it = run(build_ensemble("all", members(kind, size), "p"))

    def preferred(among: Running, labels: Sequence[int]) -> list[int]:
        bias = dict.fromkeys(labels, 100.0)
        return among.submit("Hi", FusionParams(combine=combine), max_tokens=1, logit_bias=bias).wait().ids

    for _ in range(6):
        labels = rng.choice(np.arange(300, size), 4, replace=False).tolist()
        want = preferred(all_of_it, labels)
        for order in itertools.islice(itertools.permutations(labels), 0, None, 7):
            assert preferred(few, order) == want


@pytest.mark.parametrize("kind", ["alone", "twins"])
@pytest.mark.parametrize("count", [4, 5, 20, 200])
def test_the_best_that_is_not_banned_comes_out(run, kind, count):
    size = small.byte_level().vocabulary_size
    ranked = run(build_ensemble("all", members(kind, size), "p")).submit("Hi", max_tokens=1, logprobs=count + 1)
    best = [one.id for one in ranked.wait().updates[0].tokens[0].top]
    few = run(build_ensemble("few", members(kind, size if kind == "twins" else 5), "p"))
    banned = dict.fromkeys(best[:count], -100.0)
    assert few.submit("Hi", max_tokens=1, logit_bias=banned).wait().ids == best[count:]


@pytest.mark.parametrize("kind", ["alone", "twins", "mixed"])
def test_what_is_banned_never_comes_out(run, kind):
    size = small.byte_level().vocabulary_size
    few = run(build_ensemble("few", members(kind, 5), "p"))
    banned = dict.fromkeys((id for id in range(size) if id not in (300, 301)), -100.0)
    ids = few.submit("Hi", max_tokens=8, temperature=1.5, seed=0, logit_bias=banned).wait().ids
    assert set(ids) <= {300, 301}


def test_a_ban_holds_where_no_other_candidate_is_left():
    params = SamplingParams(max_tokens=1, temperature=0, logit_bias={0: -100.0, 1: -100.0, 9: -100.0})
    options = {"generated": {}, "prompt": (), "forbidden": (), "rng": np.random.default_rng(0)}
    assert sample(np.array([1, 9]), np.array([0.5, 0.5]), params, **options) == 2


def test_a_ban_changes_nothing_else_of_what_members_with_other_tokenizers_say(run):
    """What they say of the banned token is not lost, and so is not the pivot's to give away."""
    few, fusion = run(build_ensemble("few", members("mixed", 50), "p")), FusionParams(unmapped="pivot")
    prompt = few.ensemble.encode_chat([{"role": "user", "content": "Hi"}])
    map, row = few.ensemble.view("p").maps_of("m").first, few.members()[1].distribution(prompt.ids["m"])
    best = next(id for id in map.target_ids[row.argsort()[::-1], 0].tolist() if id >= 0)

    def others(value):
        listener = few.submit("Hi", fusion, max_tokens=1, logit_bias={best: value}, logprobs=10)
        token = listener.wait().updates[0].tokens[0]
        return {one.id: one.logprob for one in [one for one in token.top if one.id != best][:8]}

    assert others(-100.0) == pytest.approx(others(-99.0), abs=1e-6)


def test_biased_and_plain_sequences_share_rounds(run):
    few = run(build_ensemble("few", members("twins", 5), "p"))
    alone = [
        few.submit("Hi", max_tokens=6, logit_bias=b).wait().ids for b in ({}, {400: 3.0, 401: 2.0}, {7: -100.0})
    ]
    together = [few.submit("Hi", max_tokens=6, logit_bias=b) for b in ({}, {400: 3.0, 401: 2.0}, {7: -100.0})]
    assert [one.wait().ids for one in together] == alone
