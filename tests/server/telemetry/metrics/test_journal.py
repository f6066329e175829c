"""What is noted is counted once, in order, whoever asks and whatever goes wrong."""

from __future__ import annotations

import threading

from server.telemetry.metrics.catalogue import Catalogue
from server.telemetry.metrics.journal import Journal


def test_what_is_noted_is_counted_when_somebody_asks() -> None:
    counted: list[int] = []
    catalogue = Catalogue()
    journals = [catalogue.journal(counted.extend) for _ in range(2)]
    for entry in (1, 2, 3):
        journals[entry % 2].add(entry)
    assert counted == []
    catalogue.settle()
    assert counted == [2, 1, 3]
    catalogue.settle()
    assert counted == [2, 1, 3]


def test_what_waits_is_bounded_by_its_size() -> None:
    counted: list[list[int]] = []
    journal = Journal[int](counted.append, room=10)
    for entry in (4, 5, 6, 40, 1):
        journal.add(entry, size=entry)
    assert counted == [[4, 5, 6], [40]]


def test_nothing_is_lost_or_counted_twice_while_others_settle() -> None:
    counted: list[int] = []
    journal = Journal[int](counted.extend, room=7)
    added = threading.Event()

    def settle() -> None:
        while not added.is_set():
            journal.settle()

    threads = [threading.Thread(target=settle) for _ in range(3)]
    for thread in threads:
        thread.start()
    for entry in range(20_000):
        journal.add(entry)
    added.set()
    for thread in threads:
        thread.join()
    journal.settle()
    assert counted == list(range(20_000))


def test_a_defect_in_counting_is_logged_and_costs_what_it_met(caplog) -> None:
    counted: list[int] = []

    def count(entries: list[int]) -> None:
        counted.extend(10 // entry for entry in entries)

    journal = Journal[int](count, room=100)
    journal.add(0)
    journal.settle()
    journal.add(5)
    journal.settle()
    assert counted == [2]
    assert "1 entries were not counted" in caplog.text
