"""A Bohdi run of tiny models, which takes a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fusion.distill.bohdi.settings import Bohdi, Explore, Judge, Tree
from tests.support.distillable import TRAIN, save_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Bohdi:
    """The models of the runs of all tests, and settings without a place."""
    folder = tmp_path_factory.mktemp("bohdi")
    return Bohdi(
        name="learned",
        base=save_model(folder / "ada", ["th", "the", "ca", "cat"], 1),
        sources={"ben": save_model(folder / "ben", ["he", "an", "and"], 2, neox=True)},
        work=folder / "work",
        out=folder / "out",
        rounds=2,
        tree=Tree(levels=2, window=4),
        explore=Explore(questions=8, batch=4, proposals=2),
        judge=Judge(by="fused"),
        train=replace(TRAIN, steps=2, batch=2, accumulate=1, check_every=1, lm_weight=1.0),
    )


@pytest.fixture
def settings(models: Bohdi, tmp_path: Path) -> Bohdi:
    """Settings of a run of its own."""
    return replace(models, work=tmp_path / "work", out=tmp_path / "out")
