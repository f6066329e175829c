"""How much text a pool of blocks holds where groups of layers take blocks of their own."""

import pytest

pytest.importorskip("vllm")

from fusion.members.vllm.core import pool_for, rooms

GROWING, RECURRENT = False, True


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(16, GROWING)], (16, 1000)),
        ([(16, GROWING)] * 4, (16, 250)),
        ([(32, GROWING), *[(16, GROWING)] * 5], (32, 90)),  # 1 and 5 x 2 blocks for 32 tokens
        ([(16, GROWING), (4096, RECURRENT)], (16, 500)),  # one block for a whole context
        ([(528, GROWING), (528, RECURRENT)], (528, 500)),
        ([(4096, RECURRENT)], (4096, 1000)),
        ([], (1, 1000)),
    ],
)
def test_a_room_costs_what_all_groups_take_of_it(groups, expected):
    assert rooms(1000, groups) == expected


@pytest.mark.parametrize(
    "groups", [[(32, GROWING), (16, GROWING)], [(48, GROWING), (32, GROWING), (999, RECURRENT)]]
)
@pytest.mark.parametrize("length", [1, 16, 17, 100, 511])
def test_no_text_takes_more_than_its_rooms(groups, length):
    pool = 10_000
    tokens, count = rooms(pool, groups)
    taken = sum(-(-length // size) for size, _ in groups)
    assert taken <= -(-length // tokens) * (pool / count)


@pytest.mark.parametrize(
    ("groups", "pool"),
    [
        ([(32, GROWING)], 512),
        ([(32, GROWING)] * 6, 3072),  # each group has blocks of its own for the same text
        ([(528, GROWING), (528, RECURRENT)], 64),  # and not 16,384 / 16 of these large blocks
        ([(4096, RECURRENT)], 8),  # a state for each sequence
    ],
)
def test_the_pool_holds_the_tokens_that_are_asked_for(groups, pool):
    assert pool_for(16_384, groups, sequences=8) == pool
    tokens, count = rooms(pool, groups)
    assert tokens * count >= 16_384
