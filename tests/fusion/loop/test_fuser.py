from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from alignment.errors import InvalidRequestError, OverloadedError, UnavailableError
from alignment.spelling import Spelling
from alignment.text.characters import beginning_at_the_end
from fusion import round as rounds
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Capacity
from fusion.loop.decoding import Decoding
from fusion.options import FusionParams
from fusion.step import among_voters
from tests.support.toy_fuser import toy_ensemble, toy_model

PROMPTS = ["Hello", "What is 2 + 2?", "é中🎉", "one two three"]


def eventually(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.002)


def greedy(distribution, prompt, stops, length):
    """The oracle of an ensemble of one: the best token of the whole text, again and again."""
    ids = []
    while len(ids) < length and not (ids and ids[-1] in stops):
        ids.append(int(distribution(prompt + ids).argmax()))
    return ids


def naive_fused(ensemble, prompt, length, *, combine="mixture", weights=None):
    """The oracle of fusion: nothing cached, nothing incremental, one dense vector per member and step."""
    pivot, tokenizer = ensemble.pivot, ensemble.tokenizer
    stop = ensemble.models[pivot].stop_ids[0]
    ids, text = [], b""
    lead_spelled = False
    while len(ids) < length and not (ids and ids[-1] == stop):
        fused, total = np.zeros(tokenizer.vocabulary_size), 0.0
        for name, model in ensemble.models.items():
            lead = prompt.leads[name]
            if name == pivot:
                tokens = prompt.ids[name] + ids
            else:
                spelling = Spelling(model.tokenizer, lead)
                if text:
                    assert spelling.extend(text) is not None
                tokens = prompt.ids[name] + spelling.ids
            p = np.exp(model.member.distribution(tokens).astype(np.float64))
            best = np.argsort(-p, kind="stable")[: model.member.k]
            weight = 1 / len(ensemble.models) if weights is None else weights[name]
            if combine == "mixture":
                weight *= heard(ensemble, prompt, name, ids, text)
            total += weight
            targets = first_of_surface(tokenizer, prompt.leads[pivot] if not text and not lead_spelled else b"")
            for token in best.tolist():
                if token in model.stop_ids:
                    fused[stop] += weight * p[token]
                    continue
                surface = model.tokenizer.surfaces[token]
                if surface is None:
                    continue
                if name == pivot:
                    fused[token] += weight * p[token]
                    continue
                if not text and lead:
                    surface = surface.removeprefix(lead)
                if surface in targets:
                    fused[targets[surface]] += weight * p[token]
        chosen = int(fused.argmax())
        ids.append(chosen)
        surface = tokenizer.surfaces[chosen] or b""
        lead = prompt.leads[pivot]
        if lead and not text and not lead_spelled and surface.startswith(lead):
            lead_spelled, surface = True, surface.removeprefix(lead)
        text += surface
    return ids


def heard(ensemble, prompt, name, ids, text):
    """What a member gave to the beginning of a character that the text ends with, in byte tokens of its own."""
    beginning = beginning_at_the_end(text)
    if not beginning:
        return 1.0
    model = ensemble.models[name]
    if name != ensemble.pivot:
        spelling = Spelling(model.tokenizer, prompt.leads[name])
        spelling.extend(text[: -len(beginning)])
        tokens, spelled = prompt.ids[name] + spelling.ids, [model.tokenizer.byte_ids[byte] for byte in beginning]
        return probability(model, tokens, spelled, b"")
    count, surface = 0, b""
    while len(surface) < len(beginning):
        count += 1
        surface = (model.tokenizer.surfaces[ids[-count]] or b"") + surface
    return probability(model, prompt.ids[name] + ids[:-count], ids[-count:], surface[: -len(beginning)])


def probability(model, tokens, spelled, ahead):
    """Of `spelled` after `tokens`: of the first of them among the tokens that begin with `ahead`."""
    found = 1.0
    for number, token in enumerate(spelled):
        p = np.exp(model.member.distribution(tokens + spelled[:number]).astype(np.float64))
        listed = np.argsort(-p, kind="stable")[: model.member.k].tolist()
        alike = [p[id] for id in listed if (model.tokenizer.surfaces[id] or b"").startswith(ahead)]
        found *= p[token] / (sum(alike) if ahead and number == 0 else 1.0)
    return found


