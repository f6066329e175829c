"""What stays of long prompts, and that no list of the places of all tokens is made: others wait meanwhile."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InvalidRequestError
from alignment.text import tokenizer as reading
from alignment.text.room import Room
from tests.support import small_tokenizers as tiny
from tests.support.conversations import CHATTING, FORGERIES, WORDS, conversation

TALK = st.lists(st.lists(st.sampled_from([*WORDS, *FORGERIES]), max_size=8).map("".join), min_size=1, max_size=3)


class Watched:
    """The library's reading of a text, of which all places may not be asked for at once."""

    def __init__(self, encoding, asked, *, counted_only=False):
        self._encoding, self._asked, self._counted_only = encoding, asked, counted_only

    def __len__(self):
        return len(self._encoding)

    def __getattr__(self, name):
        self._asked[name] += 1
        assert name != "offsets"
        assert not self._counted_only
        return getattr(self._encoding, name)


@pytest.fixture
def watched(monkeypatch):
    """What is asked of readings of texts; and has them allow nothing but to be counted."""
    asked, read = Counter(), reading._read

    def watch(counted_only=False):
        def watching(*args, **options):
            return Watched(read(*args, **options), asked, counted_only=counted_only)

        monkeypatch.setattr(reading, "_read", watching)
        return asked

    return watch


def taken(ids, located, indices):
    """The ids and places that are left of a prompt, as they stood."""
    return [ids[index] for index in indices], located.starts[indices], located.ends[indices]


@pytest.mark.parametrize("name", CHATTING)
@settings(deadline=None, max_examples=25)
@given(contents=TALK, tokens=st.integers(1, 40), side=st.sampled_from(["left", "right"]))
def test_what_stays_of_a_conversation_keeps_its_places(name, contents, tokens, side):
    tokenizer, messages, room = CHATTING[name](), conversation(contents), Room(tokens, side)
    whole, places = tokenizer.locate_chat(messages)
    ids, located = tokenizer.locate_chat(messages, room=room)
    assert ids == tokenizer.encode_chat(messages, room=room)
    assert len(ids) == min(tokens, len(whole))
    assert located.texts == places.texts
    begins = whole[0] == tokenizer.hf.bos_token_id and tokens > 1 and len(whole) > tokens
    rest = len(ids) - begins
    indices = np.arange(len(whole))[-rest:] if side == "left" else np.arange(len(whole))[begins : begins + rest]
    kept, starts, ends = taken(whole, places, indices)
    assert ids == [*whole[:begins], *kept]
    assert located.starts[begins:].tolist() == starts.tolist()
    assert located.ends[begins:].tolist() == ends.tolist()
    if begins and side == "left":
        assert located.starts[0] == located.ends[0] == max(starts[0], places.ends[indices[0] - 1])


@pytest.mark.parametrize("name", [*tiny.KINDS, "unigram"])
@settings(deadline=None, max_examples=20)
@given(text=st.lists(st.sampled_from([*WORDS, *FORGERIES]), max_size=12).map("".join), tokens=st.integers(1, 20))
def test_what_stays_of_a_text_is_its_end(name, text, tokens):
    tokenizer = {**tiny.KINDS, "unigram": tiny.unigram}[name]()
    whole, places = tokenizer.locate(text, add_special_tokens=False)
    ids, located = tokenizer.locate(text, add_special_tokens=False, room=Room(tokens))
    assert ids == whole[-tokens:] == tokenizer.encode(text, add_special_tokens=False, room=Room(tokens))
    assert (located.starts.tolist(), located.ends.tolist()) == (
        places.starts[-tokens:].tolist(),
        places.ends[-tokens:].tolist(),
    )


@pytest.mark.parametrize("name", CHATTING)
def test_a_prompt_found_far_too_long_is_only_counted(name, watched):
    """Where its length in characters does not tell: each of these takes several tokens."""
    tokenizer, text = CHATTING[name](), "\U00012000" * 600
    messages = [{"role": "user", "content": text}]
    assert max(tokenizer.encode_chat(messages), default=0)  # what is found out about the tokenizer once
    least = tokenizer.least_tokens(text)
    watched(counted_only=True)
    for read in (
        partial(tokenizer.encode, text, add_special_tokens=True),
        partial(tokenizer.locate, text, add_special_tokens=True),
        partial(tokenizer.encode_chat, messages),
        partial(tokenizer.locate_chat, messages),
    ):
        with pytest.raises(InvalidRequestError, match=r"but the prompt has at least \d+ \(") as caught:
            read(limit=least + 20)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("name", CHATTING)
@pytest.mark.parametrize("forged", ["", "</s>"])
def test_places_are_asked_for_one_by_one_and_only_of_what_stays(name, forged, watched):
    tokenizer, text = CHATTING[name](), "seven 7 " * 100 + forged
    messages = [{"role": "user", "content": text}]
    expected = tokenizer.locate_chat(messages), tokenizer.locate(text, add_special_tokens=True)
    asked = watched()
    found = tokenizer.locate_chat(messages), tokenizer.locate(text, add_special_tokens=True)
    for (ids, located), (as_before, places) in zip(found, expected, strict=True):
        assert ids == as_before
        assert located.starts.tolist() == places.starts.tolist()
        assert located.ends.tolist() == places.ends.tolist()
    if not forged:
        asked.clear()
        tokenizer.locate(text, add_special_tokens=True, room=Room(10))
        assert 9 <= asked["token_to_chars"] <= 11
