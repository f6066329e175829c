"""Fixtures that start fusers over toy members and real tokenizers."""

from __future__ import annotations

import pytest

from alignment.text.tokenizer import Tokenizer
from fusion.ensemble import Ensemble
from fusion.loop.fuser import Fuser
from tests.support.toy_fuser import DEMO, Running


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """Two byte-level vocabularies and one with byte fallback."""
    return {name: Tokenizer.load(str(DEMO / name)) for name in ("almanac", "abacus", "lingvo")}


@pytest.fixture
def run():
    """Starts a fuser for an ensemble and stops it after the test."""
    running: list[Fuser] = []

    def start(ensemble: Ensemble, **options) -> Running:
        fuser = Fuser({name: model.member for name, model in ensemble.models.items()}, **options)
        fuser.start()
        running.append(fuser)
        return Running(fuser, ensemble)

    yield start
    for fuser in running:
        fuser.stop()
