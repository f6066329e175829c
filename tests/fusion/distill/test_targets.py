from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax, logsumexp, softmax

from fusion.distill.targets import REST, choose, fusion_loss, target_probabilities
from tests.support.reference import shared


def golden():
    path = shared("golden", "fusechat_loss.json")
    return json.loads(path.read_text()), np.load(path.with_suffix(".npz"))


def sparse_rows(dense):
    """Probabilities and ids [B,L,K] of dense rows [B,L,V], padded with -1."""
    width = int((dense > 0).sum(-1).max())
    ids = np.argsort(-dense, axis=-1, kind="stable")[..., :width].astype(np.int32)
    probabilities = np.take_along_axis(dense, ids, -1)
    return probabilities, np.where(probabilities > 0, ids, -1)


def dense_loss(logits, labels, probabilities, ids, loss, lm_weight):
    """The loss written out over the whole vocabulary, in float64."""
    logs = log_softmax(np.asarray(logits, np.float64), axis=-1)
    lm, fused = [], []
    for b, t in np.argwhere(labels[:, 1:] != -100):
        lm.append(-logs[b, t, labels[b, t + 1]])
        p = np.zeros(logits.shape[-1])
        kept = ids[b, t] >= 0
        np.add.at(p, ids[b, t][kept], probabilities[b, t][kept])
        entropy = sum(x * np.log(x) for x in p[p > 0])
        fused.append(-(p * logs[b, t]).sum() + (entropy if loss == "kl" else 0))
    return lm_weight * np.mean(lm) + (1 - lm_weight) * np.mean(fused), np.mean(lm), np.mean(fused)


def example(seed=0, batch=2, length=6, vocabulary=30, k=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, length, vocabulary)).astype(np.float32)
    labels = rng.integers(vocabulary, size=(batch, length))
    labels[:, :2] = -100
    ids = np.stack([rng.permutation(vocabulary)[:k] for _ in range(batch * length)]).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(k), size=batch * length).astype(np.float32)
    ids[0], probabilities[0] = -1, 0
    ids[3, 2:], probabilities[3, 2:] = -1, 0
    shape = (batch, length, k)
    return logits, labels, probabilities.reshape(shape), ids.reshape(shape)


