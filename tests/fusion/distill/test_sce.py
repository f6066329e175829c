from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.distill import sce
from fusion.distill.sce import linear_tensor, merge, merge_tensor, varm_tensor
from tests.support.reference import shared


def golden():
    path = shared("golden", "sce_merge.json")
    return json.loads(path.read_text()), np.load(path.with_suffix(".npz"))


def tensors(arrays, spec, prefix="x"):
    number = spec["index"]
    tasks = [arrays[name] for m in range(9) if (name := f"{prefix}{number}_task{m}") in arrays]
    return arrays[f"{prefix}{number}_base"], tasks


@pytest.mark.parametrize("variant", ["fusechat", "mergekit"])
def test_the_authors_merges_are_met(variant):
    spec, arrays = golden()
    compared = 0
    for tensor in spec["tensors"]:
        base, tasks = tensors(arrays, tensor)
        for result in tensor["results"]:
            key = f"x{tensor['index']}_{variant}_{result['select_topk']}"
            if key not in arrays:
                continue
            select = result["select_topk"]
            whole = merge(
                {tensor["name"]: base}, [{tensor["name"]: t} for t in tasks], select=select, variant=variant
            )
            assert whole[tensor["name"]].dtype == base.dtype
            np.testing.assert_allclose(whole[tensor["name"]], arrays[key], rtol=0, atol=1e-6, err_msg=key)
            if all(task.shape == base.shape for task in tasks):
                weights = merge_tensor(base, tasks, select=select, variant=variant)[1]
                np.testing.assert_allclose(weights, result[f"{variant}_weights"], atol=1e-6, err_msg=key)
            compared += 1
    assert compared > 10


def test_the_authors_bfloat16_merges_are_met_within_their_rounding():
    spec, arrays = golden()
    for tensor in spec["bf16"]:
        base, tasks = tensors(arrays, tensor, "b")
        for result in tensor["results"]:
            got = merge_tensor(base, tasks, select=result["select_topk"], variant="fusechat")[0]
            rounded = torch.tensor(got).bfloat16().float().numpy()
            expected = arrays[f"b{tensor['index']}_fusechat_{result['select_topk']}"]
            np.testing.assert_allclose(rounded, expected, rtol=0, atol=4e-3)


def example(seed=0, shape=(6, 5), tasks=3):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return base, [base + rng.normal(size=shape).astype(np.float32) * 0.3 for _ in range(tasks)]


both = pytest.mark.parametrize("variant", ["fusechat", "mergekit"])


@both
@pytest.mark.parametrize("select", [1.0, 0.3])
def test_the_order_of_the_tasks_changes_nothing(variant, select):
    base, tasks = example()
    merged, weights = merge_tensor(base, tasks, select=select, variant=variant)
    other, turned = merge_tensor(base, tasks[::-1], select=select, variant=variant)
    np.testing.assert_allclose(merged, other, atol=1e-6)
    np.testing.assert_allclose(weights, turned[::-1])


@both
def test_equal_tasks_are_what_comes_out(variant):
    base, tasks = example(tasks=1)
    np.testing.assert_allclose(merge_tensor(base, tasks * 3, variant=variant)[0], tasks[0], atol=1e-6)


@both
@given(st.floats(0, 1))
def test_every_entry_stays_between_base_and_the_farthest_task(variant, select):
    base, tasks = example()
    merged, weights = merge_tensor(base, tasks, select=select, variant=variant)
    every = np.stack([base, *tasks])
    assert weights.sum() == pytest.approx(1)
    assert ((merged >= every.min(0) - 1e-6) & (merged <= every.max(0) + 1e-6)).all()


def test_a_sum_of_zero_elects_plus():
    merged, _ = merge_tensor(np.zeros(1, np.float32), [np.float32([1]), np.float32([-1])], variant="fusechat")
    assert merged[0] == 1


