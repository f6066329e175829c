"""Memory of a process in a container is what the container gives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion.members import memory


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    return tmp_path


def test_without_a_limit_it_is_the_machines(group: Path) -> None:
    whole = memory.machine_memory()
    assert 0 < memory.free_memory() <= whole
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1\n")
    assert memory.machine_memory() == whole


def test_a_limit_holds_for_both(group: Path) -> None:
    (group / "memory.max").write_text(f"{1 << 20}\n")
    (group / "memory.current").write_text(f"{1 << 19}\n")
    assert (memory.machine_memory(), memory.free_memory()) == (1 << 20, 1 << 19)
    (group / "memory.current").write_text(f"{1 << 21}\n")
    assert memory.free_memory() == 0
