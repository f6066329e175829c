"""The k best tokens, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.members.topk import best_allowed, best_tokens


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 5000), st.data())
def test_equals_a_full_stable_sort(n, width, data):
    k = data.draw(st.integers(1, width))
    seed = data.draw(st.integers(0, 99))
    logits = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    if data.draw(st.booleans()):
        logits = logits.mul(2).round()  # many equals
    if data.draw(st.booleans()):
        logits[:, ::3] = -torch.inf
        logits[:, width // 2] = 0.5
    ids, logprobs, totals = best_tokens(logits, k)
    order = torch.sort(logits, descending=True, stable=True).indices[:, :k]
    assert ids.dtype == np.int32
    assert ids.tolist() == order.tolist()
    expected = torch.log_softmax(logits, -1).gather(1, order)
    np.testing.assert_allclose(logprobs, expected, atol=2e-6, rtol=1e-6)
    np.testing.assert_allclose(totals, torch.logsumexp(logits, -1), atol=2e-6, rtol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([40, 900, 5000]), st.floats(0, 1), st.integers(0, 99), st.booleans())
def test_the_best_allowed_are_the_first_allowed_of_a_full_sort(k, width, share, seed, shorter):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=width).astype(np.float32)).mul(4).round()
    mask = rng.random(width - 17 if shorter else width) < share
    ids, scores = best_allowed(logits, np.packbits(mask, bitorder="little"), k)
    order = np.argsort(-logits.numpy(), kind="stable")
    expected = [id for id in order if id < len(mask) and mask[id]][:k]
    assert ids[: len(expected)].tolist() == expected
    assert scores[: len(expected)].tolist() == logits[expected].tolist()
    assert len(set(ids.tolist())) == k
    assert (scores[len(expected) :] == -np.inf).all()


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_the_best_allowed_of_a_row_that_is_no_distribution_are_none(share):
    """As many as ever, so that the rows beside it keep their shape."""
    logits = torch.randn(5000)
    logits[7] = float("nan")
    mask = np.random.default_rng(0).random(5000) < share
    ids, scores = best_allowed(logits, np.packbits(mask, bitorder="little"), 20)
    assert (ids.shape, scores.shape) == ((20,), (20,))
    assert np.isnan(scores).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_no_distribution_is_marked_and_leaves_the_others_alone(bad):
    logits = torch.randn(3, 500)
    expected = best_tokens(logits[::2], 10)
    logits[1, 77] = bad
    ids, logprobs, totals = best_tokens(logits, 10)
    assert np.isnan(totals).tolist() == [False, True, False]
    assert (ids[::2] == expected[0]).all()
    assert (logprobs[::2] == expected[1]).all()
