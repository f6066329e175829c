"""Sequences keep their own tokens wherever the arena puts them, and exactly what fits is let in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.members.transformers.cache.arena import Arena, ArenaFullError, Move
from fusion.members.transformers.cache.kv import KVCache


@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 300), st.integers(0, 300)), max_size=60),
)
def test_any_history_keeps_contents_and_the_exact_bound(tokens, history):
    arena = Arena(tokens)
    memory = [None] * tokens
    texts: dict[int, list[object]] = {}
    for sequence, keep, append in history:
        text = texts.get(sequence, [])
        if append == 0:
            arena.release(sequence)
            texts.pop(sequence, None)
            continue
        keep = min(keep, len(text))
        others = sum(len(t) for s, t in texts.items() if s != sequence)
        if others + keep + append > tokens:
            with pytest.raises(ArenaFullError):
                arena.reserve(sequence, keep + append, keep)
            continue
        for move in arena.reserve(sequence, keep + append, keep):
            memory[move.target : move.target + move.length] = memory[move.source : move.source + move.length]
        texts[sequence] = text[:keep] + [object() for _ in range(append)]
        extent = arena.extents[sequence]
        memory[extent.start + keep : extent.start + keep + append] = texts[sequence][keep:]
        assert extent.start + extent.size <= tokens
        assert arena.used == sum(map(len, texts.values()))
        for other, text in texts.items():
            extent = arena.extents[other]
            assert memory[extent.start : extent.start + len(text)] == text


def test_laying_out_anew_overwrites_nothing_on_its_way_up_or_down():
    for new in (500, 900):
        arena = Arena(2450)
        memory: list[object] = [None] * 2450
        for sequence in range(12):
            arena.reserve(sequence, 60, 0)
            memory[128 * sequence : 128 * sequence + 60] = [(sequence, i) for i in range(60)]
        moves = arena.reserve(99, new, 0)
        assert moves
        for move in moves:
            memory[move.target : move.target + move.length] = memory[move.source : move.source + move.length]
        for sequence in range(12):
            start = arena.extents[sequence].start
            assert memory[start : start + 60] == [(sequence, i) for i in range(60)]


def test_sequences_of_like_length_lie_at_equal_distances_while_there_is_room():
    arena = Arena(4096)
    for sequence in range(16):
        arena.reserve(sequence, 64 + sequence % 5, 0)
    assert [arena.extents[sequence].start for sequence in range(16)] == list(range(0, 2048, 128))


def test_growing_a_token_at_a_time_seldom_moves_anything():
    arena = Arena(10_000)
    arena.reserve(1, 10, 0)
    moves = [arena.reserve(1, length, length - 1) for length in range(11, 4000)]
    assert sum(map(len, moves)) < 10


@pytest.mark.parametrize(("source", "target"), [(0, 3), (3, 0), (0, 8)])
def test_moves_may_overlap(source, target):
    cache = KVCache(16)
    content = torch.arange(32.0).reshape(2, 16, 1)
    cache.write(0, content, -content, torch.arange(16))
    cache.apply([Move(source, target, 6)])
    assert torch.equal(cache.keys[0][:, target : target + 6], content[:, source : source + 6])
    assert torch.equal(cache.values[0][:, target : target + 6], -content[:, source : source + 6])
