"""The map by spelling: the first token of the target's own spelling stands for a token that the target lacks."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.methods.exact import exact_map
from alignment.methods.prefix import prefix_map
from alignment.methods.spelled import spelled_map
from alignment.spelling import Spelling
from tests.support import small_tokenizers as tiny


def is_text(surface):
    try:
        return surface.decode() is not None
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("source", tiny.KINDS)
@pytest.mark.parametrize("target", tiny.KINDS)
def test_what_exact_leaves_out_goes_to_how_the_target_begins_to_spell_it(source, target):
    a, b = tiny.KINDS[source](), tiny.KINDS[target]()
    exact, prefix, spelled = (
        make(a, b, source_stops=[], target_stop=0) for make in (exact_map, prefix_map, spelled_map)
    )
    for id, surface in enumerate(a.surfaces):
        found = spelled.target_ids[id, 0]
        if exact.target_ids[id, 0] >= 0:
            assert found == exact.target_ids[id, 0]
            continue
        spelling = Spelling(b)
        if surface and is_text(surface):
            spelling.extend(surface)
        if spelling.ids and surface.startswith(b.surface_of(spelling.ids[:1])):
            assert found == spelling.ids[0]
        else:
            assert found == prefix.target_ids[id, 0]
    np.testing.assert_array_equal(spelled.weights, spelled.target_ids >= 0)


def test_no_token_of_text_is_lost_where_the_target_spells_all_bytes():
    a, b = tiny.byte_level(), tiny.sentencepiece()
    spelled = spelled_map(a, b, source_stops=[], target_stop=0)
    text = [id for id, surface in enumerate(a.surfaces) if surface]
    assert (spelled.target_ids[text, 0] >= 0).all()
