from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fusion.options import SamplingParams
from fusion.round import choose
from fusion.sampling import bias, is_plain, penalise, sample, sample_plain, truncate

TOKENS = np.array([3, 5, 8, 13, 21])
P = np.array([0.1, 0.4, 0.2, 0.25, 0.05])


def draw(params, *, p=P, tokens=TOKENS, generated=None, prompt=(), forbidden=(), seed=0):
    rng = np.random.default_rng(seed)
    return sample(tokens, p, params, generated=generated or {}, prompt=prompt, forbidden=forbidden, rng=rng)


def params(**given):
    return SamplingParams(max_tokens=1, **given)


def frequencies(n=20_000, **given):
    rng = np.random.default_rng(1)
    counts = Counter(
        sample(TOKENS, P, params(**given), generated={}, prompt=(), forbidden=(), rng=rng) for _ in range(n)
    )
    return np.array([counts[t] / n for t in TOKENS.tolist()])


def test_temperature_zero_takes_the_best_and_the_lowest_id_of_equals():
    assert draw(params(temperature=0)) == 5
    assert draw(params(temperature=0), p=np.array([0.3, 0.3, 0.4, 0.4, 0])) == 8


def test_sampling_follows_the_distribution():
    """20,000 draws: within 4 standard errors (0.014)."""
    np.testing.assert_allclose(frequencies(), P, atol=0.014)


def test_temperature_sharpens():
    expected = P**2 / (P**2).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5), expected, atol=0.014)


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"top_k": 2}, [5, 13]),
        ({"top_k": 100}, [3, 5, 8, 13, 21]),
        ({"top_p": 0.4}, [5]),
        ({"top_p": 0.41}, [5, 13]),
        ({"top_p": 1e-9}, [5]),
        ({"min_p": 0.5}, [5, 8, 13]),
        ({"min_p": 1.0}, [5]),
        ({"top_k": 3, "top_p": 0.7}, [5, 13]),
    ],
)
def test_truncation_leaves_what_it_says(limits, left):
    kept = TOKENS[truncate(np.log(P), params(**limits)) > 0]
    assert sorted(kept.tolist()) == left


@given(
    st.lists(st.integers(1, 999), min_size=1, max_size=30),
    st.floats(0.1, 3),
    st.sampled_from([0.05, 0.3, 0.6, 0.9, 1.0]),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    st.integers(0, 99),
)
def test_a_seed_draws_one_number_and_that_one_of_the_tokens_that_the_limits_leave(
    p, temperature, top_p, top_k, min_p, seed
):
    sharp = (np.array(p) / max(p)) ** (1 / temperature)
    ranked = sorted(range(len(p)), key=lambda i: -sharp[i])
    ranked = [i for i in ranked if sharp[i] >= min_p][: top_k or None]
    before = np.cumsum([0.0, *sharp[ranked]]) / sharp[ranked].sum()
    left = sorted(i for i, mass in zip(ranked, before, strict=False) if mass < top_p)
    ends = np.cumsum(sharp[left]) / sharp[left].sum()
    number = np.random.default_rng(seed).random()
    # What lies on a limit itself falls on either side, by the rounding of its logarithm.
    assume(
        all(np.abs(at - limit).min() > 1e-9 for at, limit in ((sharp, min_p), (before[1:-1], top_p)) if len(at))
    )
    assume(np.abs(ends - number).min() > 1e-9)
    asked = params(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    tokens = np.arange(len(p)) * 7
    for scale in (1.0, 0.3):  # the candidates need not sum to 1
        found = draw(asked, p=np.array(p) / sum(p) * scale, tokens=tokens, seed=seed)
        assert found == 7 * left[int((ends < number).sum())]


def test_a_favoured_token_outside_the_candidates_can_win():
    assert draw(params(temperature=0, logit_bias={99: 100.0})) == 99
    tokens, logprobs = bias(TOKENS, np.log(P), {99: 2.0, 5: -1.0, 77: -3.0})
    assert tokens.tolist() == [3, 5, 8, 13, 21, 99]
    np.testing.assert_allclose(logprobs[1], np.log(0.4) - 1)
    np.testing.assert_allclose(logprobs[5], np.log(0.05) + 2)


def test_a_banned_token_is_not_drawn():
    assert draw(params(temperature=0, logit_bias={5: -100.0})) == 13


def test_forbidden_tokens_are_drawn_only_when_nothing_else_is_left():
    assert draw(params(temperature=0), forbidden={5, 13}) == 8
    assert draw(params(temperature=0), p=np.array([0, 1.0, 0, 0, 0]), forbidden={5}) == 5


def test_a_repetition_penalty_never_favours():
    """Not even where a bias has lifted a log-probability above 0."""
    got = penalise(
        TOKENS, np.array([4.0, -1, -1, -1, -1]), params(repetition_penalty=2.0), generated={3: 1}, prompt=()
    )
    assert got[0] == 2.0


def test_penalties_by_hand():
    got = penalise(
        TOKENS,
        np.log(P),
        params(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0),
        generated={5: 3},
        prompt={8},
    )
    expected = np.log(P)
    expected[1] = expected[1] * 2 - 0.5 - 3 * 0.25
    expected[2] = expected[2] * 2
    np.testing.assert_allclose(got, expected)


masses = st.sampled_from([0.0, 1e-12, 0.1, 0.25, 0.3, 1.0]) | st.floats(1e-6, 1)


@st.composite
def batches(draw):
    """For every sequence: its candidates' probabilities, padded, a temperature, what is forbidden, and a seed."""
    rows = draw(st.lists(st.lists(masses, min_size=1, max_size=9).filter(any), min_size=1, max_size=6))
    few = st.frozensets(st.integers(0, 9), max_size=3)
    each = {"min_size": len(rows), "max_size": len(rows)}
    temperatures = draw(st.lists(st.sampled_from([0.3, 1.0, 1.7]), **each))
    return rows, temperatures, draw(st.lists(few, **each)), draw(st.lists(st.integers(0, 99), **each))


@given(batches())
def test_a_batch_draws_what_each_of_its_sequences_draws_alone(batch):
    rows, temperatures, forbidden, seeds = batch
    width = max(map(len, rows))
    tokens = np.array([[*range(len(row)), *[-1] * (width - len(row))] for row in rows])
    p = np.array([[*row, *[0.0] * (width - len(row))] for row in rows])
    draws = np.array([np.random.default_rng(seed).random() for seed in seeds])
    alone = [
        draw(params(temperature=temperature), p=p[i], tokens=tokens[i], forbidden=forbidden[i], seed=seeds[i])
        for i, temperature in enumerate(temperatures)
    ]
    assert sample_plain(tokens, p, np.array(temperatures), forbidden, draws) == alone


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"logit_bias": {3: 1.0}},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
    ],
)
def test_whoever_asks_for_more_than_a_temperature_draws_alone(asked):
    assert is_plain(params(temperature=0.7))
    assert not is_plain(params(**asked))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_answer_ends_where_nothing_that_members_list_may_come(temperature):
    """Tokens that the others could not follow, and a list too short for any other."""
    sequence = SimpleNamespace(
        view=SimpleNamespace(end=7),
        constraint=None,
        sampling=SamplingParams(8, temperature=temperature),
        rng=np.random.default_rng(0),
        ends=SimpleNamespace(forbidden=lambda length: frozenset()),
        length=0,
        generated={},
        prompt_ids=frozenset(),
    )
    assert choose([sequence, sequence], np.array([[-1], [3]]), np.array([[0.0], [1.0]])) == [7, 3]
