from __future__ import annotations

import time

import numpy as np
import pytest

from alignment.methods.exact import exact_map
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap
from tests.support import small_tokenizers as tiny
from tests.support.reference import REAL


def target_of(map: VocabMap, source: Tokenizer, token: str) -> int:
    return int(map.target_ids[source.hf.convert_tokens_to_ids(token), 0])


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", REAL)
def test_real_vocabularies_meet_where_their_bytes_are_equal(real, source, target):
    a, b = real[source], real[target]
    start = time.perf_counter()
    map = exact_map(a, b, source_stops={a.hf.eos_token_id}, target_stop=b.hf.eos_token_id)
    assert time.perf_counter() - start < 5
    assert map.target_ids.shape == (a.vocabulary_size, 1)
    assert map.target_size == b.vocabulary_size
    surfaces = set(b.surfaces) - {None, b""}
    for id, target_id in enumerate(map.target_ids[:, 0].tolist()):
        if id == a.hf.eos_token_id:
            assert target_id == b.hf.eos_token_id
        elif target_id >= 0:
            assert a.surfaces[id] == b.surfaces[target_id]
        else:
            assert a.surfaces[id] not in surfaces
    np.testing.assert_array_equal(map.weights, (map.target_ids >= 0).astype(np.float32))


def test_all_stop_tokens_meet_and_other_special_tokens_go_nowhere():
    a, b = tiny.byte_level(), tiny.sentencepiece()
    end, eos = a.hf.convert_tokens_to_ids(["<|end|>", "</s>"])
    map = exact_map(a, b, source_stops=[end, eos], target_stop=b.hf.eos_token_id)
    assert map.target_ids[[end, eos], 0].tolist() == [b.hf.eos_token_id] * 2
    assert map.target_ids[sorted(a.special_ids - {end, eos}), 0].tolist() == [-1] * (len(a.special_ids) - 2)


def test_ordinary_tokens_go_before_byte_tokens():
    a, b = tiny.byte_level(), tiny.sentencepiece()
    map = exact_map(a, b, source_stops=[], target_stop=0)
    assert target_of(map, a, "a") == b.hf.convert_tokens_to_ids("a") != b.byte_ids[ord("a")]
    assert map.target_ids[a.byte_ids[0xE2], 0] == b.byte_ids[0xE2]
    back = exact_map(b, a, source_stops=[], target_stop=0)
    assert back.target_ids[b.byte_ids[ord("a")], 0] == target_of(back, b, "a") == a.byte_ids[ord("a")]


def test_at_the_first_position_the_lead_is_not_compared():
    plain, leading = tiny.byte_level(), tiny.metaspace("first", split=True)
    common = {surface for surface in set(plain.surfaces) & set(leading.surfaces) if surface}
    word = next(word.decode() for word in sorted(common) if word.isalpha() and b" " + word in common)
    to_leading = exact_map(plain, leading, source_stops=[], target_stop=0, target_lead=b" ")
    assert target_of(to_leading, plain, word) == leading.hf.convert_tokens_to_ids(f"▁{word}")
    from_leading = exact_map(leading, plain, source_stops=[], target_stop=0, source_lead=b" ")
    assert target_of(from_leading, leading, f"▁{word}") == plain.hf.convert_tokens_to_ids(word)
    assert target_of(from_leading, leading, "▁") == -1
    later = exact_map(leading, plain, source_stops=[], target_stop=0)
    assert target_of(later, leading, f"▁{word}") == plain.hf.convert_tokens_to_ids(f"Ġ{word}")


def test_the_map_of_a_vocabulary_onto_itself_covers_all_its_text():
    tokenizer = tiny.split_digits()
    map = exact_map(tokenizer, tokenizer, source_stops=[], target_stop=0)
    text = [id for id, surface in enumerate(tokenizer.surfaces) if surface is not None]
    assert map.target_ids[text, 0].tolist() == text
    assert map.coverage == len(text) / tokenizer.vocabulary_size
