"""A member's distribution inside a character, on a vocabulary of a few tokens."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.vocab_map import VocabMap
from fusion.inside import (
    LEAST_TRUST,
    Begun,
    Level,
    conditioned,
    first_likelihood,
    first_trust,
    is_worth_asking,
    likelihood,
    shifted,
    weights_inside,
)
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
    for id, logprob in zip(answer.ids[0], answer.logprobs[0], strict=True):
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


def test_what_the_pivot_would_have_spelled_otherwise_is_left_out():
    """It has a token for the whole of U+4E16, so after the byte E4 the character is another one."""
    pivot = tiny.byte_level("世")
    begun = Begun.at_the_end([pivot.byte_ids[0xE4]], lambda id: pivot.surfaces[id])
    levels = [level({WHOLE: 0.3, LIKE: 0.1, OTHER: 0.6}, b"\xe4")]
    answer = conditioned(levels, SURFACES, pivot, None, begun)
    assert [pivot.surfaces[id] for id in answer.ids[0]] == [b"\xb8"]
    assert np.exp(answer.logprobs[0, 0]) == pytest.approx(1.0)
    assert np.exp(answer.likelihood) == pytest.approx(0.1)
    # If it chose so all the same, everything counts.
    only = conditioned([level({WHOLE: 0.3, OTHER: 0.7}, b"\xe4")], SURFACES, pivot, None, begun)
    assert np.exp(only.likelihood) == pytest.approx(0.3)


def test_weights_inside_characters_give_the_mixture_of_whole_characters():
    """Next bytes one after the other, against characters of up to three bytes of which each member has a table."""
    rng = np.random.default_rng(5)
    characters = [bytes([0xE4, second, third]) for second in (0xB8, 0xB9, 0xBA) for third in (0x80, 0x96, 0xAD)]
    given = {"a": 0.5, "b": 0.3, "c": 0.2}
    tables = {name: dict(zip(characters, rng.dirichlet(np.ones(9) / 3).tolist(), strict=True)) for name in given}

    def of(name, beginning):
        return sum(p for character, p in tables[name].items() if character.startswith(beginning))

    for character in characters:
        product = 1.0
        for size in (1, 2):
            heard = {name: float(np.log(of(name, character[:size]))) for name in given}
            weights = weights_inside(given, heard, {})
            total = sum(weights.values())
            product *= sum(
                weights[name] / total * of(name, character[: size + 1]) / of(name, character[:size])
                for name in given
            )
        assert product == pytest.approx(sum(given[name] * tables[name][character] for name in given))


def test_a_member_that_was_not_asked_about_the_beginning_keeps_its_share():
    weights = weights_inside({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": np.log(0.1), "b": np.log(0.4)}, {})
    assert weights["c"] / sum(weights.values()) == pytest.approx(0.25)
    assert weights["b"] / weights["a"] == pytest.approx(2.0)


def test_of_a_token_that_spells_more_only_the_character_counts():
    spaced, plain, longer = 0, 1, 2
    surfaces = [b" \xe4", b"\xe4", b" a"]
    begun = Begun.at_the_end([spaced], surfaces.__getitem__)
    assert begun == Begun((spaced,), b" \xe4", b" ")
    known = level({spaced: 0.1, plain: 0.4, longer: 0.3}, b"")
    assert np.exp(first_likelihood(known, begun, surfaces.__getitem__)) == pytest.approx(0.25)
    assert np.exp(first_likelihood(known, Begun((plain,), b"\xe4", b""), surfaces.__getitem__)) == pytest.approx(
        0.4
    )


def test_weights_move_towards_those_who_expected_the_character():
    weights = {"a": 0.5, "b": 0.25, "c": 0.25}
    trust = shifted({}, weights, {"a": np.log(0.5), "b": np.log(0.5)}, {"a": 0.8, "b": 0.2, "c": 0.9})
    # a gave 0.4 to it and b 0.1, together 0.3 by their weights; c was not asked about its beginning.
    moved = {"a": 0.85 + 0.15 * 0.4 / 0.3, "b": 0.85 + 0.15 * 0.1 / 0.3, "c": 1.0}
    assert trust == pytest.approx({name: factor / moved["a"] for name, factor in moved.items()})
    assert weights_inside(weights, {}, trust) == pytest.approx({n: weights[n] * trust[n] for n in weights})


def test_those_who_wrote_the_beginning_of_the_first_character_count_for_more_than_those_asked_from_before_it():
    trust = first_trust(["pivot", "twin", "other"], {"pivot", "twin"}.__contains__)
    assert trust == {"pivot": 1.0, "twin": 1.0, "other": 0.2}


def test_weights_come_near_to_the_best_member_and_back():
    weights, trust = {"a": 0.5, "b": 0.5}, {}
    for _ in range(2000):
        trust = shifted(trust, weights, {"a": 0.0, "b": 0.0}, {"a": 0.6, "b": 0.1})
    assert trust == pytest.approx({"a": 1.0, "b": LEAST_TRUST})
    for _ in range(40):
        trust = shifted(trust, weights, {"a": 0.0, "b": 0.0}, {"a": 0.1, "b": 0.6})
    assert trust["b"] == 1.0
    assert trust["a"] < 0.1


def test_a_character_that_nobody_expected_moves_nothing():
    assert shifted({"a": 0.5}, {"a": 1.0}, {"a": 0.0}, {"a": 0.0}) == {"a": 0.5}
