"""Whatever a member and its worker say to each other arrives as it was sent."""

from dataclasses import fields, is_dataclass

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.core import Advance, AdvanceFailed, Capacity, Generate, Generated, NextTokens
from fusion.members.hosts.codec import decode, encode, frame_size
from fusion.members.hosts.messages import Answers, Close, Load, Loaded, Pong
from fusion.options import FusionParams, SamplingParams

numbers = st.integers(0, 2**40)
ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9)
floats = st.floats(width=32, allow_nan=False)


@st.composite
def next_tokens(draw):
    rows, k = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    return NextTokens(
        draw(numbers),
        draw(arrays.arrays(np.int32, (rows, k))),
        draw(arrays.arrays(np.float32, (rows, k), elements=floats)),
        draw(st.none() | arrays.arrays(np.float32, rows - 1, elements=floats)),
    )


generated = st.builds(
    Generated, numbers, ids, st.none() | st.just(np.zeros((1, 3), np.int32)), st.none(), st.booleans()
)
seeds = st.none() | st.integers(0, 2**64 - 1)
sampling = st.builds(SamplingParams, numbers, logit_bias=st.dictionaries(st.integers(), floats), seed=seeds)
advances = st.builds(
    Advance,
    numbers,
    numbers,
    ids,
    st.sampled_from(["last", "all"]),
    also=st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    allowed=st.none() | arrays.arrays(np.uint8, st.sampled_from([(4,), (1, 4), (3, 4)])),
    each=st.none() | arrays.arrays(np.int32, (2, 3)),
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
)
messages = st.one_of(
    st.lists(advances | st.builds(Generate, numbers, ids, sampling, ids, st.lists(numbers))),
    st.builds(Answers, st.lists(next_tokens() | generated | st.builds(AdvanceFailed, numbers, st.text())), floats),
    st.builds(Close, st.lists(numbers)),
    st.builds(Load, st.text(), st.text(), floats, st.integers(), st.text(), st.dictionaries(st.text(), plain)),
    st.builds(Loaded, st.builds(Capacity, numbers, numbers, numbers), numbers),
    plain,
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(messages)
def test_a_message_arrives_as_it_was_sent(message):
    frame = encode(message)
    assert frame_size(bytearray(frame)) == len(frame)
    assert same(decode(frame), message)


def test_parameters_with_dictionaries_and_tuples_arrive_too():
    sampling = SamplingParams(4, logit_bias={3: -1.5, 70000: float("inf")}, stop=("a", "b"), stop_token_ids=(2,))
    generate = Generate(1, [5, 6], sampling, [2], [])
    assert decode(encode([sampling, generate])) == [sampling, generate]


@pytest.mark.parametrize("largest", [2**63 - 1, 2**63, 2**64 - 1])
def test_many_seeds_of_any_size_arrive_together(largest):
    work = [Generate(i, [5], SamplingParams(4, seed=largest - i), [2], []) for i in range(40)]
    assert decode(encode(work)) == work


def test_only_messages_that_are_listed_may_cross():
    with pytest.raises(TypeError, match="no message can hold a FusionParams"):
        encode(FusionParams(weights={"a": 1.0}))


def test_infinite_log_probabilities_survive():
    answer = NextTokens(1, np.zeros((1, 2), np.int32), np.array([[0, -np.inf]], np.float32))
    assert decode(encode([answer]))[0].logprobs.tolist() == [[0.0, -np.inf]]


def test_an_array_is_a_view_of_what_arrived():
    answer = decode(encode(NextTokens(1, np.ones((4, 320), np.int32), np.ones((4, 320), np.float32))))
    assert not answer.ids.flags.owndata
    assert not answer.logprobs.flags.owndata


class NextTokensOfAnotherKind:
    pass


@pytest.mark.parametrize("thing", [object(), NextTokensOfAnotherKind(), {1, 2}, [Pong(), print]])
def test_nothing_else_can_be_sent(thing):
    with pytest.raises(TypeError, match="no message can hold"):
        encode(thing)
