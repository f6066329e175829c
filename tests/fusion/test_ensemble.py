from __future__ import annotations

from itertools import pairwise

import pytest

from alignment.errors import InvalidRequestError
from alignment.text.boundaries import shared_boundaries
from alignment.text.room import Room
from tests.support import small_tokenizers as tiny
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
        assert caught.value.tokens > caught.value.limit == ensemble.longest_context


def test_what_members_share_of_a_shortened_prompt_is_the_same_text(tokenizers):
    """Also after the token that a tokenizer begins every text with, which stays."""
    ensemble = toy_ensemble({"abacus": tokenizers["abacus"], "other": tiny.sentencepiece()}, pivot="abacus")
    bos = ensemble.models["other"].tokenizer.hf.bos_token_id
    text, compared = "The quick fox 你好 🎉, and some numbers 12 to 19 in all, Noël", 0
    for room in range(1, len(ensemble.encode_text(text).ids["other"])):
        cut = ensemble.encode_text(text, locate=True, room=Room(room))
        assert max(map(len, cut.ids.values())) <= room
        assert (cut.ids["other"][0] == bos) == (room > 1)
        spelled = {}
        for name, before in shared_boundaries(cut.located, 0).items():
            ids, tokenizer = cut.ids[name], ensemble.models[name].tokenizer
            units = [ids[first + 1 : last + 1] for first, last in pairwise(before)]
            spelled[name] = [tokenizer.surface_of(unit).strip() for unit in units]
        assert spelled["abacus"] == spelled["other"]
        compared += len(spelled["abacus"])
    assert compared > 100


def test_ids_are_shortened_for_every_member(tokenizers):
    ensemble = toy_ensemble(tokenizers, pivot="lingvo")
    ids = ensemble.encode_text("word " * 300).ids["lingvo"]
    for side, part in (("left", ids[-7:]), ("right", ids[:7])):
        cut = ensemble.encode_ids(ids, locate=True, room=Room(7, side))
        assert cut.ids["lingvo"] == part
        assert len(cut.located["lingvo"].starts) == 7
        assert max(map(len, cut.ids.values())) <= 7
