"""Fused log-probabilities of a prompt's own tokens, against whole distributions one position at a time."""

from __future__ import annotations

import codecs
from dataclasses import replace

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.options import FusionParams
from tests.support.toy_fuser import toy_ensemble, toy_model
from tests.support.weighted_prompts import QUESTION, TALK, completed, dense, weighted

TEXT = QUESTION + " Caféterias, 你好 🎉 and 12345 words."


def everything(ensemble):
    """Let every member hand over all of its tokens, so that a plain computation knows no less."""
    for model in ensemble.models.values():
        model.member.k = model.tokenizer.vocabulary_size
    return ensemble


def plain_echo(ensemble, prompt, weights):
    """By position of the pivot: who votes, and the fused distribution."""
    places = {name: dict(zip(*prompt.located[name].boundaries(0), strict=True)) for name in ensemble.models}
    place_of = {token: place for place, token in places[ensemble.pivot].items()}
    trust = {name: 1.0 if prompt.ids[name] == prompt.ids[ensemble.pivot] else 0.2 for name in ensemble.models}
    for at in range(len(prompt.ids[ensemble.pivot]) - 1):
        own = {ensemble.pivot: at}
        for name in ensemble.models:
            place = place_of.get(at)
            if (
                name != ensemble.pivot
                and place in places[name]
                and places[name][place] + 1 < len(prompt.ids[name])
            ):
                own[name] = places[name][place]
        rows = {name: dense(ensemble, prompt, name, i + 1) for name, i in own.items()}
        heard = {ensemble.pivot: heard_of_pivot(ensemble, prompt, at)}
        for name in ensemble.models.keys() - own:
            row, heard[name] = inside(ensemble, prompt, name, at, places[name])
            row = within(ensemble, prompt, name, place_of.get(at)) if row is None else row
            rows |= {} if row is None else {name: row}
        pivot = rows[ensemble.pivot]
        rows |= {name: completed(rows[name], pivot) for name in rows.keys() - {ensemble.pivot}}
        is_inside = bool(since(ensemble, prompt, at)[1])
        prior = {name: weights[name] * (trust[name] if is_inside else 1.0) for name in rows}
        force = {name: prior[name] * heard.get(name, 1.0) for name in rows}
        total = sum(force.values())
        if is_inside and not since(ensemble, prompt, at + 1)[1]:
            whole = {name: heard[name] * row[prompt.ids[ensemble.pivot][at + 1]] for name, row in rows.items()}
            mean = sum(prior[name] * whole[name] for name in rows) / sum(prior.values())
            trust |= {name: trust[name] * (0.85 + 0.15 * whole[name] / mean) for name in rows}
            trust = {name: max(factor / max(trust.values()), 1e-3) for name, factor in trust.items()}
        yield set(rows), sum(force[name] / total * row for name, row in rows.items())


def since(ensemble, prompt, at):
    """The pivot's tokens of the character that its token `at` ends inside of, and that character's bytes."""
    surfaces, ids = ensemble.tokenizer.surfaces, prompt.ids[ensemble.pivot][: at + 1]
    said = b"".join(surfaces[id] or b"" for id in ids)
    data = next((said[-size:] for size in (1, 2, 3) if said[-size:] and said[-size] >= 0xC0), b"")
    if not data or data.decode(errors="ignore"):
        return [], b""
    count = 1
    while sum(len(surfaces[id]) for id in ids[-count:]) < len(data):
        count += 1
    return ids[-count:], data


def heard_of_pivot(ensemble, prompt, at):
    """The probability of the tokens of an unfinished character; the first one's among those that begin alike."""
    tokens, data = since(ensemble, prompt, at)
    surfaces, found = ensemble.tokenizer.surfaces, 1.0
    for place, token in enumerate(tokens, at + 1 - len(tokens)):
        ahead = b"".join(surfaces[id] for id in tokens)[: -len(data)] if token is tokens[0] else b""
        p = np.exp(ensemble.models[ensemble.pivot].member.distribution(prompt.ids[ensemble.pivot][:place]))
        found *= (
            p[token] / sum(q for q, text in zip(p, surfaces, strict=False) if (text or b"").startswith(ahead))
            if ahead
            else p[token]
        )
    return found


