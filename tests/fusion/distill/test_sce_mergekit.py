"""SCE's variant of mergekit against mergekit itself, where that is installed (development only, LGPL).

pip install --no-deps --target FOLDER mergekit==0.1.5 && PYTHONPATH=FOLDER pytest THIS
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion.distill.sce import merge_tensor

pytest.importorskip("mergekit.merge_methods.sce", reason="mergekit is not installed")


@pytest.mark.parametrize("select", [1.0, 0.9, 0.5, 0.29, 0.1])
@pytest.mark.parametrize(("shape", "count"), [((64, 48), 3), ((257,), 2), ((8, 4, 6), 4)])
def test_merged_as_mergekit_does_where_changes_are_large(shape, count, select):
    from mergekit.merge_methods.base import TensorGroup
    from mergekit.merge_methods.sce import sce_merge

    rng = np.random.default_rng(count)
    base = rng.normal(size=shape).astype(np.float32)
    tasks = [base + rng.normal(scale=0.05, size=shape).astype(np.float32) for _ in range(count)]
    group = TensorGroup.from_tensors([torch.from_numpy(one) for one in (base, *tasks)], base_index=0)
    expected = sce_merge.merge_group(group, select_topk=select, int8_mask=False).numpy()
    merged, _ = merge_tensor(base, tasks, select=select, variant="mergekit")
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-6)
