"""Packed attention over a shared cache equals attention of each row by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusion.members.transformers.cache.kv import KVCache
from fusion.members.transformers.forward.attention import Packed, Row, packed_attention, runs

TOKENS, HEADS, KV_HEADS, DIM = 96, 4, 2, 8


@st.composite
def rows(draw):
    """Rows in disjoint extents, of equal sizes as often as not."""
    found, start = [], 0
    even = draw(st.booleans())
    while start < TOKENS:
        size = 16 if even else draw(st.integers(1, 40))
        start += draw(st.sampled_from((0, 0, 0, 16)))
        if start + size > TOKENS:
            break
        length = draw(st.integers(1, size))
        most = min(length, draw(st.sampled_from((4, 20))))  # of a decoding step, and of a prompt
        found.append(Row(draw(st.integers(1, most)), length, start, size))
        start += size
    return draw(st.permutations(found))


def alone(query, keys, values, window, softcap):
    """One row, written out: query [H, n, D] at the end of keys and values [KV, L, D]."""
    keys, values = (t.repeat_interleave(HEADS // KV_HEADS, 0) for t in (keys, values))
    scores = query @ keys.transpose(1, 2) * 0.3
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    count, length = scores.shape[1:]
    for i in range(count):
        at = length - count + i
        scores[:, i, at + 1 :] = -torch.inf
        if window:
            scores[:, i, : max(0, at - window + 1)] = -torch.inf
    return (scores.softmax(-1) @ values).transpose(0, 1)


@settings(deadline=None)
@given(rows().filter(bool), st.sampled_from((None, 1, 3, 200)), st.sampled_from((None, 1.5)))
def test_every_row_sees_its_own_cache(batch, window, softcap):
    generator = torch.Generator().manual_seed(0)
    module = nn.Module()
    module.layer_idx = 3
    cache = KVCache(TOKENS)
    old = torch.randn(2, KV_HEADS, TOKENS, DIM, generator=generator)
    # What earlier owners left behind must not matter, however large.
    mine = [torch.arange(row.start, row.start + row.length) for row in batch]
    stale = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, torch.cat(mine), False)
    old[:, :, stale] *= 1000
    keys, values = cache.write(3, old[0], old[1], torch.arange(TOKENS))
    order, found = runs(batch)
    batch = [batch[i] for i in order]
    assert [length for run in found for length in run.lengths] == [row.length for row in batch]
    slots = torch.tensor([row.start + p for row in batch for p in range(row.length - row.count, row.length)])
    n = len(slots)
    query = torch.randn(1, HEADS, n, DIM, generator=generator)
    key, value = torch.randn(2, 1, KV_HEADS, n, DIM, generator=generator)
    out, _ = packed_attention(
        module, query, key, value, None, packed=Packed(cache, slots, found), scaling=0.3, sliding_window=window,
        softcap=softcap,
    )  # fmt: skip
    assert out.shape == (1, n, HEADS, DIM)
    at = 0
    for row in batch:
        place = slice(row.start, row.start + row.length)
        expected = alone(query[0, :, at : at + row.count], keys[:, place], values[:, place], window, softcap)
        torch.testing.assert_close(out[0, at : at + row.count], expected, atol=1e-4, rtol=1e-4)
        at += row.count


def test_rows_at_equal_distances_share_one_view_and_others_do_not():
    even = [Row(1, 5 + i, 64 * i, 64) for i in range(8)]
    assert [len(run.lengths) for run in runs(even)[1]] == [8]
    assert [len(run.lengths) for run in runs(even[:3] + even[4:])[1]] == [3, 4]
    mixed = [Row(1 + i % 2, 5, 64 * i, 64) for i in range(8)]
    assert [(run.count, len(run.lengths)) for run in runs(mixed)[1]] == [(1, 4), (2, 4)]
    beyond = [Row(1, 5, 0, 16), Row(1, 30, 16, 32)]
    assert [len(run.lengths) for run in runs(beyond)[1]] == [1, 1]


def test_decoding_rows_of_one_length_need_no_mask():
    run = runs([Row(1, 9, 64 * i, 64) for i in range(4)])[1][0]
    assert run.mask(None, torch.device("cpu"), torch.float32) == (0, False, None)
    assert run.mask(4, torch.device("cpu"), torch.float32) == (5, False, None)


@pytest.mark.parametrize(
    "extra", [{"s_aux": torch.zeros(1)}, {"position_bias": torch.zeros(1)}, {"is_causal": False}]
)
def test_what_it_does_not_compute_is_refused(extra):
    from fusion.members.transformers.forward.attention import UnsupportedAttentionError

    zeros = torch.zeros(1, 1, 1, 8)
    with pytest.raises(UnsupportedAttentionError):
        packed_attention(
            nn.Module(), zeros, zeros, zeros, None, packed=Packed(KVCache(1), torch.zeros(1).long(), []), **extra
        )
