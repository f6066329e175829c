"""The `fusion` object of a request, which overrides the ensemble's defaults, and the report of an answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from alignment.errors import InvalidRequestError, field_error
from fusion.core import Delta, End
from fusion.options import MEASURES, Combine, ContextView, FusionParams, Measure, Weighting
from fusion.reports import RoundReport, WeightingReport
from fusion.terms import objections
from fusion.weights import GRID
from server.http.errors import shorten, shorten_text
from server.http.protocol.common import MAX_PARTS, AnswerModel, Listed, RequestModel, is_none
from server.settings.derive import overrides, section, updated
from server.settings.sums import NAMES as SUMS
from server.settings.sums import with_sums

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble


class WeightingFields(overrides(Weighting, RequestModel, without=("file",))):  # type: ignore[misc]
    """The options of `fusion.options.Weighting`; those left out are as in the ensemble's configuration.

    The file of learned weights is the configuration's alone.
    """

    model_config = ConfigDict(extra="forbid")

    method: Literal["uniform", Measure] | None = None


class Part(RequestModel):
    """An object inside `fusion`, in which a misspelt field must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class ViewFields(section(ContextView, Part)):  # type: ignore[misc]
    """A document of `fusion.views`."""

    context: Annotated[str, Field(min_length=1)]


_FusionFields = overrides(FusionParams, with_sums(RequestModel, Part), without=SUMS)


