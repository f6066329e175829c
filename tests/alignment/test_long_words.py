"""Words of growing texts that end with long runs, against the words of the whole text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from alignment.long_words import LongWords
from alignment.text.cuts import cuts_of
from tests.alignment.text.test_cuts import PATTERNS

MORE = {
    "backtracks": r"a[ab]*c|[ab]+|\s+(?!\S)|\s+|.",
    "lazy": r"a+?b|[ab]+c|\w|.",
    "possessive": r"a?+[ab]++|[^ab]++[\r\n]*+|\s+",
    "pairs": r"aa|ab|[b-]+|.",
    "counted": r"[ab]{1,3}|-{2,}|.",
    "groups": r"(?:ab|-)+|(?:a|b)+c|.",
    "lines": r"\s*[\r\n]+|\s+(?!\S)|\s+|\w+",
    "guarded": r"\s*\n(?!\t)|\s+",
    "guarded loop": r"[\s-]*(?=\n)|\s+|-+",
    "possessive loop": r"\s*+-|\s+|-+",
    "two loops": r"\s*[\n-]*a|[\s-]+|\w",
    "ahead": r"[ab]+(?=--)|-+(?=a)|[ab-]|.",
}
LETTERS = ["a", "b", "-", " ", "\n", "\t", "é", "世", "7"]
CHUNKS = st.one_of(
    st.tuples(st.text(LETTERS, min_size=1, max_size=4), st.just(1)),
    st.tuples(st.sampled_from(["a", "-", " ", "\n", "世", "7", "ab", "世界"]), st.integers(40, 200)),
    st.tuples(st.text(LETTERS, min_size=2, max_size=4), st.integers(40, 100)),
    st.tuples(st.sampled_from(["\n\t", "\n\n  ", " \u3000\n", "-\n", "--a"]), st.integers(40, 100)),
)


def splitting(pattern):
    """What `LongWords` asks of a continuation about words; bytes are written as characters."""
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    split = pre_tokenizers.Split(Regex(pattern), "isolated")

    def words(text):
        return [word.encode().decode("latin-1") for word, _ in split.pre_tokenize_str(text)]

    return SimpleNamespace(runs=cuts_of(step), words=words)


@pytest.mark.parametrize("name", [*PATTERNS, *MORE])
@example(chunks=[(" ", 40), ("\n\t", 40)], ends=["7"])  # `$` is the end of a line too
@settings(max_examples=80, deadline=None)
@given(chunks=st.lists(CHUNKS, min_size=1, max_size=6), ends=st.lists(st.text(LETTERS, min_size=1, max_size=3)))
def test_words_of_a_text_that_grows_are_those_of_the_whole(name, chunks, ends):
    continuation = splitting((PATTERNS | MORE)[name])
    long, text = LongWords(continuation, []), ""
    for piece in [part * times for part, times in chunks] + ends:
        text += piece
        long._words = long._split(text)
        assert long._words == continuation.words(text)


@pytest.mark.parametrize("part", ["-", "\n\t", "\n  \t\r\n", "\n" + "\t" * 60])
def test_a_stretch_is_split_at_the_same_cost_however_long_it_is(part):
    continuation, seen = splitting(PATTERNS["cl100k"]), []
    words = continuation.words
    continuation.words = lambda text: seen.append(len(text)) or words(text)
    long, text = LongWords(continuation, []), "x = "
    for _ in range(60):
        text += part * (500 // len(part))
        long._words = long._split(text)
    assert max(seen[10:]) < 2000
