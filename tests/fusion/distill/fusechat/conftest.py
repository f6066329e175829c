from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fusion.distill.fusechat.run import Run
from fusion.distill.fusechat.settings import FuseChat
from tests.support.distillable import save_site


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A distillation that went through all stages undisturbed."""
    run = Run(save_site(tmp_path_factory.mktemp("distilled")))
    run.represent()
    run.align()
    run.train()
    run.merge()
    return run


@pytest.fixture
def site(done: Run, tmp_path: Path) -> FuseChat:
    """The settings of the same distillation, not yet run, in folders of its own."""
    return replace(done.settings, work=tmp_path / "work", out=tmp_path / "out")
