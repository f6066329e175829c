from __future__ import annotations

import codecs
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from fusion.sequence.text import TextStream


def run(pieces, stop=(), include_stop=False, cut=False):
    stream, out = TextStream(stop, include_stop=include_stop), []
    for piece in pieces:
        out.append(stream.push(piece))
        if stream.stopped_by is not None:
            return "".join(out), stream.stopped_by
    return "".join(out) + stream.flush(cut=cut), None


def split(data, cuts):
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


text = st.text(st.sampled_from("abAB \n🎉é中"), max_size=30)


@given(text, st.lists(st.integers(0, 200)), st.lists(st.text("abAB\n🎉", min_size=1, max_size=4), max_size=4))
@example("ab", [1], ["b", "ab"])
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text, cuts, stop):
    starts = [text.find(s) for s in stop if s in text]
    pieces = split(text.encode(), cuts)
    got, reason = run(pieces, stop)
    if not starts:
        assert (got, reason) == (text, None)
        return
    # A stop string that is complete earlier ends the text before one that starts earlier but ends later.
    assert reason in stop
    assert got == text[: len(got)]
    assert text[len(got) :].startswith(reason)
    assert not any(s in got for s in stop)
    included, _ = run(pieces, stop, include_stop=True)
    assert included == got + reason


@given(text, st.lists(st.integers(0, 200)))
def test_only_whole_characters_are_sent(text, cuts):
    stream = TextStream()
    sent = [stream.push(piece) for piece in split(text.encode(), cuts)]
    assert "\ufffd" not in "".join(sent)
    assert "".join(sent) + stream.flush() == text


@given(st.binary(max_size=30), st.lists(st.integers(0, 200)))
def test_broken_bytes_become_replacement_characters(data, cuts):
    assert run(split(data, cuts))[0] == data.decode(errors="replace")


@given(st.binary(max_size=30), st.lists(st.integers(0, 200)))
@example("aé".encode()[:-1], [])
@example(b"a\xff", [])
@example("🎉".encode()[:3] + b"!" + "🎉".encode()[:3], [2])
def test_a_character_that_a_limit_cuts_apart_is_left_out(data, cuts):
    """What can be no character stays one of replacement, also at the very end."""
    assert run(split(data, cuts), cut=True)[0] == codecs.utf_8_decode(data, "replace", False)[0]


def test_text_that_may_be_a_stop_string_waits():
    stream = TextStream(["STOP"])
    assert stream.push(b"go S") == "go "
    assert stream.push(b"TO") == ""
    assert stream.push(b"RY") == "STORY"


def test_stop_strings_do_not_count_before_min_tokens():
    stream = TextStream(["x"])
    assert stream.push(b"axb", may_stop=False) == "axb"
    assert stream.push(b"cx") == "c"
    assert stream.stopped_by == "x"


def test_a_stop_string_that_came_too_early_does_not_end_the_text_later():
    """It is held back because it begins a longer one."""
    stream = TextStream(("\n", "\n\nQ:"))
    out = [stream.push(b"a", may_stop=False), stream.push(b"\n", may_stop=False), stream.push(b"cd")]
    assert stream.stopped_by is None
    assert "".join(out) + stream.flush() == "a\ncd"
    stream = TextStream(("\n", "\n\nQ:"))
    out = [stream.push(b"a\n", may_stop=False), stream.push(b"\nQ:")]
    assert ("".join(out), stream.stopped_by) == ("a", "\n\nQ:")
