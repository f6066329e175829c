"""Rounds inside characters: the pivot spells U+4E16 (世) in three tokens, the other member has one for it."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.assembly.ensembles import build_ensemble
from fusion.ensemble import Model
from fusion.inside import FIRST_TRUST
from fusion.options import FusionParams
from tests.support import small_tokenizers as tiny
from tests.support.toy_fuser import ROOMY
from tests.support.toy_members import ToyMember

TINY = 1e-9
ENDS = 0.999
F = FIRST_TRUST  # the factor on the other member's weight inside the first character


def scripted(tokenizer, prompt, script):
    """By the text generated so far, the probabilities of some surfaces that come next; else the end."""
    ids = {surface: id for id, surface in reversed(list(enumerate(tokenizer.surfaces))) if surface}
    ids |= {bytes([byte]): id for byte, id in enumerate(tokenizer.byte_ids) if id is not None}

    def distribution(tokens):
        p = np.full(tokenizer.vocabulary_size, TINY)
        said = script.get(tokenizer.surface_of(tokens[len(prompt) :]))
        if said is None:
            p[tokenizer.hf.eos_token_id] = ENDS
        else:
            for surface, probability in said.items():
                p[ids[surface]] = probability
        return np.log(p / p.sum()).astype(np.float32)

    return distribution


@pytest.fixture
def decode(tokenizers, run):
    """Decodes greedily with two members that follow scripts."""

    def decoded(pivot_script, other_script, *, spells=tiny.byte_level, combine="mixture", **sampling):
        models = {}
        for name, tokenizer, script in (
            ("pivot", tokenizers["lingvo"], pivot_script),
            ("other", spells(), other_script),
        ):
            prompt = tokenizer.encode("The dog", add_special_tokens=True)
            size = tokenizer.vocabulary_size
            member = ToyMember(name, scripted(tokenizer, prompt, script), size, ROOMY, k=8)
            models[name] = Model(member, tokenizer, (tokenizer.hf.eos_token_id,), name)
        running = run(build_ensemble("pair", models, "pivot"))
        prompt = running.ensemble.encode_text("The dog")
        fusion = FusionParams(report=True, combine=combine)
        listener = running.submit(prompt, fusion, **{"max_tokens": 4, "logprobs": 3, **sampling}).wait()
        other = models["other"]
        given = [
            other.tokenizer.surface_of((prompt.ids["other"] + list(advance.append))[-len(advance.append) :])
            for advances in other.member.submitted[1:]
            for advance in advances
        ]
        return listener, given

    return decoded


PIVOT = {
    b"": {b"\xe4": 0.9, b"a": 0.1},
    b"\xe4": {b"\xbd": 0.5, b"\xb8": 0.5},
    b"\xe4\xb8": {b"\x96": 0.7, b"\xad": 0.3},
}


def probabilities(listener):
    tokens = [token for update in listener.updates for token in update.tokens]
    return [{entry.surface: np.exp(entry.logprob) for entry in token.top} for token in tokens]


def test_a_member_that_has_the_whole_character_speaks_from_before_it(decode):
    listener, given = decode(PIVOT, {b"": {"世".encode(): 0.4, "你".encode(): 0.1, b"b": 0.5}})
    assert listener.text == "世"
    # Given the first byte, four fifths of what the member expects go on with B8; given both, all of it with 96.
    # Of the first byte the pivot gave 0.9 and the other 0.5, of the first two 0.45 and 0.4.
    _, second, third, _ = probabilities(listener)
    assert second[b"\xb8"] == pytest.approx((0.9 * 0.5 + F * 0.5 * 0.8) / (0.9 + F * 0.5), abs=1e-4)
    assert second[b"\xbd"] == pytest.approx((0.9 * 0.5 + F * 0.5 * 0.2) / (0.9 + F * 0.5), abs=1e-4)
    assert third[b"\x96"] == pytest.approx((0.45 * 0.7 + F * 0.4 * 1.0) / (0.45 + F * 0.4), abs=1e-4)
    assert given == ["世".encode()], "it is asked nothing inside the character"
    weights = [report.weights["other"] for report in listener.last.rounds]
    assert weights == pytest.approx([0.5, F * 0.5 / (0.9 + F * 0.5), F * 0.4 / (0.45 + F * 0.4), 0.5], abs=1e-4)
    # Together: the mixture of whole characters, given the first byte.
    whole = (0.9 * 0.5 * 0.7 + F * 0.4) / (0.9 + F * 0.5)
    assert second[b"\xb8"] * third[b"\x96"] == pytest.approx(whole, abs=1e-4)


def test_a_product_keeps_its_weights_inside_characters(decode):
    other = {b"": {"世".encode(): 0.4, "你".encode(): 0.1, b"b": 0.5}}
    listener, _ = decode(PIVOT, other, combine="product")
    assert [report.weights["other"] for report in listener.last.rounds] == [0.5] * 4


def test_a_member_that_spells_some_characters_in_bytes_is_asked_there_as_well(decode):
    """U+4E2D (中) is three byte tokens for it: of what begins with E4 it gives them 0.3 of 0.8."""
    other = {
        b"": {"世".encode(): 0.4, "你".encode(): 0.1, b"\xe4": 0.3, b"b": 0.2},
        b"\xe4": {b"\xb8": 0.5, b"\xb9": 0.5},
        b"\xe4\xb8": {b"\xad": 1.0},
    }
    listener, given = decode(PIVOT, other)
    _, second, third, *_ = probabilities(listener)
    assert given[:2] == [b"\xe4", b"\xb8"]
    assert second[b"\xb8"] == pytest.approx((0.9 * 0.5 + F * (0.4 + 0.3 * 0.5)) / (0.9 + F * 0.8), abs=1e-4)
    # 0.4 for the whole character and 0.3 x 0.5 for the bytes.
    assert third[b"\x96"] == pytest.approx((0.45 * 0.7 + F * 0.4) / (0.45 + F * 0.55), abs=1e-4)
    assert third[b"\xad"] == pytest.approx((0.45 * 0.3 + F * 0.15) / (0.45 + F * 0.55), abs=1e-4)


def test_a_member_that_can_neither_speak_nor_be_asked_sits_out(decode):
    pivot = {b"": {b"\xc3": 0.9, b"a": 0.1}, b"\xc3": {b"\xa9": 1.0}}
    other = {b"": {b"a": 0.5, b"o": 0.5}}
    listener, given = decode(pivot, other, spells=tiny.unigram, max_tokens=2)
    assert listener.text == "é"
    assert [sorted(report.weights) for report in listener.last.rounds] == [["other", "pivot"], ["pivot"]]
    assert given == []


def test_weights_inside_characters_move_towards_who_expected_the_one_before(decode):
    """U+4E16 twice: of the first one the pivot expected 0.9 x 0.5 x 0.7 and the other 0.4."""
    pivot = PIVOT | {"世".encode() + said: then for said, then in PIVOT.items()}
    other = {b"": {"世".encode(): 0.4, "你".encode(): 0.1, b"b": 0.5}}
    listener, _ = decode(pivot, other | {"世".encode(): other[b""]}, max_tokens=7)
    assert listener.text == "世世"
    expected = {"pivot": 0.9 * 0.5 * 0.7, "other": 0.4}
    first = {"pivot": 1.0, "other": F}
    mean = sum(first[name] * given for name, given in expected.items()) / sum(first.values())
    force = {name: first[name] * (0.85 + 0.15 * given / mean) for name, given in expected.items()}
    weights = [report.weights["other"] for report in listener.last.rounds]
    assert weights[:4] == pytest.approx(
        [0.5, F * 0.5 / (0.9 + F * 0.5), F * 0.4 / (0.45 + F * 0.4), 0.5], abs=1e-4
    )
    second = {"pivot": 0.9 * force["pivot"], "other": 0.5 * force["other"]}
    assert weights[4] == pytest.approx(second["other"] / sum(second.values()), abs=1e-4)
