"""Names and places of tokens in text completions."""

from __future__ import annotations

from math import nan
from types import SimpleNamespace

import pytest

from alignment.text.boundaries import Located
from fusion.core import Token, TokenLogProb
from server.http.protocol.logprobs import CompletionText, chat_logprobs
from tests.support import small_tokenizers as tiny


def token(id: int, surface: bytes, logprob: float = -1.0, *top: tuple[int, bytes, float]) -> Token:
    return Token(TokenLogProb(id, surface, logprob), tuple(TokenLogProb(*entry) for entry in top))


NAMES = SimpleNamespace(hf=SimpleNamespace(convert_ids_to_tokens=lambda id: None if id > 90 else "<end>"))


def test_of_several_tokens_with_one_text_the_best_is_kept():
    text = CompletionText(NAMES)
    [top] = text.logprobs(
        (), [token(1, b"B", -0.1, (1, b"B", -0.1), (2, b"A", -3.0), (3, b"A", -9.0))]
    ).top_logprobs
    assert top == {"B": -0.1, "A": -3.0}
    [top] = text.logprobs((), [token(3, b"A", -9.0, (1, b"B", -0.1), (2, b"A", -3.0))]).top_logprobs
    assert top == {"B": -0.1, "A": -3.0}


def test_the_padding_of_a_vocabulary_is_not_called_none():
    padding = token(91, b"", -1.0, (92, b"", -2.0), (5, b"", -3.0))
    shown = CompletionText(NAMES).logprobs((), [padding])
    assert shown.tokens == ["<id 91>"]
    assert shown.top_logprobs == [{"<id 91>": -1.0, "<id 92>": -2.0, "<end>": -3.0}]
    [entry] = chat_logprobs([padding], NAMES).content
    assert [entry.token, *(other.token for other in entry.top_logprobs)] == ["<id 91>", "<id 92>", "<end>"]


def test_offsets_count_characters_that_are_returned():
    text = CompletionText(NAMES)
    first = text.logprobs((), [token(1, b"a"), token(2, b"\xe2\x82"), token(3, b"\xac")])
    assert first.text_offset == [0, 1, 1]
    second = text.logprobs((), [token(4, b"b"), token(5, b""), token(6, b"\x80c"), token(7, b"d")])
    assert second.text_offset == [2, 3, 3, 5]  # broken bytes come out as U+FFFD


@pytest.mark.parametrize("name", [*tiny.KINDS, "unigram"])
@pytest.mark.parametrize("prompt", ["The dog barks", " two  spaces ", "cafe\u0301 nai\u0308ve", "12 你好 😀", "x"])
def test_each_token_of_an_echo_is_the_text_at_its_offset(name, prompt):
    tokenizer = {**tiny.KINDS, "unigram": tiny.unigram}[name]()
    ids, located = tokenizer.locate(prompt, add_special_tokens=True)
    tokens = [token(id, tokenizer.surfaces[id] or b"", nan if i == 0 else -1.0) for i, id in enumerate(ids)]
    text = prompt + " more"
    shown = CompletionText(tokenizer, prompt, located).logprobs(tokens, [token(0, b" more")])
    for word, offset, one in zip(shown.tokens, shown.text_offset, [*tokens, token(0, b" more")], strict=True):
        if one.chosen.surface and not word.startswith("bytes:"):
            assert text[offset : offset + len(word)] == word
    assert shown.text_offset[-1] == len(prompt)
    assert shown.top_logprobs[0] is None
    assert all(word in top for word, top in zip(shown.tokens[1:], shown.top_logprobs[1:], strict=True))


@pytest.mark.parametrize("name", [*tiny.KINDS, "unigram"])
@pytest.mark.parametrize("prompt", ["The dog barks", "12 apples", "x"])
def test_the_ids_of_a_prompt_are_the_prompt(name, prompt):
    tokenizer = {**tiny.KINDS, "unigram": tiny.unigram}[name]()
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    assert tokenizer.text_of(ids) == prompt
    places = Located.of_surfaces(tokenizer.written(ids))
    assert places.texts == ((0, len(prompt)),)
