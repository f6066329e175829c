"""The `fusion` object of a request: how it overrides its ensemble's defaults, and the report it may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from alignment.errors import InvalidRequest
from fusion.core import Combine, FusionParams, RoundReport
from server.errors import shorten, shorten_text
from server.protocol.common import AnswerModel, RequestModel

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble


class FusionFields(RequestModel):
    """`fusion` in a request. Fields left out keep the ensemble's defaults.

    Attributes:
        members: who takes part; the pivot has to.
        weights: by member; normalised, and 0 for members not named.
        combine: of probabilities ("mixture") or of their logarithms ("product").
        filter_top: of EVA's faithful-token filter; null switches it off.
        renormalise: scale what each member's map carries over to a sum of 1.
        guard: keep the pivot's token where the fused best is the same text cut differently.
        report: add to each choice what every member did in every round.
    """

    model_config = ConfigDict(extra="forbid")

    members: Annotated[list[str], Field(min_length=1)] | None = None
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
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
                    raise InvalidRequest(f"{param} is not known; fusion may hold {allowed}.", param=param)
        return value


def fusion_params(fields: FusionFields | None, ensemble: Ensemble) -> FusionParams:
    """The ensemble's defaults, overridden by the request.

    Raises:
        InvalidRequest: a name is no member, the pivot is left out, or all weights are 0.
    """
    defaults = ensemble.defaults
    if fields is None:
        return defaults
    members = defaults.members if fields.members is None else _members(fields.members, ensemble)
    taking_part = members or tuple(ensemble.models)
    return FusionParams(
        members=members,
        weights=_weights(fields.weights, defaults.weights, taking_part),
        combine=fields.combine or defaults.combine,
        filter_top=fields.filter_top if "filter_top" in fields.model_fields_set else defaults.filter_top,
        renormalise=defaults.renormalise if fields.renormalise is None else fields.renormalise,
        guard=defaults.guard if fields.guard is None else fields.guard,
        report=defaults.report if fields.report is None else fields.report,
    )


def _members(names: list[str], ensemble: Ensemble) -> tuple[str, ...]:
    for name in names:
        if name not in ensemble.models:
            raise InvalidRequest(
                f"fusion.members names {shorten(name)}, but the members are {', '.join(ensemble.models)}.",
                param="fusion.members",
            )
    if ensemble.pivot not in names:
        raise InvalidRequest(
            f"fusion.members leaves out the pivot, {ensemble.pivot}, which has to take part.",
            param="fusion.members",
        )
    return tuple(name for name in ensemble.models if name in names)


def _weights(
    asked: dict[str, float] | None, defaults: dict[str, float] | None, members: tuple[str, ...]
) -> dict[str, float] | None:
    for name in asked or {}:
        if name not in members:
            raise InvalidRequest(
                f"fusion.weights names {shorten(name)}, but the members taking part are {', '.join(members)}.",
                param="fusion.weights",
            )
    given = defaults if asked is None else asked
    if given is None:
        return None
    weights = {name: given.get(name, 0.0) for name in members}
    largest = max(weights.values())
    if largest == 0:
        raise InvalidRequest(
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


class FusionReport(AnswerModel):
    """What every member did in every round of a choice.

    `departed` says why members left, or were missing from the beginning; `returned`, of those that came back,
    after how many tokens they took part again.
    """

    pivot: str
    members: list[str]
    rounds: list[RoundEntry]
    departed: dict[str, str]
    returned: dict[str, int]


def fusion_report(
    ensemble: Ensemble,
    fusion: FusionParams,
    rounds: list[RoundReport],
    departed: dict[str, str],
    returned: dict[str, int],
) -> FusionReport:
    """The report of one choice."""
    return FusionReport(
        pivot=ensemble.pivot,
        members=ensemble.taking_part(fusion),
        rounds=[RoundEntry.model_validate(entry, from_attributes=True) for entry in rounds],
        departed=departed,
        returned=returned,
    )
