from __future__ import annotations

import numpy as np
import pytest

from alignment.methods.exact import exact_map
from alignment.methods.first_token import first_token_map
from alignment.methods.hybrid import hybrid_map
from alignment.vocab_map import VocabMap
from tests.support import small_tokenizers as tiny


def test_rows_come_from_the_first_map_where_it_has_any():
    first = VocabMap(np.array([[4], [-1], [2]]), np.array([[1], [0], [0.5]]), 5)
    second = VocabMap(np.array([[1, 2], [3, 0], [-1, -1]]), np.array([[0.5, 0.25], [0.75, 0.5], [0, 0]]), 5)
    expected = first.to_scipy().toarray()
    expected[1] = second.to_scipy().toarray()[1]
    np.testing.assert_array_equal(hybrid_map(first, second).to_scipy().toarray(), expected)
    other = second.to_scipy().toarray()
    other[2] = first.to_scipy().toarray()[2]
    np.testing.assert_array_equal(hybrid_map(second, first).to_scipy().toarray(), other)


def test_maps_of_other_vocabularies_are_not_joined():
    first = VocabMap(np.array([[4]]), np.ones((1, 1)), 5)
    with pytest.raises(ValueError, match="1 x 5 and 1 x 6"):
        hybrid_map(first, VocabMap(np.array([[4]]), np.ones((1, 1)), 6))


@pytest.fixture(scope="module")
def words():
    """A vocabulary, words that it has with and without a space before them, and the ids of both."""
    tokenizer = tiny.byte_level()
    id_of = {surface: id for id, surface in enumerate(tokenizer.surfaces) if surface}
    common = sorted(surface for surface in id_of if surface.isalpha() and b" " + surface in id_of)
    return tokenizer, [(id_of[word], id_of[b" " + word]) for word in common]


def rows(tokenizer, entries):
    ids = np.full((tokenizer.vocabulary_size, 3), -1)
    weights = np.zeros(ids.shape)
    for source, row in entries.items():
        for slot, (target, weight) in enumerate(row):
            ids[source, slot], weights[source, slot] = target, weight
    return VocabMap(ids, weights, tokenizer.vocabulary_size)


def row(map, source):
    return {int(t): float(w) for t, w in zip(map.target_ids[source], map.weights[source], strict=True) if t >= 0}


def test_without_leads_the_first_token_is_as_any_other(words):
    tokenizer, [(bare, spaced), *_] = words
    running = rows(tokenizer, {spaced: [(bare, 0.5)]})
    assert first_token_map(running, tokenizer, tokenizer) is running


@pytest.mark.parametrize(("source_lead", "target_lead"), [(b" ", b""), (b"", b" ")])
def test_at_the_first_token_equal_bytes_after_the_leads_win(words, source_lead, target_lead):
    tokenizer, [(bare, spaced), (other, other_spaced), *_] = words
    running = rows(tokenizer, {spaced: [(other_spaced, 0.5)], bare: [(other, 0.5)]})
    map = first_token_map(running, tokenizer, tokenizer, source_lead=source_lead, target_lead=target_lead)
    source, target = (spaced, bare) if source_lead else (bare, spaced)
    assert row(map, source) == {target: 1}


def test_learned_rows_begin_the_answer_without_the_lead(words):
    source, _ = words
    target = tiny.split_digits()
    alone = [id for id, s in enumerate(source.surfaces) if s and s[:1] == b" " and s[1:] not in target.surfaces]
    id_of = {surface: id for id, surface in enumerate(target.surfaces) if surface}
    word = next(w for w in sorted(id_of) if w.isalpha() and b" " + w in id_of)
    no_bare = next(id for s, id in id_of.items() if s[:1] == b" " and s[1:] and s[1:] not in id_of)
    unfound = next(id for id in alone if len(source.surfaces[id]) > 1)
    ids = np.full((source.vocabulary_size, 3), -1)
    weights = np.zeros(ids.shape)
    ids[unfound], weights[unfound] = [id_of[b" " + word], id_of[word], no_bare], [0.75, 0.5, 0.25]
    running = VocabMap(ids, weights, target.vocabulary_size)
    map = first_token_map(running, source, target, source_lead=b" ")
    assert row(map, unfound) == {id_of[word]: 0.75}


def test_special_tokens_keep_their_rows(words):
    tokenizer, _ = words
    stop = tokenizer.hf.eos_token_id
    running = exact_map(tokenizer, tokenizer, source_stops=[stop, 3], target_stop=stop)
    map = first_token_map(running, tokenizer, tokenizer, source_lead=b" ")
    assert row(map, stop) == row(map, 3) == {stop: 1}
    others = sorted(tokenizer.special_ids - {stop, 3})
    assert others
    assert (map.weights[others] == 0).all()