def first_of_surface(tokenizer, lead):
    """Surface -> id: tokens with the lead before those without, ordinary tokens before byte tokens."""
    byte_ids = {i for i in tokenizer.byte_ids if i is not None}
    order = sorted(
        range(tokenizer.vocabulary_size),
        key=lambda i: (not (lead and (tokenizer.surfaces[i] or b"").startswith(lead)), i in byte_ids, i),
    )
    found = {}
    for i in order:
        surface = (tokenizer.surfaces[i] or b"").removeprefix(lead)
        if surface:
            found.setdefault(surface, i)
    return found


def test_an_ensemble_of_one_decodes_as_the_model_alone(tokenizers, run):
    model = toy_model(tokenizers["abacus"], "abacus", seed=3)
    running = run(build_ensemble("one", {"abacus": model}, "abacus"))
    for text in PROMPTS:
        listener = running.submit(text, max_tokens=30).wait()
        prompt = running.ensemble.encode_chat([{"role": "user", "content": text}]).ids["abacus"]
        assert listener.ids == greedy(model.member.distribution, prompt, model.stop_ids, 30)


def test_the_same_model_twice_decodes_as_once(tokenizers, run):
    tokenizer = tokenizers["lingvo"]
    one = run(build_ensemble("one", {"a": toy_model(tokenizer, "a", seed=4)}, "a"))
    twice = {name: toy_model(tokenizer, name, seed=4) for name in ("a", "b")}
    two = run(build_ensemble("two", twice, "b"))
    for text in PROMPTS:
        assert one.submit(text, max_tokens=40).wait().ids == two.submit(text, max_tokens=40).wait().ids


@pytest.mark.parametrize("pivot", ["almanac", "abacus", "lingvo"])
def test_fused_decoding_equals_the_naive_loop(tokenizers, run, pivot):
    running = run(toy_ensemble(tokenizers, pivot=pivot))
    for text in PROMPTS:
        prompt = running.ensemble.encode_chat([{"role": "user", "content": text}])
        listener = running.submit(prompt, max_tokens=25).wait()
        assert listener.ids == naive_fused(running.ensemble, prompt, 25)


def test_fixed_weights_decide(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="abacus"))
    weights = {"almanac": 0.7, "abacus": 0.1, "lingvo": 0.2}
    prompt = running.ensemble.encode_chat([{"role": "user", "content": "Hello"}])
    listener = running.submit(prompt, FusionParams(weights=weights), max_tokens=25).wait()
    assert listener.ids == naive_fused(running.ensemble, prompt, 25, weights=weights)


