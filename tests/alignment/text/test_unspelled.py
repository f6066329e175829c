"""Vocabularies that lack bytes: what they leave out is said when they are loaded, and nothing else is lost."""

from __future__ import annotations

from alignment.spelling import Edit, Spelling
from tests.support.small_tokenizers import byte_level, without_bytes


def test_bytes_without_a_token_are_counted_among_the_findings():
    [sentence] = [one for one in without_bytes([4, 6, 0xF1, 0xC0]).findings if "bytes" in one]
    assert sentence.startswith("3 bytes of text have no token")
    assert not [one for one in byte_level().findings if "bytes" in one]


def test_a_character_that_is_not_spelled_leaves_the_text_around_it():
    lacking = without_bytes([4])
    spelling = Spelling(lacking)
    spelling.extend(b"a")
    assert spelling.extend(b"\x04") == Edit(1, [])
    spelling.extend(b"b")
    assert lacking.surface_of(spelling.ids) == b"ab"
