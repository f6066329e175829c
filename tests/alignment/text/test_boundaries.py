"""Between two shared boundaries every tokenisation spells the same text, as its surfaces testify."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.text.boundaries import Located, shared_boundaries
from tests.support import small_tokenizers as tiny
from tests.support.conversations import CHATTING, FORGERIES, WORDS, conversation
from tests.support.reference import REAL, real_tokenizer

TALK = st.lists(st.lists(st.sampled_from([*WORDS, *FORGERIES]), max_size=8).map("".join), min_size=1, max_size=5)


def spelled(tokenizer, ids, tokens):
    """The text between neighbouring boundaries, after the tokens of these indices.

    Without spaces, as tokenizers add one where a text begins or goes on after an added token.
    """
    parts = [tokenizer.surface_of(ids[a + 1 : b + 1]) for a, b in itertools.pairwise(tokens)]
    return [part.replace(b" ", b"") for part in parts]


def cut(text, places):
    return [text[a:b].encode().replace(b" ", b"") for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("name", CHATTING)
@settings(deadline=None, max_examples=25)
@given(contents=TALK)
def test_boundaries_cut_a_message_into_what_its_tokens_spell(name, contents):
    tokenizer = CHATTING[name]()
    messages = conversation(contents)
    ids, located = tokenizer.locate_chat(messages)
    assert ids == tokenizer.encode_chat(messages)
    for index, content in enumerate(contents):
        text = content.strip()
        assert (located.texts[index] is None) == (not text)
        places, tokens = located.boundaries(index)
        assert (np.diff(places) > 0).all()
        assert (np.diff(tokens) > 0).all()
        assert spelled(tokenizer, ids, tokens) == cut(text, places)


@settings(deadline=None, max_examples=30)
@given(contents=TALK)
def test_all_spell_the_same_between_shared_boundaries(contents):
    messages = conversation(contents)
    tokenizers = {name: load() for name, load in CHATTING.items()}
    prompts = {name: tokenizer.locate_chat(messages) for name, tokenizer in tokenizers.items()}
    for index in range(len(contents)):
        tokens = shared_boundaries({name: located for name, (_, located) in prompts.items()}, index)
        texts = [spelled(tokenizers[name], prompts[name][0], tokens[name]) for name in tokenizers]
        assert all(text == texts[0] for text in texts)


def test_words_share_their_boundaries_and_boilerplate_is_left_out():
    """Llama 2 reads the space of its template with the first word, so the shared text begins after that."""
    messages = conversation(["The quick brown fox jumps over the lazy dog."])
    prompts = {name: real_tokenizer(name).locate_chat(messages) for name in ("llama-2", "qwen", "mistral-tekken")}
    tokens = shared_boundaries({name: located for name, (_, located) in prompts.items()}, 0)
    words = [b"quick", b"brown", b"fox", b"jumps", b"over", b"the", b"lazy", b"dog", b"."]
    for name, (ids, _) in prompts.items():
        assert spelled(real_tokenizer(name), ids, tokens[name]) == words


@pytest.mark.parametrize("name", REAL)
def test_a_text_is_located_behind_what_is_put_before_it(name):
    tokenizer = real_tokenizer(name)
    text = " Où est l'été 👨‍👩‍👧 à Noël?\n\n  12345 "
    ids, located = tokenizer.locate(text, add_special_tokens=True)
    assert ids == tokenizer.encode(text, add_special_tokens=True)
    places, tokens = located.boundaries(0)
    assert places[-1] == len(text)
    assert spelled(tokenizer, ids, tokens) == cut(text, places)
    assert (places[0] == 0) == (ids[0] in tokenizer.special_ids)  # nothing stands before the first token but BOS


def test_a_content_that_the_template_changes_is_nowhere():
    tokenizer = tiny.byte_level()
    template = tokenizer.hf.chat_template
    messages = conversation(["Hello there", "hello", "Hello there"])
    try:
        tokenizer.hf.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}</s>{% endfor %}"
        assert tokenizer.locate_chat(messages)[1].texts == (None, None, None)
        tokenizer.hf.chat_template = "{% for m in messages %}user {{ m.content[:5] }}{% endfor %}"
        assert tokenizer.locate_chat(messages)[1].texts == (None, None, None)
        tokenizer.hf.chat_template = "{{ messages[2].content }}|{{ messages[1].content }}"
        assert tokenizer.locate_chat(messages)[1].texts == ((0, 11), (12, 17), None)
        tokenizer.hf.chat_template = (
            "{% for m in messages %}{{ m.content if m.content == 'hello' else 'x' }}{% endfor %}"
        )
        assert tokenizer.locate_chat(messages)[1].texts == (None, None, None)
    finally:
        tokenizer.hf.chat_template = template


def test_a_prompt_without_tokens_has_no_boundaries():
    assert Located.of([], [(0, 0)]).boundaries(0)[0].size == 0
    assert Located.of([(0, 3)], [None]).boundaries(0)[0].size == 0
