from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from alignment.vocab_map import VocabMap
from fusion.options import FusionParams
from fusion.step import (
    LEAST_LOST,
    complete,
    confident,
    effective_weights,
    faithful,
    fuse,
    fuse_logits,
    keep_the_pivots_cut,
    mixture,
    product,
    project,
    renormalize,
    unique_keys,
)
from tests.support.reference import shared
from tests.support.sparse_maps import map_of

rng = np.random.default_rng(0)


def eva_steps():
    path = shared("golden", "eva_step.json")
    return json.loads(path.read_text())["steps"], np.load(path.with_suffix(".npz"))


@pytest.mark.parametrize("step", range(16))
def test_a_step_is_what_the_authors_code_computes(step):
    """EVA's released code, float32; agreement within 1e-6."""
    steps, arrays = eva_steps()
    spec = steps[step]
    maps, logits = [], []
    for name in spec["model_order"]:
        logits.append(arrays[f"s{step}_logits_{name}"])
        if name == "pivot":
            maps.append(None)
        else:
            k = name.removeprefix("aux")
            triple = (arrays[f"map{k}_vals"], (arrays[f"map{k}_rows"], arrays[f"map{k}_cols"]))
            maps.append(map_of(sparse.csr_matrix(triple, shape=arrays[f"map{k}_shape"])))
    weights, filter_top = None, spec["drop"]
    if spec["method"] == "linear_sum":
        filter_top = None
        auxiliary = spec["lambdas_used"][: len(maps) - 1]
        # Without lambdas the reference gives the pivot nothing: its values sum to 1 before the pivot's turn.
        weights = [*auxiliary, 1 - sum(spec["lambdas_used"])]
    fused, kept = fuse_logits(logits, maps, weights=weights, filter_top=filter_top, top_k=spec["topk"])
    np.testing.assert_allclose(fused, arrays[f"s{step}_fused"], atol=1e-6)
    assert fused.argmax() == spec["argmax"]
    if spec["kept"] is not None:
        assert kept == ([True] * len(maps) if spec["fallback"] else spec["kept"])


def test_product_of_equal_vocabularies_is_the_mean_of_logits():
    """PackLLM's fusion of logits, in float64 by hand; within 1e-5 of the float32 path."""
    logits = rng.normal(size=(3, 50)) * 3
    weights = np.array([0.2, 0.5, 0.3])
    mean = weights @ logits
    expected = np.exp(mean - mean.max()) / np.exp(mean - mean.max()).sum()
    fused, _ = fuse_logits(list(logits), [None] * 3, weights=weights, combine="product")
    np.testing.assert_allclose(fused, expected, atol=1e-5)


def dense_projection(ids, logprobs, vocab_map, size):
    """The oracle of `project`: one loop per token."""
    out = np.zeros(size)
    for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
        if vocab_map is None:
            out[token] += np.exp(logprob)
            continue
        for target, weight in zip(vocab_map.target_ids[token], vocab_map.weights[token], strict=True):
            if target >= 0:
                out[target] += np.exp(logprob) * weight
    return out


def random_map(generator, source, target, entries):
    matrix = sparse.random(
        source, target, density=entries / target, random_state=generator, dtype=np.float32, format="csr"
    )
    return map_of(matrix)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12))
def test_projection_equals_the_loop_over_tokens(seed, rows, k):
    generator = np.random.default_rng(seed)
    sizes, pivot_size = (20, 30, 25), 25
    maps = [random_map(generator, n, pivot_size, 3) for n in sizes[:2]] + [None]
    answers = []
    for size in sizes:
        ids = np.stack([generator.permutation(size)[:k] for _ in range(rows)]).astype(np.int32)
        answers.append((ids, np.log(generator.dirichlet(np.ones(k), size=rows)).astype(np.float32)))
    candidates = project(answers, maps, pivot_size)
    for row in range(rows):
        tokens = candidates.tokens[row]
        used = tokens >= 0
        assert (np.diff(tokens[used]) > 0).all()
        assert (candidates.probabilities[row][:, ~used] == 0).all()
        for member, (ids, logprobs) in enumerate(answers):
            dense = np.zeros(pivot_size)
            dense[tokens[used]] = candidates.probabilities[row, member, used]
            expected = dense_projection(ids[row], logprobs[row], maps[member], pivot_size)
            np.testing.assert_allclose(dense, expected, atol=1e-6)


