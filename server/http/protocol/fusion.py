"""The `fusion` object of a request: how it overrides its ensemble's defaults, and the report it may ask for."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from alignment.errors import InvalidRequestError
from fusion.core import Combine, FusionParams, RoundReport
from fusion.weighting import MEASURES, Measure, Weighting, WeightingReport
from server.http.errors import shorten, shorten_text
from server.http.protocol.common import AnswerModel, RequestModel, is_none

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble


class WeightingFields(RequestModel):
    """How weights are measured on the prompt; what is left out is as in the ensemble's configuration."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["uniform", Measure] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    grid: Annotated[int, Field(ge=2, le=1001)] | None = None
    prune: Annotated[float, Field(ge=0, le=1)] | None = None
    normalize: bool | None = None
    positions: Annotated[int, Field(ge=2, le=4096)] | None = None
    spread: Literal["evenly", "last"] | None = None
    history: Literal["all", "last"] | None = None
    coinciding: Annotated[int, Field(ge=1)] | None = None


class FusionFields(RequestModel):
    """`fusion` in a request. Fields left out keep the ensemble's defaults.

    Attributes:
        members: who takes part; the pivot has to.
        weights: by member; normalised, and 0 for members not named. Or `uniform`, or a method of `weighting`.
        weighting: weights measured on the prompt.
        combine: of probabilities ("mixture") or of their logarithms ("product").
        filter_top: of EVA's faithful-token filter; null switches it off.
        renormalise: scale what each member's map carries over to a sum of 1.
        guard: keep the pivot's token where the fused best is the same text cut differently.
        report: add to each choice what every member did in every round.
    """

    model_config = ConfigDict(extra="forbid")

    members: Annotated[list[str], Field(min_length=1)] | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    weighting: WeightingFields | None = None
    combine: Combine | None = None
    filter_top: Annotated[int, Field(ge=1)] | None = None
    renormalise: bool | None = None
    guard: bool | None = None
    report: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_allowed(cls, value: Any) -> Any:
        """A misspelt field must not be ignored, and the complaint says what there is."""
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    param = shorten_text(f"fusion.{name}")
                    allowed = ", ".join(cls.model_fields)
                    raise InvalidRequestError(f"{param} is not known; fusion may hold {allowed}.", param=param)
            return _with_method(value)
        return value


def _with_method(fields: dict[str, Any]) -> dict[str, Any]:
    """`weights` may be the name of a method, which is then the one of `weighting`."""
    weights, weighting = fields.get("weights"), fields.get("weighting") or {}
    if not isinstance(weights, str) or not isinstance(weighting, dict):
        return fields
    if weights not in ("uniform", *MEASURES):
        raise InvalidRequestError(
            f"fusion.weights is {shorten(weights)}; give a number per member, or uniform, {', '.join(MEASURES)}.",
            param="fusion.weights",
        )
    if weighting.get("method") not in (None, weights):
        raise InvalidRequestError(
            "fusion.weights and fusion.weighting.method differ; leave one out.", param="fusion.weights"
        )
    return fields | {"weights": None, "weighting": weighting | {"method": weights}}


def fusion_params(fields: FusionFields | None, ensemble: Ensemble) -> FusionParams:
    """The ensemble's defaults, overridden by the request.

    Raises:
        InvalidRequestError: a name is no member, the pivot is left out, or all weights are 0.
    """
    defaults = ensemble.defaults
    if fields is None:
        return defaults
    members = defaults.members if fields.members is None else _members(fields.members, ensemble)
    taking_part = members or tuple(ensemble.models)
    weighting, uniform = _weighting(fields, defaults.weighting)
    return FusionParams(
        members=members,
        weights=None if uniform else _weights(fields.weights, defaults.weights, taking_part),
        weighting=weighting,
        combine=fields.combine or defaults.combine,
        filter_top=fields.filter_top if "filter_top" in fields.model_fields_set else defaults.filter_top,
        renormalise=defaults.renormalise if fields.renormalise is None else fields.renormalise,
        guard=defaults.guard if fields.guard is None else fields.guard,
        report=defaults.report if fields.report is None else fields.report,
    )


