from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.reasoning import ReasoningSplitter, ReasoningTags

THINK = ReasoningTags("<think>", "</think>")


def split(pieces, tags=THINK, *, opened=False):
    splitter = ReasoningSplitter(tags, opened=opened, midway=False)
    found = [piece for text in pieces for piece in splitter.push(text)] + splitter.finish()
    kinds = [kind for kind, _ in itertools.groupby(found, key=lambda piece: piece.kind)]
    assert kinds in ([], ["reasoning"], ["content"], ["reasoning", "content"])
    return tuple("".join(p.text for p in found if p.kind == kind) for kind in ("reasoning", "content"))


def cut(text, cuts):
    edges = sorted({0, len(text), *(at % (len(text) + 1) for at in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


texts = st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", " ", "\n", "a", "é"]), max_size=10)


@given(texts.map("".join), st.lists(st.integers(0, 999), max_size=8), st.booleans())
def test_any_cut_of_any_text_gives_the_same(text, cuts, opened):
    assert (
        split(cut(text, cuts), opened=opened) == split([text], opened=opened) == split(list(text), opened=opened)
    )


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nhm\n</think>\n\nHi", False, ("hm", "Hi")),
        (" \n<think>hm</think>Hi ", False, ("hm", "Hi ")),
        ("hm\n</think>\n\nHi", True, ("hm", "Hi")),
        ("Hi <think>no</think>", False, ("", "Hi <think>no</think>")),
        ("  Hi", False, ("", "  Hi")),
        ("<think>hm and", False, ("hm and", "")),
        ("<thin", False, ("", "<thin")),
        ("<think></think>Hi", False, ("", "Hi")),
        ("", True, ("", "")),
    ],
)
def test_thoughts_are_those_between_the_tags_at_the_beginning(text, opened, expected):
    assert split([text], opened=opened) == expected


def test_tags_can_be_others_and_a_prompt_may_open_them():
    tags = ReasoningTags("[THINK]", "[/THINK]")
    assert split(["[THINK]a[/THINK]b"], tags=tags) == ("a", "b")
    assert tags.opened_by("<assistant>[THINK]\n")
    assert not tags.opened_by("[THINK] is a word")
