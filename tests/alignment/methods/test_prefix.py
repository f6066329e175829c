from __future__ import annotations

import numpy as np
import pytest

from alignment.methods.exact import exact_map
from alignment.methods.prefix import prefix_map
from tests.support import small_tokenizers as tiny
from tests.support.reference import REAL


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", REAL)
def test_what_exact_leaves_out_goes_to_a_token_that_begins_it(real, source, target):
    a, b = real[source], real[target]
    stops = {"source_stops": {a.hf.eos_token_id}, "target_stop": b.hf.eos_token_id}
    exact, prefix = exact_map(a, b, **stops), prefix_map(a, b, **stops)
    joined = exact.target_ids[:, 0] >= 0
    np.testing.assert_array_equal(prefix.target_ids[joined], exact.target_ids[joined])
    beginnings = prefix.target_ids[~joined, 0]
    for id, target_id in zip(np.flatnonzero(~joined), beginnings, strict=True):
        if target_id >= 0:
            assert a.surfaces[id].startswith(b.surfaces[target_id])
            assert a.surfaces[id] != b.surfaces[target_id]
    if source != target:
        # What stays out is special, a piece of a character, or text that the target's normaliser rewrites.
        assert (beginnings >= 0).mean() > 0.9
    np.testing.assert_array_equal(prefix.weights, (prefix.target_ids >= 0).astype(np.float32))


def test_the_beginning_is_the_targets_own_spelling():
    a, b = tiny.byte_level(), tiny.split_digits()
    map = prefix_map(a, b, source_stops=[], target_stop=0)
    longer = [id for id, s in enumerate(a.surfaces) if s and s.isascii() and s not in set(b.surfaces)]
    assert longer
    for id in longer:
        spelled = b.continuation.encode(a.surfaces[id].decode())
        assert map.target_ids[id, 0] == spelled[0]


def test_special_tokens_and_pieces_of_characters_go_nowhere():
    a, b = tiny.byte_level(), tiny.sentencepiece()
    map = prefix_map(a, b, source_stops=[], target_stop=0)
    assert (map.target_ids[sorted(a.special_ids), 0] == -1).all()
    inside = [id for id, s in enumerate(a.surfaces) if s and s not in set(b.surfaces) and 0x80 <= s[0] < 0xC0]
    assert (map.target_ids[inside, 0] == -1).all()
