from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.weights import cross_entropy, greedy_weights, member_weights, packllm_opt, packllm_sim
from tests.support.reference import shared

NAMES = ("complementary", "dominant", "eos_and_padded_vocab", "eos_none")


@pytest.fixture(scope="module")
def golden():
    """The authors' numbers by scenario: what they record, the logits [E, T, V], the labels [T], the ignored id."""
    record = json.loads(shared("golden", "packllm.json").read_text())
    arrays = np.load(shared("golden", "packllm.npz"))

    def scenario(row):
        i, vocabulary = row["index"], record["vocab"]
        logits = np.stack([arrays[f"s{i}_logits{e}"][:-1, :vocabulary] for e in range(4)])
        labels = arrays[f"s{i}_input_ids"][1:]
        # Where there is no end token, the authors' code ignores id 0.
        return row, logits, labels, row["eos_token_id"] or 0

    return {row["name"]: scenario(row) for row in record["scenarios"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_losses_and_sim_weights_are_met(golden, name):
    row, logits, labels, ignored = golden[name]
    counted = labels != ignored
    losses = [cross_entropy(e[counted].astype(np.float64), labels[counted]) for e in logits]
    np.testing.assert_allclose(losses, row["expert_losses"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(packllm_sim(losses), row["sim"]["weights_model_order"], atol=1e-6, rtol=0)
    assert np.argsort(losses).tolist() == row["opt"]["order"]


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_opt_weights_are_met(golden, name):
    row, logits, labels, ignored = golden[name]
    weights = packllm_opt(logits, labels, ignore_id=ignored)
    np.testing.assert_allclose(weights, row["opt"]["weights_model_order"], atol=1e-6, rtol=0)
    by_loss = packllm_opt(logits[row["opt"]["order"]], labels, ignore_id=ignored)
    np.testing.assert_allclose(by_loss, row["opt"]["weights_sorted_order"], atol=1e-6, rtol=0)
    counted = labels != ignored
    fused = cross_entropy(np.tensordot(weights, logits.astype(np.float64), 1)[counted], labels[counted])
    assert fused == pytest.approx(row["opt"]["combined_loss"], abs=1e-6)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=6), st.floats(0.05, 5))
def test_sim_prefers_lower_losses_and_sums_to_one(losses, tau):
    weights = packllm_sim(losses, tau)
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights[np.argsort(losses, kind="stable")]) <= 1e-12).all()


def test_sim_follows_its_temperature():
    np.testing.assert_allclose(packllm_sim([1.0, 2.0], 1.0)[0] / packllm_sim([1.0, 2.0], 1.0)[1], np.e)
    assert packllm_sim([1.0, 2.0], 0.1)[0] > 0.9999


@given(st.integers(1, 5), st.integers(2, 12), st.integers(0, 1000))
def test_opt_is_never_worse_than_the_best_expert_alone(experts, length, seed):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(experts, length, 7)), rng.integers(7, size=length)
    weights = packllm_opt(logits, labels)
    assert weights.sum() == pytest.approx(1)
    best = min(cross_entropy(expert, labels) for expert in logits)
    assert cross_entropy(np.tensordot(weights, logits, 1), labels) <= best + 1e-12


def test_the_first_of_equal_grid_values_favours_the_newcomer():
    assert greedy_weights(np.array([1.0, 2.0]), lambda weights: 0.0).tolist() == [0.0, 1.0]


def test_members_without_a_given_weight_weigh_nothing():
    assert member_weights(["a", "b"], {"b": 3.0}).tolist() == [0.0, 1.0]
    assert member_weights(["a", "b"], None).tolist() == [0.5, 0.5]


def test_any_positive_temperature_gives_weights():
    for tau in (5e-324, 1e-300, 1e-9, 1e300):
        weights = packllm_sim([2.0, 3.0, 2.0, 700.0], tau)
        assert np.isfinite(weights).all()
        assert weights.sum() == pytest.approx(1)
    np.testing.assert_array_equal(packllm_sim([2.0, 3.0, 2.0], 5e-324), [0.5, 0.0, 0.5])
