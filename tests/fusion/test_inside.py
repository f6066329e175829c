"""A member's distribution inside a character, on a vocabulary of a few tokens."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.vocab_map import VocabMap
from fusion.inside import Level, conditioned, is_worth_asking, likelihood
from tests.support import small_tokenizers as tiny

WHOLE, LIKE, BYTE, OTHER, TWO, LONGER = range(6)
SURFACES = ["世".encode(), "中".encode(), b"\xe4", b"b", b"\xe4\xb8", "世界".encode()]


def level(probabilities: dict[int, float], rest: bytes, path: float = 1.0) -> Level:
    ids = np.array(list(probabilities), dtype=np.int32)
    logprobs = np.log(np.array(list(probabilities.values()))).astype(np.float32)
    return Level(ids, logprobs, rest, float(np.log(path)))


def spoken(levels, last=None):
    """Probabilities by the bytes that the pivot's token adds."""
    pivot = tiny.byte_level()
    answer = conditioned(levels, SURFACES, pivot, last)
    if answer is None:
        return None
    found: dict[bytes, float] = {}
    for id, logprob in zip(answer[0][0], answer[1][0], strict=True):
        surface = pivot.surfaces[id]
        found[surface] = found.get(surface, 0.0) + float(np.exp(logprob))
    return found


def test_tokens_that_begin_with_the_bytes_share_all_probability():
    said = spoken([level({WHOLE: 0.3, LIKE: 0.1, OTHER: 0.6}, b"\xe4")])
    assert said == pytest.approx({b"\xb8\x96": 0.75, b"\xb8": 0.25})
    said = spoken([level({WHOLE: 0.3, LIKE: 0.1, OTHER: 0.6}, b"\xe4\xb8")])
    assert said == pytest.approx({b"\x96": 0.75, b"\xad": 0.25})


def test_a_longer_token_goes_to_the_beginning_of_its_rest():
    assert spoken([level({LONGER: 0.2, LIKE: 0.2}, b"\xe4\xb8")]) == pytest.approx({b"\x96": 0.5, b"\xad": 0.5})


def test_what_tokens_end_too_early_for_is_lost():
    said = spoken([level({WHOLE: 0.3, BYTE: 0.1, TWO: 0.2, OTHER: 0.4}, b"\xe4\xb8")])
    assert said == pytest.approx({b"\x96": 0.5})


def test_an_answer_after_the_bytes_counts_by_the_probability_of_getting_there():
    """0.3 for the whole character against 0.1 x 0.5 for its first byte and then the rest."""
    before = level({WHOLE: 0.3, BYTE: 0.1, OTHER: 0.6}, b"\xe4\xb8")
    identity = VocabMap(np.arange(500, dtype=np.int32)[:, None], np.ones((500, 1), np.float32), 500)
    pivot = tiny.byte_level()
    after = level({pivot.byte_ids[0xAD]: 0.9, pivot.byte_ids[0x96]: 0.1}, b"", path=0.1 * 0.5)
    said = spoken([before, after], identity)
    assert said == pytest.approx({b"\x96": (0.3 + 0.05 * 0.1) / 0.35, b"\xad": 0.05 * 0.9 / 0.35})


def test_nothing_is_said_of_a_character_that_no_token_begins():
    assert spoken([level({OTHER: 0.9, BYTE: 0.1}, b"\xe4")]) is None


def test_asking_pays_where_the_bytes_have_a_share_in_what_is_expected():
    assert is_worth_asking(level({WHOLE: 0.3, BYTE: 0.1}, b"\xe4"), BYTE, SURFACES)
    assert not is_worth_asking(level({WHOLE: 0.3, BYTE: 0.001}, b"\xe4"), BYTE, SURFACES)
    assert is_worth_asking(level({OTHER: 0.9, BYTE: 0.001}, b"\xe4"), BYTE, SURFACES)


def test_a_token_beyond_the_best_counts_as_the_least_of_them():
    assert likelihood(level({WHOLE: 0.3, BYTE: 0.1}, b"\xe4"), TWO) == pytest.approx(np.log(0.1))
