from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InvalidRequestError
from tests.support import small_tokenizers as tiny
from tests.support.reference import REAL

TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["assistant", " the", "e\u0301", "\u1100\u1161", "  ", "\n", "</s>", "ﬁ", "中"])).map(
        "".join
    ),
)


@pytest.mark.parametrize("name", [*tiny.KINDS, "unigram"])
@settings(deadline=None, max_examples=100)
@given(text=TEXT)
def test_the_bound_holds(name, text):
    tokenizer = {**tiny.KINDS, "unigram": tiny.unigram}[name]()
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", REAL)
def test_a_text_far_too_long_is_refused_without_being_read(real, name):
    tokenizer = real[name]
    text = "word " * 400_000
    with pytest.raises(InvalidRequestError, match="maximum context length is 1000 tokens") as caught:
        tokenizer.encode(text, add_special_tokens=True, limit=1000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(InvalidRequestError, match="maximum context length"):
        tokenizer.locate(text, add_special_tokens=True, limit=1000)
    if tokenizer.template:
        with pytest.raises(InvalidRequestError, match="maximum context length"):
            tokenizer.encode_chat([{"role": "user", "content": text}], limit=1000)
    short = "word " * 50
    assert len(tokenizer.encode(short, add_special_tokens=True, limit=1000)) > 50
    assert tokenizer.least_tokens(text) > 10_000