@pytest.mark.parametrize("run", range(8))
def test_the_authors_loss_is_met(run):
    spec, arrays_ = golden()
    this = spec["runs"][run]
    base, fused = (arrays_[f"T{this['temperature']}_{name}_dist"] for name in ("base", "fused"))
    taken = np.array([name == "fused" or not this["fuse_with_ref_model"] for name in spec["chosen"]])
    probabilities, ids = sparse_rows(np.where(taken[:, None, None], fused, base))
    total, lm, fusion = fusion_loss(
        arrays_["logits"],
        arrays_["labels"],
        probabilities,
        ids,
        loss=this["loss_type"],
        lm_weight=spec["lm_loss_weight"],
    )
    assert lm == pytest.approx(this["lm_loss"], abs=1e-4)
    assert fusion == pytest.approx(this["fusion_loss"], abs=1e-3 if this["loss_type"] == "kl" else 1e-4)
    assert total == pytest.approx(this["total_loss"], abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_authors_targets_are_met(temperature):
    """Ours from logits rounded to bfloat16, as theirs are, within a bfloat16 step of each probability."""
    spec, arrays_ = golden()
    align = json.loads(shared("golden", "fusechat_align.json").read_text())["pairs"]["pivot_bytelevel"]["samples"]
    for row, number in enumerate(spec["samples"]):
        sample = align[number]
        k = max(len(r) for r in sample["aligned_stat"]["logits"])

        def rows(field, sample=sample, k=k):
            values = [r[:] + [-np.inf] * (k - len(r)) for r in field["logits"]]
            names = [r[:] + [-1] * (k - len(r)) for r in field["indices"]]
            rounded = torch.tensor(values).bfloat16().float().numpy()
            return rounded, np.array(names)

        logits, ids = rows(sample["aligned_stat"])
        logits[spec["emptied_step"]], ids[spec["emptied_step"]] = -np.inf, -1
        own = rows({"logits": sample["pivot_logits"], "indices": sample["pivot_indices"]})
        got, names = target_probabilities(logits, ids, temperature=temperature, own=own)
        mask = arrays_["attention_mask"][row].astype(bool)
        expected = arrays_[f"T{temperature}_fused_dist"][row][mask]
        dense = np.zeros_like(expected)
        at, column = np.nonzero(names[: len(expected)] >= 0)
        dense[at, names[at, column]] = got[at, column]
        np.testing.assert_allclose(dense, expected, rtol=2**-8 * 1.01, atol=1e-6)


def test_the_authors_choice_is_met_where_bfloat16_can_tell():
    spec, _ = golden()
    assert choose(spec["metric_ce"], spec["fused_metric_ce"]).tolist() == [True, False, True]
    assert spec["chosen"][2] == "base"  # 1.001 and 1.0 are equal rewards in bfloat16, not here


def test_equal_losses_keep_the_pivots_targets():
    chosen = choose([1.0, 2.0, np.nan, 1.0], [1.0, 1.5, 1.0, np.nan])
    assert chosen.dtype == bool
    assert chosen.tolist() == [False, True, True, False]


finite = st.floats(-50, 50, width=32)


@given(arrays.arrays(np.float32, (3, 4), elements=finite), st.floats(0.1, 4))
def test_rows_are_softmaxes_over_their_own_entries(logits, temperature):
    ids = np.array([[7, 3, 1, -1], [2, -1, -1, -1], [-1, -1, -1, -1]])
    probabilities, names = target_probabilities(logits, ids, temperature=temperature)
    np.testing.assert_array_equal(names, ids)
    np.testing.assert_allclose(probabilities[0, :3], softmax(logits[0, :3] / np.float64(temperature)), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), [1, 1, 0], atol=1e-6)
    assert not probabilities[ids < 0].any()


def test_an_empty_row_takes_the_pivots_own():
    probabilities, ids = target_probabilities(
        [[1.0, -np.inf], [-np.inf, -np.inf]],
        [[4, -1], [-1, -1]],
        own=([[0.0, 0.0, 0.0], [np.log(2), 0.0, 0.0]], [[1, 2, 3], [1, 2, 3]]),
    )
    np.testing.assert_array_equal(ids, [[4, -1, -1], [1, 2, 3]])
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [0.5, 0.25, 0.25]])
    assert (probabilities.dtype, ids.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mass_left_out_is_an_entry_of_its_own(temperature):
    rng = np.random.default_rng(0)
    full = rng.normal(size=(5, 40)) * 3
    ids = np.argsort(-full, axis=1)[:, :6]
    logits = np.take_along_axis(full, ids, 1)
    logits[4], ids[4] = -np.inf, -1
    lse = logsumexp(full / temperature, axis=1)
    probabilities, names = target_probabilities(logits, ids, temperature=temperature, normalisers=lse)
    exact = np.take_along_axis(softmax(full / temperature, axis=1)[:4], ids[:4], 1)
    np.testing.assert_allclose(probabilities[:4, :6], exact, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), [1, 1, 1, 1, 0], atol=1e-6)
    assert names[:, 6].tolist() == [REST] * 4 + [-1]


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_the_sparse_loss_is_the_dense_one(loss):
    logits, labels, probabilities, ids = example()
    expected = dense_loss(logits, labels, probabilities, ids, loss, 0.7)
    got = fusion_loss(logits, labels, probabilities, ids, loss=loss, lm_weight=0.7)
    np.testing.assert_allclose([float(x) for x in got], expected, rtol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("rest", [False, True])
def test_gradients_reach_the_student_and_are_the_slopes(loss, rest):
    logits, labels, probabilities, ids = example()
    if rest:
        left = np.full((*ids.shape[:2], 1), 0.2, np.float32)
        probabilities = np.concatenate([0.8 * probabilities, left], axis=-1)
        ids = np.concatenate([ids, np.full_like(left, REST, dtype=np.int32)], axis=-1)
    student = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: fusion_loss(z, labels, probabilities, ids, loss=loss, lm_weight=0.3)[0], (student,)
    )


