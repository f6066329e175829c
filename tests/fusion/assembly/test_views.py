"""Views of one model in a request, over a member whose distribution is a function of the tokens it holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignment.errors import InvalidRequestError
from fusion.arithmetic import combine
from fusion.assembly.ensembles import build_ensemble, build_for_any_pivot
from fusion.assembly.views import with_views
from fusion.core import Capacity
from fusion.loop.fuser import Fuser
from fusion.options import ContextView, FusionParams, Guidance, Mask, Weighting
from fusion.views import ModelView
from tests.support.learned import by_words
from tests.support.scripted_fuser import eventually
from tests.support.toy_fuser import Listener, Running, toy_ensemble, toy_model

CHAT = [{"role": "user", "content": "Where is Rome?"}]
OFF = Mask(off=True)


@pytest.fixture
def single(tokenizers):
    model = toy_model(tokenizers["almanac"], "almanac", seed=1)
    model.member.k = model.tokenizer.vocabulary_size
    return build_ensemble("one", {"almanac": model}, "almanac")


@pytest.fixture
def ask():
    """Decodes a conversation with these options; returns the listener, and the ensemble with its prompt."""
    fusers = []

    def start(ensemble, fusion, **sampling) -> tuple[Listener, object]:
        engines = {model.engine: model.member for model in ensemble.models.values()}
        fuser = Fuser(engines)
        fuser.start()
        fusers.append(fuser)
        viewed, options = with_views(ensemble, fusion)
        running = Running(fuser, viewed)
        prompt = viewed.encode_chat(CHAT, locate=options.weighting.method != "given")
        sampling = {"max_tokens": 3, "ignore_eos": True, "logprobs": 5, **sampling}
        return running.submit(prompt, replace(options, report=True), **sampling).wait(), (viewed, prompt)

    yield start
    for fuser in fusers:
        fuser.stop()


def rows_of(viewed, prompt, text):
    """[M, V] log-probabilities of every view after its prompt and these tokens."""
    return {
        name: model.member.distribution([*prompt.ids[name], *text]).astype(np.float64)
        for name, model in viewed.models.items()
    }


def test_a_mixture_over_documents_is_the_weighted_mean_of_what_each_makes_likely(single, ask):
    documents = (ContextView("Rome is in Italy.", 3.0), ContextView("Oslo is in Norway.", 1.0))
    listener, (viewed, prompt) = ask(single, FusionParams(views=documents))
    assert listener.last.error is None
    assert list(viewed.models) == ["almanac", "almanac/2"]
    assert viewed.tokenizer.decode(prompt.ids["almanac/2"]).count("Oslo") == 1
    text = []
    for update in listener.updates:
        for token in update.tokens:
            rows = rows_of(viewed, prompt, text)
            fused = 0.75 * np.exp(rows["almanac"]) + 0.25 * np.exp(rows["almanac/2"])
            for one in (token.chosen, *token.top):
                assert one.logprob == pytest.approx(np.log(fused[one.id]), abs=1e-5)
            text.append(token.chosen.id)
    assert listener.last.rounds[0].weights == {"almanac": 0.75, "almanac/2": 0.25}
    assert set(single.models["almanac"].member.cached) == set()


@pytest.mark.parametrize("mask", [OFF, Mask(plausibility=0.2), Mask(nucleus=0.5), Mask(top_k=3)])
def test_guidance_by_a_second_prompt_is_the_sum_over_both(single, ask, mask):
    fusion = FusionParams(guidance=Guidance(2.5, negative="Be rude."), mask=mask)
    listener, (viewed, prompt) = ask(single, fusion)
    assert list(viewed.models) == ["almanac", "almanac/negative"]
    kind = next((f for f in ("plausibility", "nucleus", "top_k") if getattr(mask, f) is not None), None)
    text = []
    end = viewed.stop_ids
    for update in listener.updates:
        for token in update.tokens:
            rows = rows_of(viewed, prompt, text)
            logits = np.stack([rows["almanac"], rows["almanac/negative"]])
            logits[:, list(end)] = -1e9  # these may not come
            expected = combine(logits[None], [2.5, -1.5], mask=kind and (kind, 0, getattr(mask, kind)))[0]
            assert token.chosen.id == expected.argmax()
            assert token.chosen.logprob == pytest.approx(np.log(expected.max()), abs=2e-2)
            text.append(token.chosen.id)


def test_with_several_documents_each_is_guided_away_from_its_own_second_prompt(single, ask):
    documents = (ContextView("Rome is in Italy.", 3.0), ContextView("Oslo is in Norway.", 1.0))
    fusion = FusionParams(views=documents, guidance=Guidance(1.5, negative="Be rude."), mask=OFF)
    listener, (viewed, prompt) = ask(single, fusion, max_tokens=2)
    weights = {"almanac": 1.125, "almanac/2": 0.375, "almanac/negative": -0.375, "almanac/2/negative": -0.125}
    assert set(viewed.models) == set(weights)
    for name, place in (("almanac/negative", "Italy"), ("almanac/2/negative", "Norway")):
        shown = viewed.tokenizer.decode(prompt.ids[name])
        assert place in shown
        assert "rude" in shown
    assert listener.last.rounds[0].weights == pytest.approx(weights)
    rows = rows_of(viewed, prompt, [])
    logits = np.stack([rows[name] for name in weights])
    logits[:, list(viewed.stop_ids)] = -1e9
    expected = combine(logits[None], list(weights.values()))[0]
    assert listener.updates[0].tokens[0].chosen.id == expected.argmax()


def test_guidance_of_scale_0_is_every_members_second_prompt(tokenizers, ask):
    ensemble = toy_ensemble(tokenizers, pivot="almanac")
    listener, _ = ask(ensemble, FusionParams(guidance=Guidance(0.0, negative="Be rude."), mask=OFF), max_tokens=2)
    assert listener.last.error is None
    weights = {name: weight for name, weight in listener.last.rounds[0].weights.items() if weight}
    assert weights == pytest.approx({f"{name}/negative": 1 / 3 for name in ensemble.models})


def test_a_view_may_become_the_pivot_where_the_prompt_decides(tokenizers, ask):
    free = build_for_any_pivot("toys", toy_ensemble(tokenizers, pivot="lingvo").models)
    documents = (ContextView("Rome."), ContextView("Oslo."))
    fusion = FusionParams(views=documents, weighting=Weighting("top1", prune=0.5))
    listener, (viewed, _) = ask(free, fusion)
    assert listener.last.error is None
    assert set(viewed.views) == set(viewed.models)
    leader = listener.last.weighting.leader
    assert listener.last.pivot == leader
    assert set(listener.last.rounds[0].weights) == {leader}
    for name, view in viewed.views.items():
        assert view.pivot == name
        assert set(view.maps) == set(viewed.models)


def test_a_document_is_read_beside_the_views_own(single):
    own = ModelView("almanac", context="The shop opens at nine.")
    informed = build_ensemble("one", {"almanac": replace(single.models["almanac"], view=own)}, "almanac")
    viewed, _ = with_views(informed, FusionParams(views=(ContextView("Rome is in Italy."),)))
    shown = viewed.tokenizer.decode(viewed.encode_chat(CHAT).ids["almanac"])
    assert "nine" in shown
    assert shown.index("nine") < shown.index("Italy")


def test_a_member_called_as_a_view_is_refused(single):
    model = single.models["almanac"]
    for name, fusion in (
        ("almanac/negative", FusionParams(guidance=Guidance(1.5, negative="Be rude."))),
        ("almanac/2", FusionParams(views=(ContextView("Rome."), ContextView("Oslo.")))),
    ):
        models = {"almanac": model, name: replace(model, view=ModelView(name))}
        pair = build_ensemble("pair", models, "almanac")
        with pytest.raises(InvalidRequestError, match=f"makes a view called {name}, as a member of pair is"):
            with_views(pair, fusion)


def test_without_context_the_second_prompt_is_the_conversation_alone(single):
    documents = (ContextView("Rome is in Italy."),)
    viewed, _ = with_views(single, FusionParams(views=documents, guidance=Guidance(2.0, without_context=True)))
    prompt = viewed.encode_chat(CHAT)
    assert prompt.ids["almanac/negative"] == single.encode_chat(CHAT).ids["almanac"]
    assert "Italy" in viewed.tokenizer.decode(prompt.ids["almanac"])
    with pytest.raises(InvalidRequestError, match="takes a context to do without"):
        with_views(single, FusionParams(guidance=Guidance(2.0, without_context=True)))


def test_every_member_of_an_ensemble_reads_every_document(tokenizers, ask):
    ensemble = toy_ensemble(tokenizers, pivot="almanac")
    documents = (ContextView("Rome."), ContextView("Oslo."))
    weights = {"almanac": 0.5, "abacus": 0.25, "lingvo": 0.25}
    listener, (viewed, _) = ask(ensemble, FusionParams(views=documents, weights=weights))
    assert listener.last.error is None
    assert len(viewed.models) == 6
    assert listener.last.rounds[0].weights == pytest.approx(
        {name: weights[name.partition("/")[0]] / 2 for name in viewed.models}
    )


def test_the_prompts_perplexity_under_each_document_may_weigh_them(single, ask):
    documents = (ContextView("Rome is in Italy."), ContextView("Oslo is in Norway."))
    fusion = FusionParams(views=documents, weighting=Weighting(method="packllm-sim"))
    listener, _ = ask(single, fusion)
    report = listener.last.weighting
    assert report.method == "packllm-sim"
    assert set(report.weights) == {"almanac", "almanac/2"}
    first, second = report.perplexity.values()
    assert first != second
    assert report.weights["almanac"] == pytest.approx((1 / first) / (1 / first + 1 / second))


def test_what_a_member_usually_loses_is_taken_off_all_its_documents(single, ask):
    documents = (ContextView("Rome is in Italy."), ContextView("Oslo is in Norway."))
    weighting = Weighting(method="packllm-sim", offsets={"almanac": 2.0})
    listener, _ = ask(single, FusionParams(views=documents, weighting=weighting))
    plain, _ = ask(single, FusionParams(views=documents, weighting=replace(weighting, offsets=None)))
    assert listener.last.weighting.weights == pytest.approx(plain.last.weighting.weights)


def test_documents_share_the_learned_weight_of_their_member(tokenizers, ask):
    fixed = toy_ensemble(tokenizers, pivot="almanac")
    ensemble = replace(fixed, learned=by_words({"rome": "abacus"}, list(fixed.models), score=3.0))
    documents = tuple(ContextView(f"Document {index}.") for index in range(3))
    fusion = FusionParams(weighting=Weighting("learned", prune=0.04))
    plain = ask(ensemble, fusion)[0].last.weighting
    assert plain.method == "learned"
    assert not plain.pruned
    listener, (viewed, _) = ask(ensemble, replace(fusion, views=documents))
    report = listener.last.weighting
    assert report.method == "learned"
    assert not report.pruned
    assert report.weights == pytest.approx({n: plain.weights[n.partition("/")[0]] / 3 for n in viewed.models})


def test_views_take_room_together_and_a_request_that_can_never_fit_is_refused(tokenizers):
    capacity = Capacity(context=200, cache_tokens=200, sequences=3)
    model = toy_model(tokenizers["almanac"], "almanac", seed=1, capacity=capacity)
    single = build_ensemble("one", {"almanac": model}, "almanac")

    def viewed(count):
        return with_views(single, FusionParams(views=tuple(ContextView(f"Text {i}.") for i in range(count))))[0]

    two = viewed(2)
    prompt = two.encode_chat(CHAT)
    room = two.max_new_tokens(prompt, list(two.models))
    assert room == (200 - sum(map(len, prompt.ids.values()))) // 2
    four = viewed(4)
    prompt = four.encode_chat(CHAT)
    with pytest.raises(InvalidRequestError, match=r"\(of fusion\.views\) take more places than the 3") as refused:
        four.max_new_tokens(prompt, list(four.models), param="messages")
    assert refused.value.param == "fusion.views"
    guided = with_views(single, FusionParams(guidance=Guidance(1.5, negative="Rome. " * 90)))[0]
    prompt = guided.encode_chat([{"role": "user", "content": "Rome. " * 60}])
    with pytest.raises(InvalidRequestError, match="its cache holds 200") as refused:
        guided.max_new_tokens(prompt, list(guided.models), param="messages")
    assert refused.value.param == "fusion.guidance.negative"
    long = with_views(single, FusionParams(views=(ContextView("Rome. " * 190),)))[0]
    prompt = long.encode_chat(CHAT)
    with pytest.raises(InvalidRequestError, match="maximum context length is 200 ") as refused:
        long.max_new_tokens(prompt, list(long.models))
    assert refused.value.param == "fusion.views[0].context"


@pytest.mark.parametrize(
    ("views", "sentence"),
    [
        ((ContextView("a", 1.0), ContextView("b")), r"views\[1\]\.weight is missing"),
        ((ContextView("a", 0.0), ContextView("b", 0.0)), "at least one must be positive"),
    ],
)
def test_weights_of_documents_are_all_or_none(single, views, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        with_views(single, FusionParams(views=views))


def test_a_lost_engine_takes_all_its_views_and_the_error_says_so(single, ask):
    fusion = FusionParams(views=(ContextView("Rome."), ContextView("Oslo.")))
    viewed, options = with_views(single, fusion)
    member = single.models["almanac"].member
    fuser = Fuser({"almanac": member}, views={"almanac/2": "almanac"})
    fuser.start()
    try:
        member.hold = True
        running = Running(fuser, viewed)
        listener = running.submit(viewed.encode_chat(CHAT), options)
        while not member.submitted:
            pass
        load = fuser.load().members
        assert load["almanac"].sequences == 2
        assert load["almanac/2"].sequences == 1
        member.fail()
        listener.wait()
        assert "almanac" in str(listener.last.error)
        assert fuser.load().members["almanac/2"].up is False
        member.hold = False
        member.come_back()
        assert eventually(lambda: fuser.load().members["almanac/2"].up)
        assert running.submit(viewed.encode_chat(CHAT), options).wait().last.error is None
    finally:
        fuser.stop()