def test_where_mergekit_selects_nothing_the_base_stays():
    base, tasks = example(tasks=1)
    np.testing.assert_array_equal(merge_tensor(base, tasks * 2, select=0.5, variant="mergekit")[0], base)
    base, tasks = example()
    np.testing.assert_array_equal(merge_tensor(base, tasks, select=0.01, variant="mergekit")[0], base)


def test_the_share_of_entries_is_a_float32_product():
    rng = np.random.default_rng(0)
    base, tasks = np.zeros(100, np.float32), [rng.normal(size=100).astype(np.float32) for _ in range(2)]
    merged, _ = merge_tensor(base, tasks, select=0.29, variant="mergekit")
    assert np.count_nonzero(merged) == 29


@both
@pytest.mark.parametrize("select", [1.0, 0.4])
def test_large_tensors_are_merged_in_parts_with_the_same_result(variant, select, monkeypatch):
    base, tasks = example(shape=(40, 11))
    whole = merge_tensor(base, tasks, select=select, variant=variant)
    monkeypatch.setattr(sce, "CHUNK", 7)
    for ours, theirs in zip(merge_tensor(base, tasks, select=select, variant=variant), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_dtype_is_the_bases_and_inputs_are_left_unchanged(dtype):
    base, tasks = (np.asarray(x, dtype) for x in example())
    for array in (base, tasks):
        array.setflags(write=False)
    assert merge_tensor(base, list(tasks), select=0.5, variant="fusechat")[0].dtype == dtype


def test_linear_is_the_mean_and_varm_weighs_by_what_changed():
    base, tasks = example()
    merged, weights = linear_tensor(base, tasks)
    np.testing.assert_allclose(merged, np.mean(tasks, axis=0), atol=1e-6)
    merged, weights = varm_tensor(base, tasks)
    squares = np.array([((task - base) ** 2).mean() for task in tasks])
    np.testing.assert_allclose(weights, squares / squares.sum(), rtol=1e-5)
    np.testing.assert_allclose(weights, merge_tensor(base, tasks, variant="fusechat")[1], rtol=1e-6)
    np.testing.assert_allclose(merged, np.tensordot(weights, np.stack(tasks), 1), atol=1e-6)
    np.testing.assert_allclose(varm_tensor(base, [base, *tasks])[1], 0.25)


def test_a_larger_table_is_cropped_and_other_odd_shapes_are_left_out():
    base, tasks = example(tasks=2)
    odd = np.vstack([tasks[1], tasks[1]])
    models = [
        {"model.embed_tokens.weight": tasks[0], "norm": tasks[0]},
        {"model.embed_tokens.weight": odd, "norm": odd},
    ]
    merged = merge({"model.embed_tokens.weight": base, "norm": base}, models, variant="fusechat")
    np.testing.assert_array_equal(
        merged["model.embed_tokens.weight"], merge_tensor(base, tasks, variant="fusechat")[0]
    )
    np.testing.assert_array_equal(merged["norm"], merge_tensor(base, tasks[:1], variant="fusechat")[0])
    smaller = merge({"lm_head.weight": base}, [{"lm_head.weight": base[:2] + 1}], variant="fusechat")
    np.testing.assert_array_equal(smaller["lm_head.weight"], base)


def test_what_is_not_a_float_stays_the_bases():
    merged = merge({"steps": np.array([3])}, [{"steps": np.array([9])}], variant="mergekit")
    assert merged["steps"].tolist() == [3]


def test_a_merge_that_makes_no_sense_is_refused():
    base, tasks = example()
    for options, sentence in (
        ({"select": 1.5}, "select must lie in"),
        ({"variant": "ties"}, "variant must be one of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            merge_tensor(base, tasks, **{"variant": "fusechat", **options})
    with pytest.raises(ValueError, match="at least one task"):
        merge_tensor(base, [], variant="fusechat")
    with pytest.raises(ValueError, match="task 1 has shape"):
        merge_tensor(base, [base, base[:1]], variant="fusechat")
    with pytest.raises(ValueError, match="task 0 has no tensor 'a'"):
        merge({"a": base}, [{"b": base}], variant="fusechat")
