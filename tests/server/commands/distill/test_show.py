"""`tutti distill show`: the tree and the rounds of a run, from its journal alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from alignment.errors import ConfigError
from fusion.distill.bohdi import picture
from fusion.distill.bohdi.journal import Journal
from fusion.figures import save
from server.commands.distill.show import show


def sample(number: int, round: int, reward: int | None) -> dict:
    path = ["cats", "lions"] if number % 2 else ["houses", "doors"]
    return {
        "event": "sample",
        "round": round,
        "id": f"{round}-{number}",
        "path": path,
        "question": f"{round} {number}?",
        "answer": None if reward is None else "yes",
        "reward": reward,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run in which a source won at first and then no more."""
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    planted = [["cats"], ["cats", "lions"], ["houses"], ["houses", "doors"]]
    journal.add([{"event": "begin", "inputs": "", "tree": {"levels": 2, "window": 6, "threshold": 0.2}}])
    journal.add([{"event": "planted", "path": path} for path in planted])
    journal.add([sample(number, 1, 1) for number in range(24)])
    journal.add([sample(number, 2, 0) for number in range(16)])
    dropped = {"event": "dropped", "round": 2, "id": "x", "path": ["cats", "lions"], "why": "cut off"}
    journal.add([dropped, sample(99, 2, None), {"event": "introspection", "round": 3}])
    journal.add(
        [
            {"event": "lesson", "round": 1, "ids": ["1-1"]},
            {"event": "trained", "round": 1, "samples": 1, "steps": 7},
        ]
    )
    return tmp_path / "run"


def test_posteriors_samples_resets_and_rounds_are_printed_and_drawn(run):
    output, notes = Console(record=True, width=120), Console(record=True, width=500)
    show(run, output, notes)
    text = output.export_text()
    assert "lions  0.12 Beta(1, 7) · 21 · 1 · 20 · reset 3" in text
    assert "dropped: cut off 1; undecided: 1" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "24", "24", "0", "0", "1", "7"] in rows
    assert ["2", "18", "0", "16", "0", "0"] in rows
    assert "tree.png" in notes.export_text()
    for name in ("tree.png", "shares.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_names_that_a_model_made_up_are_drawn_as_they_are(run, monkeypatch):
    names = ["$x", "cost in $ and $\\", "_private", "100 %"]
    planted = [{"event": "planted", "path": path} for name in names for path in ([name], [name, name])]
    asked = [sample(number, 1, 1) | {"path": [names[number % 4]] * 2} for number in range(8)]
    (run / "journal.jsonl").unlink()
    Journal(run / "journal.jsonl").add(
        [{"event": "begin", "tree": {"levels": 2, "window": 6, "threshold": 0.2}}, *planted, *asked]
    )
    drawn = []
    monkeypatch.setattr(picture, "save", lambda figure, path: drawn.append(figure) or save(figure, path))
    show(run, Console(record=True), Console(record=True))
    legend = drawn[1].axes[0].get_legend()
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(names)


def test_a_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no journal .*; name the work folder of a run"):
        show(tmp_path, Console(record=True), Console(record=True))


def test_an_empty_journal_is_none(tmp_path):
    (tmp_path / "journal.jsonl").write_text("")
    with pytest.raises(ConfigError, match="is no journal of a run"):
        show(tmp_path, Console(record=True), Console(record=True))