def _members(names: list[str], ensemble: Ensemble) -> tuple[str, ...]:
    for name in names:
        if name not in ensemble.models:
            raise InvalidRequestError(
                f"fusion.members names {shorten(name)}, but the members are {', '.join(ensemble.models)}.",
                param="fusion.members",
            )
    if ensemble.pivot not in names and not ensemble.views:
        raise InvalidRequestError(
            f"fusion.members leaves out the pivot, {ensemble.pivot}, which has to take part.",
            param="fusion.members",
        )
    return tuple(name for name in ensemble.models if name in names)


def _weighting(fields: FusionFields, default: Weighting) -> tuple[Weighting, bool]:
    """How the weights are measured, and whether those that are given do not count."""
    asked = fields.weighting or WeightingFields()
    options = asked.model_dump(exclude_none=True)
    method = options.pop("method", None)
    if "normalize" in options:
        options["normalise"] = options.pop("normalize")
    if fields.weights is not None and method is not None:
        raise InvalidRequestError(
            f"fusion.weights holds numbers, but fusion.weighting.method is {method}; leave one out.",
            param="fusion.weights",
        )
    if fields.weights is not None or method == "uniform":
        return replace(default, method="given", **options), method == "uniform"
    return replace(default, method=method or default.method, **options), method is not None


def _weights(
    asked: dict[str, float] | None, defaults: dict[str, float] | None, members: tuple[str, ...]
) -> dict[str, float] | None:
    for name in asked or {}:
        if name not in members:
            raise InvalidRequestError(
                f"fusion.weights names {shorten(name)}, but the members taking part are {', '.join(members)}.",
                param="fusion.weights",
            )
    given = defaults if asked is None else asked
    if given is None:
        return None
    weights = {name: given.get(name, 0.0) for name in members}
    largest = max(weights.values())
    if largest == 0:
        raise InvalidRequestError(
            f"The weights of {', '.join(members)} are all 0; give at least one of them a positive fusion.weights.",
            param="fusion.weights",
        )
    scaled = {name: weight / largest for name, weight in weights.items()}  # their sum cannot overflow
    total = sum(scaled.values())
    return {name: weight / total for name, weight in scaled.items()}


class RoundEntry(AnswerModel):
    """One round of a report: the chosen token and, by member, what `fusion.core.RoundReport` says."""

    token: int
    weights: dict[str, float]
    kept: dict[str, bool]
    contribution: dict[str, float]
    mass: dict[str, float]
    rolled_back: dict[str, int]


class WeightingEntry(AnswerModel):
    """How weights were measured on the prompt: what `fusion.weighting.WeightingReport` says."""

    method: str
    perplexity: dict[str, float]
    weights: dict[str, float]
    pruned: list[str]
    tokens: int
    scored: dict[str, int]
    kept: int
    coinciding: int
    notes: list[str]


class FusionReport(AnswerModel):
    """What every member did in every round of a choice.

    `weighting` is there where weights were measured. `departed` says why members left, or were missing from the
    beginning; `returned`, of those that came back, after how many tokens they took part again.
    """

    pivot: str
    members: list[str]
    rounds: list[RoundEntry]
    departed: dict[str, str]
    returned: dict[str, int]
    weighting: WeightingEntry | None = Field(default=None, exclude_if=is_none)


def fusion_report(
    ensemble: Ensemble,
    fusion: FusionParams,
    pivot: str,
    rounds: list[RoundReport],
    departed: dict[str, str],
    returned: dict[str, int],
    weighting: WeightingReport | None,
) -> FusionReport:
    """The report of one choice."""
    return FusionReport(
        pivot=pivot,
        members=ensemble.taking_part(fusion),
        rounds=[RoundEntry.model_validate(entry, from_attributes=True) for entry in rounds],
        departed=departed,
        returned=returned,
        weighting=weighting and WeightingEntry(**asdict(weighting)),
    )
