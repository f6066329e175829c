"""Who is asked at the end of a distillation, and how each is run."""

from __future__ import annotations

from pathlib import Path

from fusion.distill.training.settings import BASE, Source
from server.commands.distill.evaluation import served_models
from server.settings.distill.parts import ENSEMBLE, EvaluateSection


def test_what_was_made_runs_where_the_base_does_in_float32(tmp_path: Path) -> None:
    for name in ("base", "ben", "made"):
        (tmp_path / name).mkdir()
    base = Source(str(tmp_path / "base"), dtype="bfloat16", device="cuda", cache_tokens=999)
    settings = EvaluateSection.model_validate({"tasks": ["t"]}, context={"folder": tmp_path})
    folders = {"start": tmp_path / "made", "never-made": tmp_path / "missing"}
    served = served_models(folders, {BASE: base, "ben": Source(str(tmp_path / "ben"))}, settings)
    assert set(served.models) == {"start", BASE, "ben"}
    start = served.models["start"]
    assert (start.source, start.device, start.dtype, start.cache_tokens) == (
        str(tmp_path / "made"),
        "cuda",
        "float32",
        999,
    )
    assert served.ensembles[ENSEMBLE].members == (BASE, "ben")
