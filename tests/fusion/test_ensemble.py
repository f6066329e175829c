from __future__ import annotations

import pytest

from alignment.errors import InvalidRequestError
from tests.support.toy_fuser import toy_ensemble

TEXT = "Anna has 12 apples and buys 7 more."


@pytest.mark.parametrize("pivot", ["abacus", "lingvo", "almanac"])
def test_the_ids_of_a_prompt_are_the_prompt_for_every_member(tokenizers, pivot):
    ensemble = toy_ensemble(tokenizers, pivot=pivot)
    written = ensemble.encode_text(TEXT, locate=True)
    given = ensemble.encode_ids(written.ids[pivot], locate=True)
    assert given.ids == written.ids
    for name, located in written.located.items():
        places, _ = located.boundaries(0)
        assert given.located[name].boundaries(0)[0].tolist()[-1] == places.tolist()[-1] == len(TEXT)


def test_a_prompt_far_too_long_is_refused_before_it_is_read(tokenizers):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    text = "word " * 1_000_000
    for prompt in (
        lambda: ensemble.encode_text(text),
        lambda: ensemble.encode_chat([{"role": "user", "content": text}]),
        lambda: ensemble.encode_ids([5] * 1_000_000),
    ):
        with pytest.raises(InvalidRequestError, match="maximum context length is") as caught:
            prompt()
        assert caught.value.code == "context_length_exceeded"