def test_a_member_that_maps_nothing_leaves_the_others_alone():
    nothing = VocabMap(np.full((4, 1), -1, np.int32), np.zeros((4, 1), np.float32), 4)
    ids, logprobs = np.array([[1, 2]], np.int32), np.log(np.array([[0.75, 0.25]], np.float32))
    candidates = project([(ids, logprobs), (ids, logprobs)], [None, nothing], 4)
    np.testing.assert_allclose(candidates.probabilities[0, 1], 0)
    np.testing.assert_allclose(candidates.probabilities[0, 0], [0.75, 0.25])


def naive_faithful(p, top):
    kept = []
    for m in range(len(p)):
        best = p[m].argmax()
        agrees = False
        for j in range(len(p)):
            if j != m:
                ranked = sorted(range(len(p[j])), key=lambda c: -p[j][c])[:top]
                agrees = agrees or (best in ranked and p[j][best] > 0)
        kept.append(agrees)
    return kept if any(kept) else [True] * len(p)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 6))
def test_filter_equals_its_definition(seed, members, top):
    generator = np.random.default_rng(seed)
    p = generator.permuted(np.tile(np.arange(1.0, 13.0), (3, members, 1)), axis=2)
    p = np.where(p < 5, 0, p / p.sum(axis=2, keepdims=True))
    assert faithful(p, top).tolist() == [naive_faithful(row, top) for row in p]


def test_weights_of_dropped_members_go_to_the_others_in_proportion():
    weights = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    kept = np.array([[True, False, True], [True, False, True]])
    np.testing.assert_allclose(effective_weights(weights, kept), [[5 / 7, 0, 2 / 7], [0.5, 0, 0.5]])


def test_product_lets_no_member_veto_by_truncation():
    p = np.array([[[0.9, 0.1, 0.0], [0.0, 0.3, 0.7]]])
    fused = product(p, np.array([[0.5, 0.5]]))
    assert (fused > 0).all()
    np.testing.assert_allclose(fused.sum(), 1)
    expected = np.sqrt([0.9 * 0.3, 0.1 * 0.3, 0.1 * 0.7])
    np.testing.assert_allclose(fused[0], expected / expected.sum())


def test_a_candidate_that_members_were_asked_about_sets_no_floor_in_a_product():
    listed = np.array([[[0.9, 0.1, 0.0], [0.0, 0.3, 0.7]]])
    named = np.concatenate([listed, [[[0.001], [0.002]]]], axis=2)
    weights = np.array([[0.5, 0.5]])
    fused = product(named, weights, np.array([[False, False, False, True]]))
    np.testing.assert_allclose(fused[0, :3] / fused[0, :3].sum(), product(listed, weights)[0])
    np.testing.assert_allclose(fused[0, 3] / fused[0, 1], np.sqrt(0.001 * 0.002 / (0.1 * 0.3)))


def test_mixture_is_the_weighted_mean():
    p = rng.dirichlet(np.ones(5), size=(2, 3))
    w = rng.dirichlet(np.ones(3), size=2)
    np.testing.assert_allclose(mixture(p, w)[1], w[1] @ p[1])


@given(st.lists(st.integers(0, 2**40), max_size=60))
def test_unique_keys_is_numpys_unique(keys):
    keys = np.array(keys, dtype=np.int64)
    unique, inverse = unique_keys(keys)
    expected, places = np.unique(keys, return_inverse=True)
    np.testing.assert_array_equal(unique, expected)
    np.testing.assert_array_equal(inverse, places)


def test_renormalised_rows_sum_to_one_unless_nothing_was_mapped():
    p = np.array([[[0.2, 0.3], [0.0, 0.0]]])
    np.testing.assert_allclose(renormalize(p), [[[0.4, 0.6], [0.0, 0.0]]])


@pytest.mark.parametrize(
    ("winner", "own", "kept"),
    [
        (b" rest", b" restaurant", True),
        (b" restaurant", b" rest", True),
        (b" rest", b" bar", False),
        (b"", b"x", False),
    ],
)
def test_the_guard_keeps_the_pivots_cut_of_the_same_text(winner, own, kept):
    surfaces = [winner, own, b"?"]
    fused, pivot = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.8, 0.1]])
    guarded = keep_the_pivots_cut(fused, pivot, lambda row, column: surfaces[column])
    np.testing.assert_allclose(guarded, [[0.3, 0.5, 0.2]] if kept else fused)


