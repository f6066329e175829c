"""How much text a pool of blocks holds where groups of layers take blocks of their own."""

import pytest

pytest.importorskip("vllm")

from fusion.members.vllm.core import rooms

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
