"""The file's sections and the request's objects have the options of `fusion.options`, and only those bounds."""

from __future__ import annotations

from dataclasses import fields

import pytest
from annotated_types import BaseMetadata
from pydantic import BaseModel, ValidationError

from fusion.options import FusionParams, SamplingParams, Weighting
from server.http.protocol.completions import CompletionRequest
from server.http.protocol.fusion import FusionFields, WeightingFields
from server.settings.derive import overrides, section, updated
from server.settings.ensembles import EnsembleSettings, WeightingSettings


def names(options: type) -> set[str]:
    return {field.name for field in fields(options)}


def test_the_file_and_the_request_have_every_option():
    of_requests = set(WeightingFields.model_fields) | {"file"}  # requests name no files of the server's
    assert names(Weighting) == set(WeightingSettings.model_fields) == of_requests
    assert names(FusionParams) == set(FusionFields.model_fields)
    assert names(FusionParams) - {"report"} <= set(EnsembleSettings.model_fields)
    written_otherwise = {"include_stop", "prompt_logprobs"}
    assert names(SamplingParams) - written_otherwise <= set(CompletionRequest.model_fields)


def test_defaults_of_the_file_are_those_of_the_options():
    for name, option in WeightingSettings.model_fields.items():
        assert name == "method" or option.default == getattr(Weighting(), name)


@pytest.mark.parametrize("derived", [section(Weighting, BaseModel), overrides(Weighting, BaseModel)])
def test_bounds_come_along(derived):
    assert derived(grid=2).grid == 2
    for wrong in ({"grid": 1}, {"grid": 1002}, {"temperature": 0}, {"prune": 1.5}, {"positions": 1}):
        with pytest.raises(ValidationError):
            derived(**wrong)
    assert not any(isinstance(item, BaseMetadata) for item in derived.model_fields["normalize"].metadata)


def test_what_is_given_goes_over_the_defaults_and_what_is_known_over_both():
    given = overrides(FusionParams, BaseModel)(guard=True, combine=None, filter_top=None)
    defaults = FusionParams(combine="product", filter_top=3, renormalize=True)
    result = updated(defaults, given, report=True)
    assert result == FusionParams(combine="product", guard=True, renormalize=True, report=True)
    assert updated(defaults, overrides(FusionParams, BaseModel)()) == defaults
