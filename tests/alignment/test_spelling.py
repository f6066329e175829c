from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.spelling import Edit, Spelling
from tests.support import small_tokenizers as tiny
from tests.support.naive_spelling import FRAGMENTS, spelled
from tests.support.reference import REAL

fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)
texts_ = st.one_of(fragments, fragments, st.text(max_size=40))
broken_pieces = st.lists(
    st.one_of(st.binary(max_size=4), st.sampled_from([b"a", b" ", b"\xe2\x82\xac", b"\xed\xa0", b"\xf0\x9f"])),
    max_size=15,
)
leads = st.sampled_from([b"", b" ", b"\n"])
relaxed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def follow(tokenizer, pieces, lead=b""):
    """Extend piece by piece; after every one, the ids are those of the whole text and the edits lead to them."""
    spelling = Spelling(tokenizer, lead)
    copy: list[int] = []
    data = b""
    for piece in pieces:
        data += piece
        edit = spelling.extend(piece)
        assert edit is not None
        assert edit.append or edit.keep == len(copy)
        copy[edit.keep :] = edit.append
        expected = spelled(tokenizer, lead + data) if data else []
        assert spelling.ids == expected
        assert copy == expected


def cut_up(data: bytes, lengths: list[int]) -> list[bytes]:
    pieces = []
    for length in lengths:
        pieces.append(data[:length])
        data = data[length:]
    return [*pieces, data]


@pytest.mark.parametrize("kind", tiny.KINDS)
@relaxed
@given(text=texts_, lengths=st.lists(st.integers(1, 6), max_size=60), lead=leads)
def test_text_in_any_pieces_is_spelled_as_a_whole(kind, text, lengths, lead):
    follow(tiny.KINDS[kind](), cut_up(text.encode(), lengths), lead)


@pytest.mark.parametrize("kind", tiny.KINDS)
@relaxed
@given(pieces=broken_pieces, lead=leads)
def test_bytes_that_are_no_text_are_spelled_as_bytes(kind, pieces, lead):
    follow(tiny.KINDS[kind](), pieces, lead)


def detour(tokenizer, pieces, detours, lead=b""):
    """Before every piece other text is added and taken back, which leaves no trace."""
    spelling, other = Spelling(tokenizer, lead), Spelling(tokenizer, lead)
    for piece, aside in zip(pieces, detours, strict=False):
        mark = spelling.mark()
        for _ in range(2):
            for part in aside:
                spelling.extend(part)
            spelling.restore(mark)
            assert spelling.ids == other.ids
        assert spelling.extend(piece) == other.extend(piece)
        assert spelling.ids == other.ids


@pytest.mark.parametrize("kind", tiny.KINDS)
@relaxed
@given(pieces=broken_pieces, detours=st.lists(broken_pieces, max_size=15), lead=leads)
def test_a_spelling_goes_back_to_a_mark(kind, pieces, detours, lead):
    detour(tiny.KINDS[kind](), pieces, detours, lead)


@pytest.mark.parametrize("name", REAL)
@relaxed
@given(text=texts_, aside=texts_, lengths=st.lists(st.integers(1, 6), max_size=20), lead=leads)
def test_real_tokenizers_go_back_to_a_mark(real, name, text, aside, lengths, lead):
    pieces = cut_up(text.encode(), lengths)
    long = cut_up((aside + "-" * 120).encode(), lengths)
    detour(real[name], pieces, [long if at % 8 == 0 else [] for at in range(len(pieces))], lead)


@pytest.mark.parametrize("name", REAL)
@relaxed
@given(text=texts_, lengths=st.lists(st.integers(1, 6), max_size=60), lead=leads)
def test_real_tokenizers_in_any_pieces(real, name, text, lengths, lead):
    follow(real[name], cut_up(text.encode(), lengths), lead)


@pytest.mark.parametrize("pivot", REAL)
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_follow_the_tokens_of_another(real, texts, name, pivot):
    choose = random.Random(f"{name} {pivot}")
    for entry in choose.sample(texts, 25):
        ids = entry["ids"][pivot][-80:]
        follow(real[name], [real[pivot].surfaces[id] for id in ids], real[name].chat_lead)


@pytest.mark.parametrize("name", REAL)
@relaxed
@given(data=st.data())
def test_real_tokenizers_follow_random_tokens_of_another(real, name, data):
    pivot = real[data.draw(st.sampled_from(REAL))]
    ids = data.draw(st.lists(st.integers(0, pivot.vocabulary_size - 1), max_size=20))
    follow(real[name], [pivot.surfaces[id] or b"" for id in ids])