class FusionFields(_FusionFields):  # type: ignore[misc,valid-type]
    """`fusion` in a request: the options of `fusion.options.FusionParams`. Those left out keep the defaults.

    Weights are scaled to sum to 1, and 0 for members not named. In the JSON they may also be `uniform`, or the
    name of a method of `weighting`.
    """

    model_config = ConfigDict(extra="forbid")

    members: Annotated[Listed[str], Field(min_length=1)] | None = None
    weighting: WeightingFields | None = None
    views: Annotated[Listed[ViewFields], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_allowed(cls, value: Any) -> Any:
        """A misspelt field must not be ignored, and the complaint says what there is."""
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    param = shorten_text(f"fusion.{name}")
                    allowed = ", ".join(cls.model_fields)
                    raise field_error(param, f"is not known; fusion may hold {allowed}.")
            return _weights_as_method(value)
        return value


def _weights_as_method(fields: dict[str, Any]) -> dict[str, Any]:
    """`weights` may be the name of a method, which is then the one of `weighting`."""
    weights, weighting = fields.get("weights"), fields.get("weighting") or {}
    if not isinstance(weights, str) or not isinstance(weighting, dict):
        return fields
    if weights not in ("uniform", *MEASURES):
        raise field_error(
            "fusion.weights",
            f"is {shorten(weights)}; give a number per member, or uniform, {', '.join(MEASURES)}.",
        )
    if weighting.get("method") not in (None, weights):
        raise field_error("fusion.weights", "and fusion.weighting.method differ; leave one out.")
    return fields | {"weights": None, "weighting": weighting | {"method": weights}}


def fusion_params(fields: FusionFields | None, ensemble: Ensemble, max_search: int) -> FusionParams:
    """The ensemble's defaults, overridden by the request.

    Raises:
        InvalidRequestError: a name is no member, the pivot is left out, all weights are 0, or a search of
            more than `max_search` is asked for (`server.settings.ServerSettings`).
    """
    defaults = ensemble.defaults
    if fields is None:
        return defaults
    members = defaults.members if fields.members is None else _members(fields.members, ensemble)
    taking_part = members or tuple(ensemble.models)
    combine = fields.combine or defaults.combine
    weighting, uniform = _weighting(fields, defaults.weighting)
    if weighting.method == "learned" and ensemble.learned is None:
        field = "weights" if "weights" in fields.model_fields_set else "weighting.method"
        raise InvalidRequestError(
            f"{ensemble.name} has no learned weights (weighting.file in its configuration); give another method.",
            param=f"fusion.{field}",
        )
    _require_members("fusion.weighting.offsets", weighting.offsets or {}, ensemble.models)
    lines = max(1, len(taking_part) - 1)  # one line search for each member after the first
    asked, usual = _search(weighting) * lines, _search(defaults.weighting) * max(1, len(ensemble.models) - 1)
    if weighting.method == "packllm-opt" and asked > max(max_search, usual):
        allowed = max_search // (lines * max(weighting.grid, GRID))
        raise field_error(
            "fusion.weighting",
            f"asks for a search of {weighting.grid} values at {weighting.positions} positions "
            f"with {len(taking_part)} members; this server allows {allowed} positions with that grid.",
        )
    weights = None if uniform else _weights(fields.weights, defaults.weights, taking_part, combine)
    views = tuple(ContextView(view.context, view.weight) for view in fields.views or ()) or None
    if fields.combine is None and combine == "product" and len(views or ()) > 1:
        combine = "mixture"  # REPLUG's; a product of documents is for those who ask for it
    fusion = updated(
        defaults, fields, members=members, weights=weights, weighting=weighting, combine=combine, views=views
    )
    pivot = None if ensemble.chooses_pivot else ensemble.pivot
    for field, sentence in objections(fusion, taking_part, pivot):
        raise field_error(f"fusion.{field}", f"{sentence}.")
    return fusion


def require_short(fusion: FusionParams, most: int, chars: int) -> None:
    """Raise InvalidRequestError for more than `most` views, or one whose text is longer than `chars`."""
    views = fusion.views or ()
    if len(views) > most:
        raise field_error("fusion.views", f"has {len(views)} entries; this server takes at most {most}.")
    texts = {f"fusion.views[{index}].context": len(view.context) for index, view in enumerate(views)}
    negative = fusion.guidance.negative if fusion.guidance is not None else None
    if negative is not None:
        if not isinstance(negative, str) and len(negative) > MAX_PARTS:
            raise field_error("fusion.guidance.negative", f"holds more than {MAX_PARTS} messages.")
        parts = [negative] if isinstance(negative, str) else [message["content"] for message in negative]
        texts["fusion.guidance.negative"] = sum(map(len, parts))
    for field, length in texts.items():
        if length > chars:
            raise field_error(field, f"has {length} characters; this server takes at most {chars}.")


def _search(weighting: Weighting) -> int:
    """How much work the search of packllm-opt is. Positions cost something with the smallest grid too."""
    return max(weighting.grid, GRID) * weighting.positions


def _require_members(field: str, names: Iterable[str], members: Collection[str], which: str = "members") -> None:
    for name in names:
        if name not in members:
            raise field_error(field, f"names {shorten(name)}, but the {which} are {', '.join(members)}.")


def _members(names: list[str], ensemble: Ensemble) -> tuple[str, ...]:
    _require_members("fusion.members", names, ensemble.models)
    if ensemble.pivot not in names and not ensemble.chooses_pivot:
        raise field_error("fusion.members", f"leaves out the pivot, {ensemble.pivot}, which has to take part.")
    return tuple(name for name in ensemble.models if name in names)


def _weighting(fields: FusionFields, default: Weighting) -> tuple[Weighting, bool]:
    """The way weights are measured, and whether given ones are ignored."""
    asked = fields.weighting or WeightingFields()
    if fields.weights is not None and asked.method is not None:
        raise field_error(
            "fusion.weights", f"holds numbers, but fusion.weighting.method is {asked.method}; leave one out."
        )
    uniform = asked.method == "uniform"
    method = "given" if uniform or fields.weights is not None else asked.method or default.method
    return updated(default, asked, method=method), uniform or asked.method is not None


def _weights(
    asked: dict[str, float] | None, defaults: dict[str, float] | None, members: tuple[str, ...], combine: Combine
) -> dict[str, float] | None:
    _require_members("fusion.weights", asked or {}, members, "members taking part")
    given = defaults if asked is None else asked
    if given is None:
        return None
    weights = {name: given.get(name, 0.0) for name in members}
    if combine == "arithmetic":
        return weights
    for name, weight in weights.items():
        if weight < 0:
            raise field_error(
                f"fusion.weights.{name}",
                f"is {weight:g}, but should be greater than or equal to 0; below it takes combine: arithmetic.",
            )
    largest = max(weights.values())
    if largest == 0:
        raise InvalidRequestError(
            f"The weights of {', '.join(members)} are all 0; give at least one of them a positive fusion.weights.",
            param="fusion.weights",
        )
    scaled = {name: weight / largest for name, weight in weights.items()}  # their sum cannot overflow
    total = sum(scaled.values())
    return {name: weight / total for name, weight in scaled.items()}


class FusionReport(AnswerModel):
    """Report of every member in every round of a choice.

    `weighting` is there where weights were measured. `departed` says why members left, or were missing from the
    beginning; `returned`, of those that came back, after how many tokens they took part again.
    """

    pivot: str
    members: list[str]
    rounds: list[RoundReport]
    departed: dict[str, str]
    returned: dict[str, int]
    weighting: WeightingReport | None = Field(default=None, exclude_if=is_none)


class RoundsReport(AnswerModel):
    """Report of the rounds that a chunk of a stream brings."""

    rounds: list[RoundReport]


def rounds_report(update: Delta) -> RoundsReport | None:
    """The report of the round that an update comes from, where it was asked for."""
    return None if update.round is None else RoundsReport(rounds=[update.round])


def fusion_report(ensemble: Ensemble, fusion: FusionParams, pivot: str, end: End) -> FusionReport:
    """The report of one choice."""
    return FusionReport(
        pivot=pivot,
        members=ensemble.taking_part(fusion),
        rounds=list(end.rounds),
        departed=end.departed,
        returned=end.returned,
        weighting=end.weighting,
    )