def test_company_does_not_change_an_answer(tokenizers, run):
    """Many sequences at once, arriving while others run, greedy and sampled: each as if alone."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    jobs = [
        (PROMPTS[i % 4] + str(i), {"max_tokens": 10 + i % 7, "temperature": float(i % 2), "seed": i})
        for i in range(24)
    ]
    alone = [running.submit(text, **sampling).wait().ids for text, sampling in jobs]
    together = [running.submit(text, **sampling) for text, sampling in jobs]
    assert [listener.wait().ids for listener in together] == alone


def test_a_member_that_weighs_nothing_is_never_opened(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    running.submit(fusion=FusionParams(weights={"lingvo": 0.5, "abacus": 0.5})).wait()
    running.submit(fusion=FusionParams(members=("lingvo", "abacus"))).wait()
    assert not running.ensemble.models["almanac"].member.submitted


def test_every_cache_is_empty_in_the_end(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    for listener in [running.submit(text, max_tokens=9) for text in PROMPTS]:
        listener.wait()
    eventually(lambda: running.fuser.open_sequences() == 0)
    assert all(not member.cached for member in running.members())


def test_cancelling_frees_every_cache_at_once(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    for member in running.members():
        member.hold = True
    listeners = [running.submit(text) for text in PROMPTS]
    eventually(lambda: all(len(member.cached) == 4 for member in running.members()))
    running.fuser.cancel(listeners[1].number)
    eventually(lambda: all(len(member.cached) == 3 for member in running.members()))
    for member in running.members():
        member.hold = False
        member.release()
    for i in (0, 2, 3):
        listeners[i].wait()
    assert not listeners[1].updates
    eventually(lambda: running.fuser.open_sequences() == 0)


def test_cancelling_a_waiting_sequence_takes_it_out_of_the_line(tokenizers, run):
    small = Capacity(context=200, cache_tokens=100_000, sequences=1)
    running = run(toy_ensemble(tokenizers, pivot="lingvo", capacity=small))
    for member in running.members():
        member.hold = True
    first, second = running.submit(), running.submit()
    eventually(lambda: running.fuser.waiting_sequences() == 1)
    running.fuser.cancel(second.number)
    eventually(lambda: running.fuser.waiting_sequences() == 0)
    running.fuser.cancel(first.number)
    eventually(lambda: running.fuser.open_sequences() == 0)


def test_more_sequences_than_the_caches_hold_wait_and_all_finish(tokenizers, run):
    """The toy members assert that they are never overcommitted."""
    tight = Capacity(context=160, cache_tokens=400, sequences=5)
    running = run(toy_ensemble(tokenizers, pivot="abacus", capacity=tight))
    listeners = [running.submit(PROMPTS[i % 4], max_tokens=3 + i % 30) for i in range(40)]
    for listener in listeners:
        assert listener.wait().last.finish is not None
    eventually(lambda: running.fuser.open_sequences() == 0)
    assert all(member.most_tokens <= 400 for member in running.members())
    budget = running.fuser._places.budget
    assert set(budget.blocks.values()) == {400}
    assert set(budget.sequences.values()) == {5}


def test_flows_take_turns(tokenizers, run):
    """One flow's hundred requests do not make another flow's single one wait for all of them."""
    small = Capacity(context=200, cache_tokens=100_000, sequences=1)
    running = run(toy_ensemble(tokenizers, pivot="lingvo", capacity=small))
    for member in running.members():
        member.hold = True
    ended = []
    many = [running.submit(flow="many", max_tokens=2) for _ in range(10)]
    single = running.submit(flow="single", max_tokens=2)
    for name, listener in [("single", single), *(("many", m) for m in many)]:
        original = listener.done.set
        listener.done.set = lambda name=name, original=original: (ended.append(name), original())
    for member in running.members():
        member.hold = False
        member.release()
    for listener in [single, *many]:
        listener.wait()
    assert ended.index("single") <= 2


@pytest.fixture
def busy(tokenizers, run):
    """One sequence runs in almanac, which holds no other, and three wait for all members.

    Yields the ensemble of all and that of lingvo.
    """
    everyone = toy_ensemble(tokenizers, pivot="lingvo")
    almanac, lingvo = (everyone.models[name].member for name in ("almanac", "lingvo"))
    almanac.capacity = replace(almanac.capacity, sequences=1)
    lingvo.capacity = replace(lingvo.capacity, sequences=2)
    together = run(everyone)
    single = {name: replace(together, ensemble=alone(everyone, name)) for name in ("almanac", "lingvo")}
    almanac.hold = True
    waiting = [single["almanac"].submit()]
    eventually(lambda: together.fuser.open_sequences() == 1)
    waiting += [together.submit(max_tokens=2) for _ in range(3)]
    yield together, single["lingvo"]
    almanac.hold = False
    almanac.release()
    for listener in waiting:
        assert listener.wait().last.finish


def alone(ensemble, name):
    return build_ensemble(name, {name: ensemble.models[name]}, name)


def test_a_member_goes_on_while_others_are_waited_for(busy):
    together, lingvo = busy
    for _ in range(3):
        assert lingvo.submit().wait().last.finish
    assert together.fuser.waiting_sequences() == 3


def test_nobody_takes_room_that_a_sequence_further_ahead_waits_with(busy):
    """One of lingvo's two places is for the first that waits for everyone."""
    together, lingvo = busy
    member = together.fuser.members["lingvo"]
    member.hold = True
    first, second = lingvo.submit(), lingvo.submit()
    eventually(lambda: len(member.cached) == 1)
    time.sleep(0.2)
    assert len(member.cached) == 1
    member.hold = False
    member.release()
    for listener in (first, second):
        assert listener.wait().last.finish


