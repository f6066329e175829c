from __future__ import annotations

import itertools
from collections import Counter

import pytest

from alignment.learning.anchors import anchors_of
from tests.support import small_tokenizers as tiny


@pytest.mark.parametrize(("source", "target"), [*itertools.product(tiny.KINDS, tiny.KINDS)])
def test_anchors_stand_for_the_same_bytes_and_only_them(source, target):
    a, b = tiny.KINDS[source](), tiny.KINDS[target]()
    pairs = anchors_of(a, b).tolist()
    assert pairs == sorted(pairs)
    assert len({s for s, _ in pairs}) == len({t for _, t in pairs}) == len(pairs)
    assert all(a.surfaces[s] == b.surfaces[t] for s, t in pairs)
    once = [
        {surface for surface, count in Counter(tokenizer.surfaces).items() if surface and count == 1}
        for tokenizer in (a, b)
    ]
    assert once[0] & once[1] <= {a.surfaces[s] for s, _ in pairs}
    assert sorted([t, s] for s, t in pairs) == anchors_of(b, a).tolist()


def test_a_letter_is_the_anchor_and_not_its_byte_token():
    plain, fallback = tiny.byte_level(), tiny.sentencepiece()
    pairs = dict(anchors_of(plain, fallback).tolist())
    letter = plain.byte_ids[ord("a")]
    assert fallback.byte_ids[ord("a")] != pairs[letter] == fallback.hf.convert_tokens_to_ids("a")
    assert pairs[plain.byte_ids[0xE2]] == fallback.byte_ids[0xE2]


def test_a_spelling_with_two_ids_is_no_anchor():
    """An added token is written as it is, beside the merged one, whose space is written as another character."""
    twice, once = tiny.byte_level(" the", " cabbages"), tiny.byte_level()
    merged, added = (twice.hf.convert_tokens_to_ids(token) for token in ("Ġthe", " the"))
    assert merged != added
    assert twice.surfaces[merged] == twice.surfaces[added] == b" the"
    assert b" the" in once.surfaces
    for pairs in (anchors_of(twice, once), anchors_of(once, twice)[:, ::-1]):
        named = set(pairs[:, 0].tolist())
        assert not named & {merged, added}
        assert named >= set(range(len(once.surfaces))) - {merged, *once.special_ids}, "no other token is left out"


def test_real_vocabularies_share_much(real):
    pairs = anchors_of(real["llama-2"], real["mistral-tekken"])
    assert len(pairs) > 10_000
    word = (
        real["llama-2"].hf.convert_tokens_to_ids("▁world"),
        real["mistral-tekken"].hf.convert_tokens_to_ids("Ġworld"),
    )
    assert list(word) in pairs.tolist()
