from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.methods import mined
from alignment.methods.mined import Vocabulary, mined_map, packllm_pairs
from tests.support import small_tokenizers as tiny
from tests.support.reference import shared


@pytest.fixture(scope="module")
def golden():
    return json.loads(shared("golden", "mined.json").read_text())


@pytest.mark.parametrize(("source", "target"), ["ab", "ba"])
def test_packllms_pairs_are_met(golden, source, target):
    vocabularies = [Vocabulary(**golden[f"vocab_{name}"]) for name in (source, target)]
    expected = golden[f"packllm_{source}_to_{target}"]["pairs_id"]
    assert [list(pair) for pair in packllm_pairs(*vocabularies)] == expected


def distance(a: str, b: str) -> int:
    """Levenshtein's by the book."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


tokens = st.lists(st.text("▁Ġab你", min_size=1, max_size=6), min_size=1, max_size=12, unique=True)


@given(source=tokens, target=tokens, cells=st.integers(1, 40))
def test_the_first_of_the_nearest_is_taken(source, target, cells):
    ids = [7 * place for place in range(len(target))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mined, "_CELLS", cells)
        pairs = packllm_pairs(Vocabulary(source, range(len(source)), "▁"), Vocabulary(target, ids, "Ġ"))
    assert [s for s, _ in pairs] == list(range(len(source)))
    for (_, id), token in zip(pairs, source, strict=True):
        if token in target:
            assert target[id // 7] == token
            continue
        if token[0] == "▁" and token[1:2] != "▁":
            token = "Ġ" + token[1:]
        distances = [distance(token, other) for other in target]
        assert id // 7 == distances.index(min(distances))


def test_a_distance_beyond_a_byte_is_not_mistaken_for_a_short_one():
    source = Vocabulary(["x" * 300], [0], " ")
    assert packllm_pairs(source, Vocabulary(["y" * 257, "y" * 40, "x"], [0, 1, 2], " ")) == [(0, 2)]


def test_every_token_of_text_goes_to_the_nearest_surface():
    a, b = tiny.byte_level(), tiny.sentencepiece()
    end, eos = a.hf.convert_tokens_to_ids(["<|end|>", "</s>"])
    map = mined_map(a, b, source_stops=[end, eos], target_stop=b.hf.eos_token_id)
    assert map.target_ids.shape == (a.vocabulary_size, 1)
    assert map.target_ids[[end, eos], 0].tolist() == [b.hf.eos_token_id] * 2
    assert (map.target_ids[sorted(a.special_ids - {end, eos})] == -1).all()
    text = [id for id, surface in enumerate(a.surfaces) if surface]
    spelled = {surface.decode("latin-1") for surface in b.surfaces if surface}
    for id in text[::7]:
        own, other = (s.decode("latin-1") for s in (a.surfaces[id], b.surfaces[map.target_ids[id, 0]]))
        assert distance(own, other) == min(distance(own, candidate) for candidate in spelled)
    assert (map.weights[text] == 1).all()


def test_real_vocabularies_take_seconds(real):
    a, b = real["llama-2"], real["gpt2"]
    start = time.perf_counter()
    map = mined_map(a, b, source_stops=[2], target_stop=50256)
    assert time.perf_counter() - start < 60
    text = np.array([bool(surface) for surface in a.surfaces])
    np.testing.assert_array_equal(map.target_ids[:, 0] >= 0, text | (np.arange(len(text)) == 2))


def test_progress_ends_at_the_whole():
    shares: list[float] = []
    stops = {"source_stops": [], "target_stop": 0}
    mined_map(tiny.byte_level(), tiny.sentencepiece(), **stops, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