def within(ensemble, prompt, name, place):
    """What a member says where the pivot's token ends inside one of its own: its tokens from before that on."""
    located, pivot, member = prompt.located[name], ensemble.tokenizer, ensemble.models[name]
    covering = [
        at
        for at in range(1, len(prompt.ids[name]))
        if place is not None and located.starts[at] < place < located.ends[at]
    ]
    if len(covering) != 1:
        return None
    [at] = covering
    seen = TEXT[located.starts[at] : place].encode()
    if located.starts[at] == 0 and member.tokenizer.adds_a_space:
        seen = b" " + seen
    p = np.exp(member.member.distribution(prompt.ids[name][:at]).astype(np.float64))
    fused, total = np.zeros(pivot.vocabulary_size), 0.0
    for token, text in enumerate(member.tokenizer.surfaces):
        if text and (text.startswith(seen) or seen.startswith(text)):
            total += p[token]
            if rest := text.removeprefix(seen) if text.startswith(seen) else b"":
                fused[pivot.reverse.first_token(rest)] += p[token]
    return fused / total if fused.any() else None


def inside(ensemble, prompt, name, at, places):
    """What a member says where the pivot's token `at` ends inside a character: its tokens from before it on.

    With it, the probability that it gave to the character as the pivot spells it so far.
    """
    pivot = ensemble.tokenizer
    spelled, data = since(ensemble, prompt, at)
    said = b"".join(pivot.surfaces[id] or b"" for id in prompt.ids[ensemble.pivot][: at + 1])
    place = len(said[: len(said) - len(data)].decode().removeprefix(" ")) if data else None
    if not data or place not in places:
        return None, 1.0
    found = [conditioned(ensemble, prompt, name, places[place], spelled, data, strict) for strict in (True, False)]
    return next((one for one in found if one[0] is not None), (None, 1.0))


def conditioned(ensemble, prompt, name, begins, spelled, data, strict):
    pivot, member = ensemble.tokenizer, ensemble.models[name]
    tokens, whole, begun = prompt.ids[name][: begins + 1], pivot.surface_of(spelled), data

    def fits(added):
        goes_on = not codecs.utf_8_decode(begun + added, "ignore", False)[1]
        return not strict or goes_on or pivot.reverse.first_token(whole + added) == spelled[0]

    fused, total, share = np.zeros(pivot.vocabulary_size), 0.0, 1.0
    while True:
        p = np.exp(member.member.distribution(tokens).astype(np.float64))
        following = prompt.ids[name][len(tokens)]
        surface = member.tokenizer.surfaces[following] or b""
        goes_on = data and data.startswith(surface) and len(tokens) < len(prompt.ids[name]) - 1
        if not data:
            row = share * dense(ensemble, prompt, name, len(tokens))
            ruled_out = [token for token in np.flatnonzero(row) if not fits(pivot.surfaces[token] or b"")]
            total += share - row[ruled_out].sum()
            row[ruled_out] = 0
            fused += row
            return (fused / total, total) if fused.any() else (None, total)
        for token, text in enumerate(member.tokenizer.surfaces):
            if text and text.startswith(data) and text != data and fits(text[len(data) :]):
                total += share * p[token]
                target = pivot.reverse.first_token(text[len(data) :])
                if target is not None:
                    fused[target] += share * p[token]
            elif text and data.startswith(text) and not goes_on:
                total += share * p[token]
        if not goes_on:
            return (fused / total, total) if fused.any() else (None, total)
        share *= p[following]
        tokens, data = [*tokens, following], data[len(surface) :]


