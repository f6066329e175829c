"""Members that fail: what becomes of the sequences that they were part of, and of those that come."""

import time
from dataclasses import replace

import pytest

from alignment.errors import UnavailableError
from alignment.spelling import Spelling
from fusion.assembly.ensembles import build_for_any_pivot
from fusion.core import Capacity
from fusion.options import Contrast, FusionParams, Mask, Weighting
from fusion.sequence.sequence import Sequence
from tests.support.scripted_fuser import eventually
from tests.support.toy_fuser import Listener, toy_ensemble, toy_model

PIVOT, OTHER = "almanac", "lingvo"
REPORT = FusionParams(report=True)


@pytest.fixture
def degrading(tokenizers, run):
    return run(toy_ensemble(tokenizers, pivot=PIVOT, on_member_failure="degrade"))


@pytest.fixture
def strict(tokenizers, run):
    return run(toy_ensemble(tokenizers, pivot=PIVOT))


def interrupted(running, happenings, prompt="Hello", fusion=REPORT):
    """A generation in which `happenings[n]` happen after n tokens, while the fuser's thread stands still."""

    class Script(Listener):
        def __call__(self, update):
            super().__call__(update)
            for happen in happenings.get(len(self.ids), []) if update.tokens else []:
                happen()

    return running.submit(prompt, fusion, listener=Script(), max_tokens=24, ignore_eos=True).wait()


def took_part(listener, name):
    """In which rounds the member had a weight."""
    return [name in entry.weights for entry in listener.last.rounds]


def test_with_fail_the_sequences_of_a_lost_member_end_with_a_clear_error(strict):
    member = strict.fuser.members[OTHER]
    listener = interrupted(strict, {5: [member.fail]})
    error = listener.last.error
    assert isinstance(error, UnavailableError)
    assert str(error) == (
        "Member 'lingvo' is down: its engine is gone. It is being started anew; try again in 3 seconds."
    )
    assert error.retry_after == 3
    assert strict.fuser.attendance.down.keys() == {OTHER}
    assert all(not one.cached for one in strict.members())


def test_with_fail_new_sequences_are_refused_until_the_member_is_back(strict):
    member = strict.fuser.members[OTHER]
    member.fail()
    while not strict.fuser.attendance.down:
        time.sleep(0.001)
    interrupted(strict, {}, fusion=FusionParams(members=(PIVOT,)))  # a sequence without it is not concerned
    with pytest.raises(UnavailableError) as refused:
        strict.submit()
    assert refused.value.retry_after == 3
    member.come_back()
    while strict.fuser.attendance.down:
        time.sleep(0.001)
    assert interrupted(strict, {}).last.finish == "length"


def test_of_a_sum_that_loses_a_member_the_pivot_decides_alone(degrading):
    """The rest would be another sum; the member takes part again once it is back."""
    fusion = FusionParams(members=(PIVOT, OTHER), contrast=Contrast(OTHER), mask=Mask(off=True), report=True)
    member = degrading.fuser.members[OTHER]
    listener = interrupted(degrading, {5: [member.fail], 12: [member.come_back]}, fusion=fusion)
    assert listener.last.finish == "length"
    assert listener.last.departed == {OTHER: "its engine is gone"}
    assert set(listener.last.returned) == {OTHER}
    weights = [round.weights for round in listener.last.rounds]
    both, alone = {PIVOT: 1.5, OTHER: -0.5}, {PIVOT: 1.0}
    assert weights[0] == weights[-1] == pytest.approx(both)
    assert weights[8] == alone
    asked = degrading.ensemble.encode_chat([{"role": "user", "content": "Hello"}]).ids[PIVOT]
    best = degrading.ensemble.models[PIVOT].member.distribution
    for number, one in enumerate(weights):
        assert one in (pytest.approx(both), alone, alone | {OTHER: 0.0})
        if OTHER not in one:
            assert listener.ids[number] == best([*asked, *listener.ids[:number]]).argmax()


