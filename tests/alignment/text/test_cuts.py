from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from alignment.text.cuts import cuts_of
from tests.support.naive_spelling import FRAGMENTS

# The words of well-known tokenizers, and a few shapes that they do not have.
PATTERNS = {
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "han": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+|\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "digits from the right": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+",
    "pairs of words": r"[a-z]+ [a-z]+|(?:\p{L}{2})+|.|\s",
    "ends of texts": r" ?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "an end alone": r"\s+$",
    "gaps": r"\p{L}+|\p{N}+",
    "possessive": r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|\s++|[^\s\p{L}\p{N}]++",
}


def boundaries(pattern: str, text: str) -> set[int]:
    words = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
    return {start for _, (start, _) in words}


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(
    before=st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).map("".join),
    after=st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
    other=st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
)
def test_words_before_a_cut_do_not_depend_on_what_follows(name, before, after, other):
    pattern = PATTERNS[name]
    cut = cuts_of({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    assert cut is not None
    text = before + after
    words = boundaries(pattern, text)
    for at in range(1, len(text)):
        if cut(text[at - 1], text[at]):
            assert at in words
            short = {start for start in boundaries(pattern, text[: at + 1]) if start <= at}
            changed = {start for start in boundaries(pattern, text[: at + 1] + other) if start <= at}
            assert short == changed == {start for start in words if start <= at}
            rest = {start + at for start in boundaries(pattern, text[at:])}
            assert rest == {start for start in words if start >= at}


@pytest.mark.parametrize(
    ("name", "pair", "expected"),
    [
        ("cl100k", "d ", True),
        ("cl100k", "d.", True),
        ("cl100k", "d'", True),
        ("cl100k", "d1", True),
        ("cl100k", "。中", False),
        ("cl100k", "中。", True),
        ("cl100k", ".d", False),
        ("cl100k", " d", False),
        ("cl100k", "11", False),
        ("cl100k", "\n\n", False),
        ("cl100k", "\nd", True),
        ("o200k", "d'", False),
        ("han", "中d", True),
        ("han", "中文", False),
        ("han", "d中", True),
        ("digits from the right", "12", False),
        ("pairs of words", "a ", False),
        ("gaps", "!!", False),
        ("gaps", "a!", True),
    ],
)
def test_pairs_that_are_and_are_not_cuts(name, pair, expected):
    cut = cuts_of({"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False})
    assert cut is not None
    assert cut(*pair) is expected


@pytest.mark.parametrize("pattern", [r"(?<=a)b|.", r"^a|.", r"(a)\1|.", r"\bword|.", r"x*", r"(?>a+)b|."])
def test_what_is_not_understood_has_no_cuts(pattern):
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    assert cuts_of(step) is None
