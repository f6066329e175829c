"""Decoding never waits for more than a chunk of prompts, and no prompt waits for ever."""

from hypothesis import given
from hypothesis import strategies as st

from fusion.members.engine import DECODING_TOKENS
from fusion.members.transformers.schedule import share

queues = st.lists(st.integers(1, 2000), max_size=30)


@given(queues, st.integers(1, 512))
def test_short_work_runs_whole_and_prompts_fill_one_chunk(remaining, chunk):
    now = share(remaining, chunk)
    short = min(DECODING_TOKENS, chunk)
    assert [n for n, left in zip(now, remaining, strict=True) if left <= short] == [
        left for left in remaining if left <= short
    ]
    prompts = [(n, left) for n, left in zip(now, remaining, strict=True) if left > short]
    assert all(0 <= n <= left for n, left in prompts)
    assert sum(n for n, _ in prompts) == min(chunk, sum(left for _, left in prompts))
    if prompts:
        assert prompts[0][0] >= min(prompts[0][1], chunk // 2)


def test_short_prompts_share_a_chunk_and_overtake_a_long_one():
    assert share([5000, 30, 20, 1], 100) == [50, 30, 20, 1]


def test_a_long_prompt_moves_on_while_short_ones_keep_coming():
    assert share([5000, *[60] * 50], 100)[0] == 50