def test_with_degrade_a_sequence_goes_on_and_says_so(degrading):
    member = degrading.fuser.members[OTHER]
    listener = interrupted(degrading, {5: [member.fail]})
    assert listener.last.finish == "length"
    assert listener.last.departed == {OTHER: "its engine is gone"}
    assert listener.last.returned == {}
    assert took_part(listener, OTHER) == [True] * 5 + [False] * 19
    assert all(sum(entry.weights.values()) == pytest.approx(1) for entry in listener.last.rounds)


def test_with_degrade_a_sequence_that_waits_for_the_lost_member_alone_goes_on_at_once(degrading):
    member = degrading.fuser.members[OTHER]
    member.hold = True
    listener = degrading.submit()
    while not member.submitted:
        time.sleep(0.001)
    member.fail()
    assert listener.wait().last.departed == {OTHER: "its engine is gone"}


def test_with_degrade_a_sequence_can_begin_without_the_member(degrading):
    degrading.fuser.members[OTHER].fail()
    listener = interrupted(degrading, {})
    assert listener.last.finish == "length"
    assert listener.last.departed == {OTHER: "its engine is gone"}
    assert not any(took_part(listener, OTHER))


@pytest.mark.parametrize("policy", ["fail", "degrade"])
def test_nothing_goes_on_without_the_pivot(tokenizers, run, policy):
    running = run(toy_ensemble(tokenizers, pivot=PIVOT, on_member_failure=policy))
    listener = interrupted(running, {5: [running.fuser.members[PIVOT].fail]})
    assert "'almanac' is down" in str(listener.last.error)
    with pytest.raises(UnavailableError):
        running.submit()


@pytest.fixture
def automatic(tokenizers, run):
    """An ensemble whose pivot each prompt decides; without one the first member stands in for it."""
    models = {name: toy_model(tokenizer, name, seed=i) for i, (name, tokenizer) in enumerate(tokenizers.items())}
    return run(build_for_any_pivot("toys", models, on_member_failure="degrade"))


def question(running):
    messages = [{"role": "user", "content": "What comes next after January, February and March?"}]
    return running.ensemble.encode_chat(messages, locate=True)


@pytest.mark.parametrize("weighting", ["given", "packllm-sim"])
def test_where_the_prompt_decides_on_the_pivot_others_can_lead(automatic, weighting):
    fusion = FusionParams(weighting=Weighting(weighting))
    first, *others = automatic.ensemble.models
    member = automatic.fuser.members[first]
    member.hold = True  # it is lost while it reads the prompt
    reading = automatic.submit(question(automatic), fusion)
    while not member.submitted:
        time.sleep(0.001)
    member.fail()
    later = automatic.submit(question(automatic), fusion)  # and this one begins without it
    for listener in (reading.wait(), later.wait()):
        assert listener.last.error is None
        assert listener.last.pivot in others
        assert listener.last.departed == {first: "its engine is gone"}


def test_the_pivot_that_a_prompt_has_decided_on_is_needed(automatic):
    led = automatic.submit(question(automatic)).wait().last.pivot
    listener = interrupted(automatic, {5: [automatic.fuser.members[led].fail]}, prompt=question(automatic))
    assert f"'{led}' is down" in str(listener.last.error)


def test_nobody_leads_where_all_are_down(automatic):
    first, second, last = automatic.members()
    last.hold = True
    reading = automatic.submit(question(automatic))
    while not last.submitted:
        time.sleep(0.001)
    for member in (first, second):
        member.fail()
    while len(automatic.fuser.attendance.down) < 2:
        time.sleep(0.001)
    assert not reading.done.is_set()
    last.fail()
    assert "is down" in str(reading.wait().last.error)
    with pytest.raises(UnavailableError):
        automatic.submit(question(automatic))