def test_the_rest_is_compared_with_what_the_student_leaves_out():
    rng = np.random.default_rng(1)
    full = rng.normal(size=(2, 4, 20))
    lse = logsumexp(full, axis=-1)
    ids = np.argsort(-full, axis=-1)[..., :5]
    rows = [
        target_probabilities(np.take_along_axis(full, ids, -1)[b], ids[b], normalisers=lse[b]) for b in range(2)
    ]
    probabilities, names = (np.stack(x) for x in zip(*rows, strict=True))
    labels = rng.integers(20, size=(2, 4))
    assert fusion_loss(full, labels, probabilities, names, loss="kl")[2] == pytest.approx(0, abs=1e-6)
    assert fusion_loss(full * 0.5, labels, probabilities, names, loss="kl")[2] > 0.01


def test_a_student_that_masks_tokens_outside_the_target_has_a_finite_gradient():
    logits, labels, probabilities, ids = example()
    ids[ids >= 0] %= 10
    labels[labels >= 0] %= 10
    student = torch.tensor(logits)
    student[..., 20:] = -torch.inf
    student.requires_grad_()
    total, _, _ = fusion_loss(student, labels, probabilities, ids, loss="kl")
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def test_half_precision_logits_are_computed_in_float32():
    logits, labels, probabilities, ids = example()
    student = torch.tensor(logits).bfloat16().requires_grad_()
    total, lm, _ = fusion_loss(student, labels, probabilities, ids)
    total.backward()
    assert total.dtype == torch.float32
    assert student.grad.dtype == torch.bfloat16
    exact = fusion_loss(student.detach().float().numpy(), labels, probabilities, ids)
    assert lm.item() == pytest.approx(exact[1], rel=1e-5)


def test_batches_of_one_step_add_up_to_one_large_batch():
    logits, labels, probabilities, ids = example(batch=4)
    labels[1, 3:] = -100
    count = int((labels[:, 1:] != -100).sum())
    whole = fusion_loss(logits, labels, probabilities, ids)
    parts = [
        fusion_loss(*(x[b : b + 1] for x in (logits, labels, probabilities, ids)), positions=count)
        for b in range(4)
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": "mse"}, "loss must be one of ce, kl"),
        ({"lm_weight": 2}, "lm_weight must lie in"),
        ({"labels": np.full((2, 6), -100)}, "no position has a label"),
        ({"labels": np.zeros((2, 5), int)}, "must agree in B and L"),
        ({"ids": np.full((2, 6, 4), 30)}, "outside the student's vocabulary"),
        ({"ids": np.zeros((2, 6, 3), int)}, "must have one shape"),
    ],
)
def test_a_loss_that_cannot_be_computed_is_refused(change, sentence):
    given_ = dict(zip(("logits", "labels", "probabilities", "ids"), example(), strict=True))
    with pytest.raises(ValueError, match=sentence):
        fusion_loss(**{**given_, **change})


def test_targets_that_cannot_be_computed_are_refused():
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        target_probabilities([[1.0]], [[1]], temperature=0)
    with pytest.raises(ValueError, match="must both be"):
        target_probabilities([[1.0]], [[1, 2]])
    with pytest.raises(ValueError, match="more than all mass"):
        target_probabilities([[1.0]], [[1]], normalisers=[0.0])
    with pytest.raises(ValueError, match="losses of the pivot"):
        choose([1.0], [1.0, 2.0])
