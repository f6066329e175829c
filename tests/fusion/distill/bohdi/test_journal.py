"""The journal keeps what was added whole, and nothing else."""

from __future__ import annotations

import pytest

from alignment.errors import ConfigError
from fusion.distill.bohdi.journal import Journal, read_events

EVENTS = [{"event": "a", "n": 1}, {"event": "b", "text": "ĉ\n"}]


def test_events_are_there_again_in_order(tmp_path):
    journal = Journal(tmp_path / "work" / "journal.jsonl")
    assert journal.events == []
    journal.add(EVENTS[:1])
    journal.add(EVENTS[1:])
    assert journal.events == EVENTS
    assert Journal(journal.path).events == read_events(journal.path) == EVENTS


def test_a_piece_cut_short_at_any_byte_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).add(EVENTS[:1])
    first = path.read_bytes()
    Journal(path).add(EVENTS)
    whole = path.read_bytes()
    for end in range(len(first), len(whole)):
        path.write_bytes(whole[:end])
        assert read_events(path) == EVENTS[:1]
        assert path.read_bytes() == whole[:end]
        journal = Journal(path)
        assert journal.events == EVENTS[:1]
        journal.add(EVENTS)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", ["nonsense\n{}\n", '{"event": 1}\n{"event": "commit"}\n', "[]\n[]\n"])
def test_another_file_is_no_journal(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"journal.jsonl:1: is no line of a journal"):
        Journal(path)


def test_a_missing_journal_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match="There is no journal"):
        read_events(tmp_path / "journal.jsonl")