@pytest.mark.parametrize("name", ["abacus", "lingvo"])
@pytest.mark.parametrize("prompt", ["Hello", "Ünïcödé 🙂"])
def test_a_member_that_comes_back_reads_what_was_written_and_takes_part(degrading, name, prompt):
    member = degrading.fuser.members[name]
    listener = interrupted(degrading, {5: [member.fail], 11: [member.come_back]}, prompt)
    assert listener.last.finish == "length"
    assert listener.last.departed == {name: "its engine is gone"}
    back = listener.last.returned[name]
    assert 11 <= back <= 14
    assert took_part(listener, name) == [True] * 5 + [False] * (back - 5) + [True] * (24 - back)


def test_a_member_that_came_back_holds_the_prompt_and_the_whole_text(degrading, tokenizers):
    member = degrading.fuser.members[OTHER]
    held = {}

    def look():
        [held["tokens"]] = member.cached.values()

    listener = interrupted(degrading, {5: [member.fail], 11: [member.come_back], 23: [look]})
    spelling = Spelling(tokenizers[OTHER], tokenizers[OTHER].chat_lead)
    pivot = degrading.ensemble.tokenizer
    spelling.extend(pivot.surface_of(listener.ids[:23]))
    prompt = degrading.ensemble.encode_chat([{"role": "user", "content": "Hello"}]).ids[OTHER]
    assert held["tokens"] == prompt + spelling.ids


def test_a_loss_between_two_rounds_changes_nothing_when_the_member_is_back_in_time(tokenizers, run):
    """With two twins of the pivot, one that is lost and comes back leaves the tokens as they are without it."""
    only = dict.fromkeys((PIVOT, OTHER), tokenizers[PIVOT])
    undisturbed = run(toy_ensemble(only, pivot=PIVOT, on_member_failure="degrade"))
    plain = interrupted(undisturbed, {})
    running = run(toy_ensemble(only, pivot=PIVOT, on_member_failure="degrade"))
    member = running.fuser.members[OTHER]
    listener = interrupted(running, {5: [member.fail], 9: [member.come_back]})
    assert listener.ids[:5] == plain.ids[:5]
    back = listener.last.returned[OTHER]
    # From here on both members hold the same text, so the rounds are those of a sequence that begins with it.
    ids = running.ensemble.encode_chat([{"role": "user", "content": "Hello"}]).ids[PIVOT] + listener.ids[:back]
    rest = running.submit(running.ensemble.encode_ids(ids), max_tokens=24 - back, ignore_eos=True).wait()
    assert listener.ids[back:] == rest.ids


def test_a_member_can_be_lost_again_while_it_catches_up(degrading):
    member = degrading.fuser.members[OTHER]

    def hold():
        member.hold = True

    listener = interrupted(
        degrading, {3: [member.fail], 6: [hold, member.come_back], 9: [lambda: member.fail("it broke again")]}
    )
    assert listener.last.finish == "length"
    assert listener.last.departed == {OTHER: "it broke again"}
    assert listener.last.returned == {}


def test_a_member_that_has_no_room_left_stays_away(degrading):
    member = degrading.fuser.members[OTHER]

    def shrink():
        member.capacity = Capacity(context=8, cache_tokens=8, sequences=1)

    listener = interrupted(degrading, {3: [member.fail], 6: [shrink, member.come_back]})
    assert listener.last.finish == "length"
    assert listener.last.returned == {}