@pytest.mark.parametrize("name", REAL)
def test_a_long_text_costs_no_more_per_token_than_a_short_one(real, name):
    sentence = "She sold 48 clips in April, didn't she? Then half as many in May; 你好，世界。\n"
    other = real["qwen" if name != "qwen" else "gpt2"]
    pieces = [other.surfaces[id] for id in other.encode(sentence * 150, add_special_tokens=False)]

    def seconds(pieces):
        spelling = Spelling(real[name])
        start = time.thread_time()
        for piece in pieces:
            spelling.extend(piece)
        return (time.thread_time() - start) / len(pieces)

    short = min(seconds(pieces[: len(pieces) // 50]) for _ in range(5))
    assert min(seconds(pieces) for _ in range(3)) < 5 * short


@pytest.mark.parametrize("name", [*REAL, "byte level, NFC", "split digits"])
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    run=st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=2).map("".join),
    times=st.integers(60, 200),
    rest=st.lists(st.sampled_from(FRAGMENTS), max_size=12),
    length=st.integers(5, 40),
)
def test_long_runs_are_spelled_as_a_whole(real, name, run, times, rest, length):
    tokenizer = real[name] if name in REAL else tiny.KINDS[name]()
    data = (run * times).encode()
    pieces = cut_up(data, [length] * (len(data) // length))
    follow(tokenizer, pieces + [fragment.encode() for fragment in rest])


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("character", ["哈", "=", " ", "\n", "a"])
def test_a_model_that_repeats_itself_costs_little(real, name, character):
    spelling = Spelling(real[name])
    spelling.extend((character * 3000).encode())
    spelling.extend(character.encode())
    seconds = []
    for _ in range(3):  # what else runs on the machine only adds
        start = time.thread_time()
        for _ in range(10):
            spelling.extend(character.encode())
        seconds.append(time.thread_time() - start)
    assert min(seconds) / 10 < 0.01


def test_nothing_is_spelled_while_there_is_no_text():
    spelling = Spelling(tiny.sentencepiece(), b" ")
    assert spelling.extend(b"") == Edit(0, [])
    assert spelling.ids == []
    spelling.extend(b"x")
    assert tiny.sentencepiece().surface_of(spelling.ids) == b" x"


def test_control_tokens_in_generated_text_are_plain_text():
    for tokenizer in (tiny.byte_level(), tiny.sentencepiece()):
        spelling = Spelling(tokenizer)
        spelling.extend(b"<s> <|end|>")
        assert not tokenizer.special_ids & set(spelling.ids)
        assert tokenizer.surface_of(spelling.ids) == b"<s> <|end|>"


@pytest.mark.parametrize(
    ("tokenizer", "character"), [(tiny.unigram, "界"), (lambda: tiny.byte_level(complete=False), "க")]
)
def test_a_vocabulary_without_byte_tokens_waits_for_the_whole_character(tokenizer, character):
    tokenizer = tokenizer()
    spelling = Spelling(tokenizer)
    spelling.extend("The 世".encode())
    before = list(spelling.ids)
    data = character.encode()
    assert spelling.extend(b" dog" + data[:1]) is None
    assert spelling.extend(data[1:2]) is None
    assert spelling.ids == before
    edit = spelling.extend(data[2:])
    assert edit is not None
    expected = tokenizer.continuation.encode(f"The 世 dog{character}")
    assert before[: edit.keep] + edit.append == spelling.ids == expected


def test_only_the_bytes_that_are_pending_need_tokens_of_their_own():
    tokenizer = tiny.byte_level(complete=False)
    character = "界".encode()
    assert None in tokenizer.byte_ids
    assert all(tokenizer.byte_ids[byte] is not None for byte in character)
    spelling = Spelling(tokenizer)
    assert spelling.extend(b"The dog" + character[:1]) is not None
    assert spelling.ids[-1] == tokenizer.byte_ids[character[0]]
    spelling.extend(character[1:])
    assert spelling.ids == tokenizer.continuation.encode("The dog界")


def test_a_vocabulary_without_byte_tokens_reads_broken_bytes_as_replacement_characters():
    tokenizer = tiny.unigram()
    spelling = Spelling(tokenizer)
    for piece in (b"The \xff", b"\xed\xa0", b"dog\xe2", b" lazy"):
        spelling.extend(piece)
    assert spelling.ids == tokenizer.continuation.encode("The \ufffd\ufffd\ufffddog\ufffd lazy")