def test_members_must_meet_in_one_vocabulary():
    with pytest.raises(ValueError, match="one vocabulary"):
        fuse_logits([np.zeros(4), np.zeros(5)], [None, None])
    with pytest.raises(ValueError, match="one map"):
        fuse_logits([np.zeros(4)], [None, None])


@given(rng=st.integers(0, 2**32).map(np.random.default_rng), mass=st.floats(0, 1))
def test_what_a_map_loses_is_the_pivots_to_distribute(rng, mass):
    rows = rng.dirichlet(np.ones(5), (2, 3))
    rows[:, 1] *= mass
    made = complete(rows, 0, np.array([False, True, False]))
    np.testing.assert_array_equal(made[:, [0, 2]], rows[:, [0, 2]])
    np.testing.assert_allclose(made[:, 1], rows[:, 1] + max(1 - mass, LEAST_LOST) * rows[:, 0], atol=1e-12)


def test_nothing_that_the_pivot_lists_is_impossible_whatever_it_weighs():
    rows = np.array([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    fusion, mapped = FusionParams(unmapped="pivot"), np.array([False, True])
    fused = fuse(rows, np.array([[0.0, 1.0]]), 0, mapped, fusion).distribution
    assert fused[0, 0] > 0
    assert fuse(rows, np.array([[0.0, 1.0]]), 0, mapped, FusionParams()).distribution[0, 0] == 0


def test_who_is_sure_counts_more_by_confidence():
    sure, unsure = [0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]
    rows = np.array([[sure, unsure], [unsure, unsure]])
    given = np.array([[0.3, 0.7], [0.3, 0.7]])
    weights = confident(given, rows, 1.0)
    entropies = -(rows * np.log(rows)).sum(axis=2)
    expected = given * np.exp(-entropies)
    assert weights == pytest.approx(expected / expected.sum(axis=1, keepdims=True))
    assert weights[1] == pytest.approx(given[1])
    assert confident(given, rows, 100.0)[0] == pytest.approx([1, 0], abs=1e-6)


def test_an_empty_row_is_the_least_sure_and_no_weight_comes_of_none():
    rows = np.array([[[0.5, 0.5], [0.0, 0.0], [1.0, 0.0]]])
    weights = confident(np.array([[0.5, 0.5, 0.0]]), rows, 2.0)
    assert weights[0, 2] == 0
    assert weights[0, 0] >= weights[0, 1]
    assert weights.sum() == pytest.approx(1)


def test_confidence_reaches_the_fusion():
    rows = np.array([[[0.9, 0.1], [0.4, 0.6]]])
    given, nobody = np.full((1, 2), 0.5), np.zeros(2, np.bool_)
    plain = fuse(rows, given, 0, nobody, FusionParams())
    confidently = fuse(rows, given, 0, nobody, FusionParams(confidence=2.0))
    assert confidently.weights[0, 0] > plain.weights[0, 0]
    assert confidently.distribution[0, 0] > plain.distribution[0, 0]


@pytest.mark.parametrize("combine", ["mixture", "product"])
def test_what_is_not_admitted_is_not_lost(combine):
    """The member said it, and it comes to nothing; it is no vote for what the pivot wants."""
    rows = np.array([[[0.3, 0.1, 0.0], [0.05, 0.35, 0.6]]])  # the pivot lists only what is admitted
    given, mapped = np.array([[0.5, 0.5]]), np.array([False, True])
    admitted = np.array([[True, True, False]])
    fused = fuse(rows, given, 0, mapped, FusionParams(combine=combine), admitted=admitted).distribution[0]
    everything = fuse(rows, given, 0, mapped, FusionParams(combine=combine)).distribution[0]
    np.testing.assert_allclose(fused, everything * admitted[0])
    assert fused[1] > fused[0]
    assert fused[2] == 0


def test_where_nothing_admitted_is_said_the_pivot_decides():
    rows = np.array([[[0.4, 0.0], [0.0, 1.0]]])
    only_the_other = np.array([[0.0, 1.0]])
    admitted = np.array([[True, False]])
    fused = fuse(
        rows, only_the_other, 0, np.array([False, True]), FusionParams(unmapped="drop"), admitted=admitted
    )
    np.testing.assert_allclose(fused.distribution, [[0.4, 0.0]])
