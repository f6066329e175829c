from __future__ import annotations

import numpy as np
import pytest

from alignment.methods.exact import exact_map
from alignment.methods.prefix import prefix_map
from tests.support import small_tokenizers as tiny
from tests.support.reference import REAL


def longest_beginnings(source, target) -> list[int]:
    """The same by trying every target token, the plain way."""
    byte_tokens = set(target.byte_ids)
    found = []
    for surface in source.surfaces:
        fits = [
            (-len(other), id in byte_tokens, id)
            for id, other in enumerate(target.surfaces)
            if surface and other and surface.startswith(other)
        ]
        found.append(min(fits)[2] if fits else -1)
    return found


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", REAL)
def test_what_exact_leaves_out_goes_to_a_token_that_begins_it(real, source, target):
    a, b = real[source], real[target]
    stops = {"source_stops": {a.hf.eos_token_id}, "target_stop": b.hf.eos_token_id}
    exact, prefix = exact_map(a, b, **stops), prefix_map(a, b, **stops)
    joined = exact.target_ids[:, 0] >= 0
    np.testing.assert_array_equal(prefix.target_ids[joined], exact.target_ids[joined])
    for id, target_id in zip(
        np.flatnonzero(~joined).tolist(), prefix.target_ids[~joined, 0].tolist(), strict=True
    ):
        if target_id >= 0:
            assert a.surfaces[id].startswith(b.surfaces[target_id])
            assert a.surfaces[id] != b.surfaces[target_id]
        else:  # all four have tokens for all bytes of text
            assert a.surfaces[id] is None
    np.testing.assert_array_equal(prefix.weights, (prefix.target_ids >= 0).astype(np.float32))


@pytest.mark.parametrize("source", tiny.KINDS)
@pytest.mark.parametrize("target", tiny.KINDS)
def test_the_beginning_is_the_longest_in_bytes(source, target):
    a, b = tiny.KINDS[source](), tiny.KINDS[target]()
    map = prefix_map(a, b, source_stops=[], target_stop=0)
    assert map.target_ids[:, 0].tolist() == longest_beginnings(a, b)


def test_special_tokens_go_nowhere_and_pieces_of_characters_to_their_bytes():
    a, b = tiny.byte_level(), tiny.sentencepiece()
    map = prefix_map(a, b, source_stops=[], target_stop=0)
    assert (map.target_ids[sorted(a.special_ids), 0] == -1).all()
    assert not np.isin(map.target_ids, sorted(b.special_ids)).any()
    pieces = [
        id for id, s in enumerate(a.surfaces) if s and s[0] >= 0xC0 and len(s) < 3 and s not in set(b.surfaces)
    ]
    for id in pieces:
        assert map.target_ids[id, 0] == b.byte_ids[a.surfaces[id][0]]


@pytest.mark.parametrize("missing", [[0xC0, 0xC1, *range(0xF5, 0x100)], [0x20, 0x41], list(range(0x80, 0x100))])
def test_vocabularies_may_lack_bytes(missing):
    """SmolLM2's lacks those that UTF-8 never uses, and some more."""
    lacking = tiny.without_bytes(missing)
    for other in (tiny.byte_level(), tiny.split_digits(), tiny.sentencepiece(), tiny.unigram()):
        for a, b in ((other, lacking), (lacking, other)):
            map = prefix_map(a, b, source_stops=[], target_stop=0)
            assert map.target_ids[:, 0].tolist() == longest_beginnings(a, b)