def test_a_full_line_says_so(tokenizers, run):
    small = Capacity(context=200, cache_tokens=100_000, sequences=1)
    running = run(toy_ensemble(tokenizers, pivot="lingvo", capacity=small), max_waiting=2)
    for member in running.members():
        member.hold = True
    running.submit()
    eventually(lambda: running.fuser.open_sequences() == 1)
    running.submit()
    running.submit()
    with pytest.raises(OverloadedError) as caught:
        running.submit()
    assert caught.value.retry_after >= 1


def test_a_failing_member_fails_its_sequence_only(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    unlucky = running.ensemble.encode_chat([{"role": "user", "content": "bad"}])
    member = running.ensemble.models["abacus"].member
    member.fail_on = lambda tokens: tokens[: len(unlucky.ids["abacus"])] == unlucky.ids["abacus"]
    good, bad = running.submit("good"), running.submit(unlucky)
    assert good.wait().last.finish is not None
    error = bad.wait().last.error
    assert isinstance(error, UnavailableError)
    assert error.retry_after == 1
    assert "'abacus'" in str(error)
    eventually(lambda: running.fuser.open_sequences() == 0)
    assert all(not m.cached for m in running.members())


def test_a_sequence_whose_round_fails_costs_nobody_else(tokenizers, run, monkeypatch):
    """Two sequences of one batch; what one of them meets stays with it."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    from fusion import round as rounds

    draw = rounds.draw

    def unlucky(*args, **kwargs):
        if args[2].min_p == 0.125:
            raise ArithmeticError("out of luck")
        return draw(*args, **kwargs)

    monkeypatch.setattr(rounds, "draw", unlucky)
    for member in running.members():
        member.hold = True
    good, bad = running.submit(), running.submit(min_p=0.125)
    eventually(lambda: all(len(member.cached) == 2 for member in running.members()))
    for member in running.members():
        member.hold = False
        member.release()
    assert good.wait().last.finish is not None
    assert bad.wait().last.error is not None


def test_a_loop_that_ends_leaves_nobody_waiting(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    for member in running.members():
        member.hold = True
    first = running.submit()
    eventually(lambda: running.fuser.open_sequences() == 1)
    monkeypatch.setattr(running.fuser, "_admit", lambda: 1 / 0)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    running.submit()
    assert isinstance(first.wait().last.error, UnavailableError)
    assert not running.fuser.alive()
    with pytest.raises(UnavailableError):
        running.submit()


def test_a_member_that_takes_no_work_fails_its_sequences(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    member = running.ensemble.models["abacus"].member
    submit, member.submit = member.submit, lambda advances: 1 / 0
    assert isinstance(running.submit().wait().last.error, UnavailableError)
    member.submit = submit
    assert running.submit().wait().last.finish is not None


def test_a_full_member_holds_up_only_those_who_need_it(tokenizers):
    """One fuser, two ensembles of one: the second starts although somebody waits for the first."""
    from fusion.loop.fuser import Fuser
    from tests.support.toy_fuser import Running

    small = Capacity(context=200, cache_tokens=100_000, sequences=1)
    ensembles = {
        name: build_ensemble(name, {name: toy_model(tokenizers[name], name, seed=1, capacity=small)}, name)
        for name in ("lingvo", "abacus")
    }
    fuser = Fuser({name: e.models[name].member for name, e in ensembles.items()})
    fuser.start()
    full, free = (Running(fuser, ensembles[name]) for name in ("lingvo", "abacus"))
    fuser.members["lingvo"].hold = True
    held = [full.submit(), full.submit()]
    eventually(lambda: fuser.waiting_sequences() == 1)
    assert free.submit().wait().last.finish is not None
    fuser.members["lingvo"].hold = False
    fuser.members["lingvo"].release()
    assert all(listener.wait().last.finish for listener in held)
    fuser.stop()


def test_who_is_not_there_leaves_its_weight_to_the_voters():
    np.testing.assert_allclose(among_voters(np.array([[0.3], [0.0]])), [[1.0], [1.0]])
    np.testing.assert_allclose(among_voters(np.array([[0.2, 0.6], [0.0, 0.0]])), [[0.25, 0.75], [0.5, 0.5]])


def test_the_first_token_after_plain_text_may_begin_with_a_space(tokenizers, run):
    """Only an answer to a chat has a lead; a text goes on with the maps for running text."""
    ensemble = toy_ensemble(tokenizers, pivot="almanac")
    assert ensemble.models["abacus"].tokenizer.chat_lead == b" "
    running = run(ensemble)
    word = tokenizers["abacus"].encode("12 apples", add_special_tokens=False)[-1]
    surface = tokenizers["abacus"].surfaces[word]
    assert surface.startswith(b" ")
    sure = np.where(np.arange(tokenizers["abacus"].vocabulary_size) == word, -1e-6, -20.0).astype(np.float32)
    ensemble.models["abacus"].member.distribution = lambda tokens: sure
    fusion = FusionParams(weights={"abacus": 1.0, "almanac": 0.0})
    listener = running.submit(ensemble.encode_text("Anna has 12"), fusion, max_tokens=1).wait()
    assert listener.text.encode() == surface


def test_a_defect_in_a_round_costs_its_requests_not_the_loop(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    with monkeypatch.context() as patch:
        patch.setattr("fusion.loop.decoding.run_round", lambda batch: 1 / 0)
        error = running.submit().wait().last.error
        assert error is not None
        assert "division" not in str(error)
    assert running.submit().wait().last.finish is not None


def test_a_defect_of_one_sequence_changes_no_draw_of_its_neighbours(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    plain = {seed: running.submit(max_tokens=20, temperature=1.0, seed=seed).wait().ids for seed in range(3)}
    choose, failed = rounds.choose, []

    def choosing(batch, tokens, fused):
        chosen = choose(batch, tokens, fused)
        if any(sequence.sampling.max_tokens == 200 for sequence in batch) and (failed or len(batch) > 1):
            failed.append(len(batch))
            raise ZeroDivisionError
        return chosen

    monkeypatch.setattr(rounds, "choose", choosing)
    for member in running.members():
        member.hold = True
    submitted = {seed: running.submit(max_tokens=20, temperature=1.0, seed=seed) for seed in plain}
    broken = running.submit(max_tokens=200, temperature=1.0, seed=3)
    eventually(lambda: all(len(member.cached) == 4 for member in running.members()))
    for member in running.members():
        member.hold = False
        member.release()
    assert "see its log" in str(broken.wait().last.error)
    assert {seed: listener.wait().ids for seed, listener in submitted.items()} == plain
    assert failed[0] > 1, "the case: it shared a batch"


def test_an_answer_that_cannot_be_taken_in_costs_its_own_sequence_alone(tokenizers, run, monkeypatch):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    take = Decoding._take

    def unable(self, sequence, *rest):
        if sequence.sampling.max_tokens == 7:
            raise ZeroDivisionError
        take(self, sequence, *rest)

    monkeypatch.setattr(Decoding, "_take", unable)
    other = running.submit(max_tokens=30)
    assert "see its log" in str(running.submit(max_tokens=7).wait().last.error)
    assert other.wait().last.error is None


def test_a_member_whose_spelling_outgrows_its_cache_leaves(tokenizers, run):
    """The answer goes on with the others, as long as the pivot allows."""
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    wide = running.ensemble.models["lingvo"].member
    tight = running.ensemble.models["abacus"].member
    prompt = running.ensemble.encode_chat([{"role": "user", "content": "Hello"}])
    longest = max(
        range(len(running.ensemble.tokenizer.surfaces)), key=lambda i: len(running.ensemble.first.surface(i))
    )
    always = np.where(np.arange(wide.vocabulary_size) == longest, -1e-6, -20.0).astype(np.float32)
    wide.distribution = lambda tokens: always
    tight.capacity = Capacity(len(prompt.ids["abacus"]) + 40, 100_000, 8)
    listener = running.submit(
        prompt, FusionParams(weights={"lingvo": 0.98, "abacus": 0.02}, report=True), max_tokens=40
    ).wait()
    assert listener.last.finish == "length"
    assert "abacus" in listener.last.departed
    assert listener.ids == [longest] * 40
    assert listener.last.rounds[-1].weights == {"lingvo": pytest.approx(1.0)}
    assert listener.last.tokens[0].chosen.logprob == pytest.approx(0.0, abs=1e-3)


def test_prompts_that_do_not_fit_are_refused_with_the_member_and_its_limit(tokenizers, run):
    running = run(toy_ensemble(tokenizers, pivot="lingvo", capacity=Capacity(50, 100_000, 4)))
    with pytest.raises(InvalidRequestError, match=r"member '.*', whose context holds 50"):
        running.submit("many words " * 100)
    with pytest.raises(InvalidRequestError, match="max_tokens is 60"):
        running.submit("Hi", max_tokens=60)


def test_the_report_accounts_for_every_round(tokenizers, run):
    models = {name: toy_model(tokenizers["lingvo"], name, seed=4) for name in ("one", "same")}
    models["stranger"] = toy_model(tokenizers["abacus"], "stranger", seed=5)
    running = run(build_ensemble("three", models, "one"))
    listener = running.submit(fusion=FusionParams(filter_top=2, report=True), max_tokens=20).wait()
    rounds = listener.last.rounds
    assert [r.token for r in rounds] == listener.ids
    for r in rounds:
        assert sum(r.weights.values()) == pytest.approx(1)
        assert sum(r.contribution.values()) == pytest.approx(1)
        assert all((r.weights[name] > 0) == kept for name, kept in r.kept.items())
        assert all(0 <= mass <= 1 + 1e-6 for mass in r.mass.values())
        assert r.kept["one"]
        assert r.kept["same"]
    assert any(not r.kept["stranger"] for r in rounds)
    assert [update.round for update in listener.updates] == list(rounds)


@pytest.mark.parametrize("pivot", ["lingvo", "almanac"])
def test_the_texts_of_the_rounds_are_the_answer(tokenizers, run, pivot):
    """Random tokens also cut characters apart, and make bytes that are none."""
    running = run(toy_ensemble(tokenizers, pivot=pivot, defaults=FusionParams(report=True)))
    listener = running.submit(max_tokens=60, temperature=2.0, seed=4).wait()
    said = "".join(r.text for r in listener.last.rounds)
    assert said
    assert listener.last.finish == "length"
    assert listener.text == said


def test_nobody_asked_for_a_report(tokenizers, run):
    assert run(toy_ensemble(tokenizers, pivot="lingvo")).submit().wait().last.rounds == ()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_a_report_goes_to_whoever_asked_for_it_in_a_batch_of_several(tokenizers, run, wanted):
    running = run(toy_ensemble(tokenizers, pivot="lingvo"))
    for member in running.members():
        member.hold = True
    listeners = [running.submit(fusion=FusionParams(report=report), max_tokens=5) for report in wanted]
    eventually(lambda: all(len(member.cached) == 2 for member in running.members()))
    for member in running.members():
        member.hold = False
        member.release()
    for listener, report in zip(listeners, wanted, strict=True):
        assert len(listener.wait().last.rounds) == (len(listener.ids) if report else 0)


def test_stopping_ends_every_sequence_with_a_clear_error(tokenizers):
    from fusion.loop.fuser import Fuser
    from tests.support.toy_fuser import Running

    ensemble = toy_ensemble(tokenizers, pivot="lingvo", capacity=Capacity(200, 100_000, 1))
    fuser = Fuser({name: model.member for name, model in ensemble.models.items()})
    running = Running(fuser, ensemble)
    for member in running.members():
        member.hold = True
    fuser.start()
    listeners = [running.submit(), running.submit()]
    eventually(lambda: fuser.open_sequences() == 1)
    fuser.stop()
    for listener in listeners:
        assert isinstance(listener.wait().last.error, UnavailableError)
    with pytest.raises(UnavailableError):
        running.submit()
    assert all(member.stopped for member in running.members())
