"""The YAML that a calibration prints asks for what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fusion.calibrate.candidates import Candidate
from server.commands.calibrate.report import yaml_of
from server.settings import parse_settings

MODELS = "models: {a: {source: x}, b: {source: y}, c: {source: z}}\n"
CONFIGURED = """
ensembles:
  mine:
    members: [a, b, c]
    pivot: a
    weights: {a: 3, b: 1, c: 1}
    confidence: 2
    filter_top: 5
    draft: c
    on_member_failure: degrade
    weighting: {positions: 99, prune: 0.5}
"""


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(("a", "b", "c"), "b", "exact", "product"),
        Candidate(("a", "b", "c"), "a", "spelled", confidence=1.0),
        Candidate(("a", "b"), "b", "spelled"),
        Candidate(("a", "b", "c"), "a", "spelled", weights="packllm-opt", prune=0.05),
    ],
    ids=lambda one: one.name,
)
def test_what_is_pasted_asks_for_the_candidates_options(tmp_path: Path, candidate: Candidate):
    own = parse_settings(MODELS + CONFIGURED, "own.yaml", tmp_path, {}).ensembles["mine"]
    pasted = yaml_of("mine", candidate, own, tmp_path / "learned.safetensors")
    again = parse_settings(MODELS + pasted, "pasted.yaml", tmp_path, {}).ensembles["mine"]
    assert (again.members, again.pivot, again.alignment.method) == (
        candidate.members,
        candidate.pivot,
        candidate.alignment,
    )
    asked = candidate.fusion(own.fusion)
    served = again.fusion
    names = ("weights", "weighting", "combine", "confidence", "filter_top", "draft", "unmapped")
    assert {name: getattr(served, name) for name in names} == {name: getattr(asked, name) for name in names}
    assert again.on_member_failure == "degrade"


def test_defaults_are_left_out(tmp_path: Path):
    plain = "ensembles: {mine: {members: [a, b], pivot: a}}\n"
    own = parse_settings(MODELS + plain, "own.yaml", tmp_path, {}).ensembles["mine"]
    pasted = yaml.safe_load(yaml_of("mine", Candidate(("a", "b"), "b", "exact"), own, tmp_path))
    assert list(pasted["ensembles"]["mine"]) == ["members", "pivot", "alignment", "combine", "weights"]
