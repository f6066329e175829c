from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.learning import csls, looks
from alignment.learning.looks import ByteLook, FloatLook


def naive(source, target, top, threshold, uncorrected):
    """All similarities at once, every row sorted."""
    cosines = source @ target.T
    hubs = cosines.max(axis=0)
    hubs[list(uncorrected)] = 0
    rows = []
    for row in 2 * cosines - hubs:
        best = np.argsort(-row, kind="stable")[:top]
        rows.append([(int(j), float(row[j])) for j in best if row[j] >= threshold])
    return rows


# Few and exact numbers, so that there are ties, and every way of adding up gives the same.
rows = st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=3, max_size=3)


@given(
    source=st.lists(rows, min_size=1, max_size=9),
    target=st.lists(rows, min_size=1, max_size=12),
    top=st.integers(1, 4),
    threshold=st.sampled_from([0.0625, 0.25, 1.0]),
    uncorrected=st.sets(st.integers(0, 11), max_size=3),
    near=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 11)), max_size=4),
    cells=st.integers(1, 120),
    group=st.integers(1, 4),
    look=st.sampled_from([FloatLook, ByteLook]),
)
def test_blocks_give_what_the_full_matrix_gives(
    source, target, top, threshold, uncorrected, near, cells, group, look
):
    uncorrected = sorted(id for id in uncorrected if id < len(target))
    near = [(i, j) for i, j in near if i < len(source) and j < len(target)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csls, "_CELLS", cells)
        patch.setattr(csls, "_GROUP", group)
        patch.setattr(csls, "choose", look)
        patch.setattr(looks, "_whole_products", lambda block, part, _: (block.double() @ part.double().T).int())
        ids, scores = csls.nearest(
            torch.tensor(source),
            torch.tensor(target),
            top=top,
            threshold=threshold,
            uncorrected=torch.tensor(uncorrected, dtype=torch.int64),
            near=torch.tensor(near, dtype=torch.int64).view(-1, 2),
        )
    expected = naive(np.array(source), np.array(target), top, threshold, uncorrected)
    got = [
        [(int(j), float(s)) for j, s in zip(row, row_scores, strict=True) if j >= 0]
        for row, row_scores in zip(ids, scores, strict=True)
    ]
    assert got == expected
    assert (scores[ids < 0] == -torch.inf).all()


def test_progress_ends_at_one(monkeypatch):
    monkeypatch.setattr(csls, "_CELLS", 8)
    monkeypatch.setattr(csls, "_GROUP", 2)
    told: list[float] = []
    table = torch.eye(4)
    csls.nearest(
        table,
        table,
        top=1,
        threshold=0.1,
        uncorrected=torch.empty(0, dtype=torch.int64),
        near=torch.empty(0, 2, dtype=torch.int64),
        on_progress=told.append,
    )
    assert told == [0.5, 1.0]