@pytest.mark.parametrize("pivot", ["almanac", "abacus", "lingvo"])
def test_a_token_of_the_prompt_is_scored_by_members_that_begin_or_are_inside_one_there(tokenizers, run, pivot):
    ensemble = everything(toy_ensemble(tokenizers, pivot=pivot))
    running = run(ensemble)
    weights = {"almanac": 0.5, "abacus": 0.3, "lingvo": 0.2}
    prompt = ensemble.encode_text(TEXT, locate=True)
    listener = running.submit(
        prompt, FusionParams(weights=weights, unmapped="pivot"), max_tokens=2, prompt_logprobs=3
    ).wait()
    echoed = listener.updates[0].prompt
    ids = prompt.ids[pivot]
    assert [token.chosen.id for token in echoed] == ids
    assert np.isnan(echoed[0].chosen.logprob)
    assert not any(update.prompt for update in listener.updates[1:])
    voters = []
    for token, label, (names, fused) in zip(
        echoed[1:], ids[1:], plain_echo(ensemble, prompt, weights), strict=True
    ):
        voters.append(names)
        assert token.chosen.logprob == pytest.approx(np.log(fused[label]), abs=2e-4)
        best = np.argsort(-fused, kind="stable")[:3]
        assert [entry.logprob for entry in token.top] == pytest.approx(np.log(fused[best]).tolist(), abs=2e-4)
    assert 3 in set(map(len, voters))
    assert np.isfinite([token.chosen.logprob for token in echoed[1:]]).all()


def test_a_token_beyond_the_best_is_known_all_the_same(tokenizers, run):
    """Members hand over few tokens, but of their own next one they know the probability."""
    tokenizer = tokenizers["lingvo"]
    models = {name: toy_model(tokenizer, name, seed=seed) for name, seed in (("a", 3), ("b", 4))}
    for model in models.values():
        model.member.k = 2
    running = run(build_ensemble("pair", models, "a"))
    prompt = running.ensemble.encode_text(TEXT, locate=True)
    ids = prompt.ids["a"]
    echoed = running.submit(prompt, max_tokens=1, prompt_logprobs=1).wait().updates[0].prompt
    for at, token in enumerate(echoed[1:]):
        each = [np.exp(float(model.member.distribution(ids[: at + 1])[ids[at + 1]])) for model in models.values()]
        assert token.chosen.logprob == pytest.approx(np.log(np.mean(each)), abs=1e-4)


def test_a_single_model_echoes_its_own_probabilities(tokenizers, run):
    model = toy_model(tokenizers["abacus"], "abacus", seed=3)
    running = run(build_ensemble("one", {"abacus": model}, "abacus"))
    ids = tokenizers["abacus"].encode("one two three", add_special_tokens=True)
    prompt = running.ensemble.encode_ids(ids)
    plain = running.submit(prompt, max_tokens=9).wait()
    listener = running.submit(prompt, max_tokens=9, prompt_logprobs=0).wait()
    assert listener.ids == plain.ids
    for at, token in enumerate(listener.updates[0].prompt[1:]):
        assert token.chosen.logprob == pytest.approx(
            model.member.distribution(ids[: at + 1])[ids[at + 1]], abs=1e-5
        )
        assert token.top == ()


def test_an_echo_uses_the_weights_that_the_prompt_was_given(tokenizers, run):
    ensemble = everything(toy_ensemble(tokenizers, pivot="lingvo"))
    running = run(ensemble)
    prompt = ensemble.encode_text(QUESTION, locate=True)
    fusion = replace(weighted("packllm-opt"), unmapped="pivot")
    listener = running.submit(prompt, fusion, max_tokens=2, prompt_logprobs=0).wait()
    weights = listener.last.weighting.weights
    apart = running.submit(prompt, fusion, max_tokens=2).wait()
    assert weights == pytest.approx(apart.last.weighting.weights)
    echoed = listener.updates[0].prompt[1:]
    for token, (names, fused) in zip(echoed, plain_echo(ensemble, prompt, weights), strict=True):
        if sum(weights[name] for name in names) > 0:
            assert token.chosen.logprob == pytest.approx(np.log(fused[token.chosen.id]), abs=2e-4)