def test_what_waits_for_more_than_a_member_came_back_with_is_told_and_blocks_nobody(tokenizers, run):
    """vLLM sizes its cache by the memory that is free at each start."""
    one = Capacity(context=1024, cache_tokens=2048, sequences=1)
    running = run(toy_ensemble(tokenizers, pivot=PIVOT, capacity=one, on_member_failure="degrade"))
    pivot, member = running.fuser.members[PIVOT], running.fuser.members[OTHER]
    pivot.hold = True
    first = running.submit("Hello", max_tokens=4)
    assert eventually(lambda: running.fuser.open_sequences() == 1)
    second, third = (running.submit("Hello", max_tokens=tokens) for tokens in (900, 4))
    assert eventually(lambda: running.fuser.waiting_sequences() == 2)
    member.fail()
    member.capacity = replace(one, cache_tokens=600)
    member.come_back()
    assert str(second.wait().last.error) == f"Member {OTHER!r} came back with less room; try again."
    running.fuser.cancel(first.number)
    pivot.hold = False
    assert third.wait().last.finish
    running.ensemble.models[OTHER].member.capacity = one  # as read by a request just before the member comes back
    assert "less room" in str(running.submit("Hello", max_tokens=900).wait().last.error)


def test_a_member_that_cannot_be_given_back_to_a_sequence_stays_away(degrading, monkeypatch):
    """Whatever the reason, it is that sequence's alone."""

    def unaddressed(sequence, name, advance):
        if sequence.rounds and advance.keep == 0:
            raise ValueError("a mask that cannot be made")
        return addressed(sequence, name, advance)

    addressed = Sequence.addressed
    monkeypatch.setattr(Sequence, "addressed", unaddressed)
    member = degrading.fuser.members[OTHER]
    listener = interrupted(degrading, {3: [member.fail], 6: [member.come_back]})
    assert (listener.last.finish, listener.last.returned) == ("length", {})
    assert degrading.submit(max_tokens=3).wait().last.finish == "length"


def test_a_sequence_that_a_member_fails_goes_on_without_it_too(degrading):
    member = degrading.fuser.members[OTHER]
    member.fail_on = lambda tokens: len(degrading.fuser.members[PIVOT].submitted) > 6
    listener = interrupted(degrading, {})
    assert listener.last.finish == "length"
    assert listener.last.departed == {OTHER: "out of luck."}


def test_the_room_of_a_lost_member_is_free_for_others_when_it_is_back(tokenizers, run):
    tight = Capacity(context=100, cache_tokens=100, sequences=1)
    running = run(toy_ensemble(tokenizers, pivot=PIVOT, capacity=tight, on_member_failure="degrade"))
    member = running.fuser.members[OTHER]
    for _ in range(3):
        assert interrupted(running, {2: [member.fail], 4: [member.come_back]}).last.finish == "length"
        assert interrupted(running, {}).last.departed == {}


@pytest.mark.parametrize("method", ["packllm-sim", "packllm-opt", "top1"])
def test_a_member_that_was_not_there_when_the_prompt_was_weighed_counts_nothing(degrading, method):
    member = degrading.fuser.members[OTHER]
    member.fail()
    fusion = FusionParams(weighting=Weighting(method), report=True)
    listener = interrupted(degrading, {5: [member.come_back]}, "How much is two and two?", fusion)
    assert listener.last.finish == "length"
    assert set(listener.last.departed) == {OTHER}
    assert not any(took_part(listener, OTHER))
    assert not member.cached


@pytest.mark.parametrize(
    "fusion",
    [
        FusionParams(
            report=True, gate="confident", threshold=0.0, weights={PIVOT: 0.0, OTHER: 1.0, "abacus": 0.5}
        ),
        FusionParams(report=True, draft=OTHER),
        FusionParams(report=True, draft="auto"),
    ],
    ids=["gate", "draft", "auto"],
)
@pytest.mark.parametrize("lost", [OTHER, "abacus"])
@pytest.mark.parametrize("after", [3, 4, 5, 6])
def test_a_member_that_is_lost_while_one_runs_alone_is_done_without(degrading, fusion, lost, after):
    listener = interrupted(degrading, {after: [degrading.fuser.members[lost].fail]}, fusion=fusion)
    assert listener.last.error is None
    assert listener.last.finish == "length"
    assert len(listener.ids) == 24
    assert list(listener.last.departed) == [lost]
