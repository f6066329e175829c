"""Beginnings of characters, against every byte of real text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment.text.characters import beginning_at_the_end, pieces_of
from tests.support import small_tokenizers as tiny


@given(st.one_of(st.text().map(str.encode), st.binary(max_size=12)), st.integers(0, 12))
def test_the_beginning_at_the_end_is_what_reading_all_of_it_leaves(data, cut):
    assert beginning_at_the_end(data[:cut]) == pieces_of(data[:cut])[1]


def test_byte_tokens_are_a_context_where_some_character_is_spelled_in_them():
    tokenizer = tiny.byte_level()
    first = tokenizer.byte_ids[0xE6]  # 気 is three tokens
    assert tokenizer.beginnings.are_canonical([first], b"\xe6")
    assert len(tokenizer.continuation.encode("é")) == 1
    assert not tokenizer.beginnings.are_canonical([tokenizer.byte_ids[0xE6], 7], b"\xe6\xb0")
    whole = tokenizer.continuation.encode("世")
    assert not tokenizer.beginnings.are_canonical(whole, b"\xe4"), "it is no beginning, but the whole"