def test_a_prompt_of_one_token_has_nothing_to_predict(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    prompt = running.ensemble.encode_ids([300], locate=True)
    [token] = running.submit(prompt, max_tokens=1, prompt_logprobs=1).wait().updates[0].prompt
    assert np.isnan(token.chosen.logprob)


@pytest.mark.parametrize("ending", ["", " 你🎉"])
def test_a_member_with_the_pivots_tokens_and_another_prompt_speaks_from_its_own_places(tokenizers, run, ending):
    """As one without the token that begins the pivot's prompt, or with another system text."""
    models = {
        name: toy_model(tokenizers[tokenizer], name, seed=seed)
        for seed, (name, tokenizer) in enumerate({"a": "lingvo", "twin": "lingvo", "b": "abacus"}.items())
    }
    ensemble = everything(build_ensemble("trio", models, "a"))
    prompt = ensemble.encode_text(TEXT + ending, locate=True)
    prompt.ids["a"] = [ensemble.tokenizer.hf.eos_token_id, *prompt.ids["a"]]
    places = prompt.located["a"]
    starts, ends = (np.insert(one, 0, 0) for one in (places.starts, places.ends))
    prompt.located["a"] = replace(places, starts=starts, ends=ends)
    assert ensemble.first.follows_ids("twin")
    weights = {"a": 0.5, "twin": 0.3, "b": 0.2}
    fusion = FusionParams(weights=weights, unmapped="pivot")
    listener = run(ensemble).submit(prompt, fusion, max_tokens=1, prompt_logprobs=1).wait()
    assert listener.last.error is None
    echoed = listener.updates[0].prompt
    assert [token.chosen.id for token in echoed] == prompt.ids["a"]
    if not ending:  # of which the plain computation knows
        for at, (token, (_, fused)) in enumerate(
            zip(echoed[1:], plain_echo(ensemble, prompt, weights), strict=True)
        ):
            # Of tokens as unlikely as one in a million float32 leaves three digits.
            assert np.exp(token.chosen.logprob) == pytest.approx(fused[prompt.ids["a"][at + 1]], rel=2e-3)


@pytest.mark.parametrize("alone", [True, False])
def test_a_special_token_of_the_prompt_has_the_probability_that_members_with_its_tokenizer_give_it(
    tokenizers, run, alone
):
    """As text it must not come, and every end is one: but here it stands where its members have seen it."""
    kinds = {"a": "lingvo", "twin": "lingvo"} | ({} if alone else {"b": "abacus"})
    models = {
        name: replace(toy_model(tokenizers[kind], name, seed=seed), stop_ids=(0, 1) if kind == "lingvo" else (2,))
        for seed, (name, kind) in enumerate(kinds.items())
    }
    ensemble = everything(build_ensemble("pair", models, "a"))
    talk = ensemble.encode_chat(TALK, locate=True)
    before = tokenizers["lingvo"].encode("Hello there", add_special_tokens=False)
    ended = ensemble.encode_ids([*before, 1, *before, 2, *before], locate=True)
    weights = {"a": 0.5, "twin": 0.3} | ({} if alone else {"b": 0.2})
    for prompt in (talk, ended):
        listener = run(ensemble).submit(
            prompt, FusionParams(weights=weights, unmapped="pivot"), max_tokens=1, prompt_logprobs=3
        )
        ids, echoed = prompt.ids["a"], listener.wait().updates[0].prompt
        special = [at for at in range(1, len(ids)) if ids[at] in (1, 2)]
        assert special
        for at in special:
            rows = [
                np.exp(models[name].member.distribution(ids[:at]).astype(np.float64)) for name in ("a", "twin")
            ]
            fused = np.average(rows, axis=0, weights=[0.5, 0.3])
            assert echoed[at].chosen.logprob == pytest.approx(np.log(fused[ids[at]]), abs=1e-4)
            assert [one.id for one in echoed[at].top] == np.argsort(-fused, kind="stable")[:3].tolist()
        assert np.isfinite([token.chosen.logprob for token in echoed[1:]]).all()
