"""A batch of questions: drawn, written, answered, judged, and what is dropped on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from fusion.distill.bohdi.explore import explore
from fusion.distill.bohdi.settings import TARGET, Explore, Judge, Rules
from fusion.distill.bohdi.state import State
from fusion.distill.bohdi.voices import Reply
from tests.support.scripted_voices import DOMAINS, ScriptedVoices, said


def batch(settings, voices, *, state=None, count=8, excluded=frozenset()):
    state = state or State.of(settings.tree, [])
    events = explore(1, count, state, settings, voices, excluded)
    state.take(events)
    return events, state


def kinds(events):
    return Counter(event["event"] for event in events)


def test_a_batch_leaves_the_state_alone_and_is_the_same_for_the_same_seed(settings):
    state = State.of(settings.tree, [])
    first = explore(1, 8, state, settings, ScriptedVoices(), frozenset())
    assert not state.tree.nodes
    assert not state.samples
    assert explore(1, 8, state, settings, ScriptedVoices(), frozenset()) == first
    other = replace(settings, explore=replace(settings.explore, seed=1))
    assert explore(1, 8, state, other, ScriptedVoices(), frozenset()) != first


def test_domains_come_from_what_leaders_propose_most(settings):
    events, state = batch(settings, ScriptedVoices())
    assert {path[-1] for path in state.tree.nodes} <= set(DOMAINS)
    grown = [event for event in events if event["event"] == "grown" and event["name"]]
    assert grown
    for event in grown:
        assert event.get("proposed", {event["name"]: 1})[event["name"]] >= 1
    assert kinds(events)["sample"] + kinds(events)["dropped"] == 8
    assert events[-1]["usable"] == kinds(events)["sample"] == len(state.samples)


def test_everything_of_a_step_is_asked_at_the_same_time(settings):
    calls = []

    class Counting(ScriptedVoices):
        def ask(self, requests):
            calls.append([request.model for request in requests])
            return super().ask(requests)

    events, _ = batch(settings, Counting(), count=16)
    answers = calls[-1]
    assert Counter(answers) == {name: kinds(events)["sample"] for name in (TARGET, *settings.sources)}


def test_a_source_that_wins_is_a_reward_of_1(settings):
    _, lost = batch(settings, ScriptedVoices())
    assert all(node.alpha > node.beta - 1 for node in lost.tree.nodes.values() if node.questions)
    _, won = batch(settings, ScriptedVoices(score=lambda answer: -1.0 if "badly" in answer else -2.0))
    assert set(won.rewards[1]) == {0}
    assert all(sample.answer.endswith("badly") for sample in won.samples.values())


def test_questions_asked_before_or_kept_for_evaluating_are_not_asked(settings):
    same = ScriptedVoices(
        reply=lambda request: said('{"question": "Why?"}') if "question" in str(request.schema) else None
    )
    _, state = batch(settings, same)
    assert len(state.samples) == 1
    assert state.dropped["a duplicate"] == 8 - 1 - state.dropped["no new domain"]
    before = len(same.asked)
    _, state = batch(settings, same, excluded=frozenset({"why?"}))
    assert not state.samples
    assert state.dropped["excluded"]
    assert all(request.prompt != "Why?" for request in same.asked[before:])


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (said("no JSON"), "not the JSON that was asked for"),
        (said('{"question": 3}'), "not the JSON that was asked for"),
        (Reply('{"question": "Wh', finished=False), "cut off"),
        (said('{"question": " "}'), "too short"),
        (Reply("", False, "ben is down."), "no question: ben is down."),
    ],
)
def test_a_leader_that_writes_nothing_usable_turns_the_bandit_away(settings, reply, why):
    voices = ScriptedVoices(reply=lambda request: reply if "question" in str(request.schema) else None)
    events, state = batch(settings, voices)
    assert state.dropped[why] == 8 - state.dropped["no new domain"]
    assert not state.samples
    assert (events[-1]["usable"], state.barren) == (0, 1)
    nodes = state.tree.nodes.values()
    assert all(node.unusable and (node.alpha, node.beta, node.questions) == (1, 1, 0) for node in nodes)


def answering(**replies):
    """Voices that answer as they do, but for the models of these replies."""
    return ScriptedVoices(reply=lambda request: None if request.schema else replies.get(request.model))


def test_a_source_that_dies_leaves_the_others(settings):
    two = replace(settings, sources=settings.sources | {"eve": settings.sources["ben"]})
    events, state = batch(two, answering(ben=Reply(error="ben is gone.")))
    assert state.samples
    assert all(event["unusable"] == {"ben": "ben is gone."} for event in events if event["event"] == "sample")
    assert set(state.rewards[1]) == {1}


@pytest.mark.parametrize("lost", [[TARGET], ["ben"], [TARGET, "ben"]])
def test_nothing_is_decided_where_the_target_or_all_sources_are_lost(settings, lost):
    events, state = batch(settings, answering(**dict.fromkeys(lost, Reply(error="it is gone."))))
    samples = [event for event in events if event["event"] == "sample"]
    assert state.undecided == len(samples) > 0
    assert all(event["unusable"] == dict.fromkeys(lost, "it is gone.") for event in samples)
    assert not state.samples
    assert all((node.alpha, node.beta) == (1, 1) for node in state.tree.nodes.values())


def test_an_answer_that_is_cut_off_loses(settings):
    _, state = batch(settings, answering(**{TARGET: Reply("it", finished=False)}))
    assert set(state.rewards[1]) == {1}
    _, state = batch(settings, answering(ben=Reply("it", finished=False)))
    assert set(state.rewards[1]) == {0}


def test_a_model_that_answers_nothing_is_named(settings):
    voices = ScriptedVoices(reply=lambda request: Reply(error="gone.") if request.model == TARGET else None)
    events, state = batch(settings, voices)
    assert state.silent == {TARGET: "gone."} == events[-1]["silent"]


def test_a_judge_that_never_decides_counts_the_questions_only(settings):
    undecided = replace(settings, judge=Judge(by="source", source="ben"))
    voices = ScriptedVoices(reply=lambda request: said("?") if "best" in str(request.schema) else None)
    events, state = batch(undecided, voices)
    assert state.undecided == kinds(events)["sample"] > 0
    assert not state.samples
    assert state.barren == 1
    assert all((node.alpha, node.beta) == (1, 1) for node in state.tree.nodes.values() if node.questions)


def test_fixed_draws_spread_evenly_level_by_level(settings):
    fixed = replace(settings, explore=Explore(draws="fixed", batch=400), rules=Rules())
    planted = [("a",), ("a", "x"), ("b",), ("b", "y"), ("b", "z"), ("c",)]
    state = State.of(fixed.tree, [{"event": "planted", "path": list(path)} for path in planted])
    voices = ScriptedVoices()
    events, state = batch(fixed, voices, state=state, count=400)
    assert kinds(events)["grown"] == 0
    drawn = {path: number / 400 for path, number in state.drawn[1].items()}
    assert drawn == pytest.approx({("a", "x"): 0.5, ("b", "y"): 0.25, ("b", "z"): 0.25}, abs=0.08)


def test_a_name_that_too_few_propose_does_not_join_the_tree(settings):
    wanted = replace(settings, explore=replace(settings.explore, proposals=2, agree=3))
    _, state = batch(wanted, ScriptedVoices())
    assert not state.tree.nodes
    assert state.dropped == {"no new domain": 8}
