"""Section `ensembles` of the configuration file."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from alignment.methods.origin import Parameters
from alignment.methods.registry import METHODS
from fusion.core import OnMemberFailure
from fusion.options import AUTO, MEASURES, FusionParams, Measure, Unmapped, Weighting
from server.settings.derive import made, section, updated
from server.settings.fields import Section, ServedName, Source
from server.settings.sums import NAMES as SUMS
from server.settings.sums import with_sums


def _uniform_is_none(weights: Any) -> Any:
    if weights is None or weights == "uniform":
        return None
    if not isinstance(weights, dict):
        raise PydanticCustomError(
            "weights",
            "allowed: uniform, {methods}, or a number per member such as {example}",
            {"methods": ", ".join(MEASURES), "example": "{ada: 0.7, ben: 0.3}"},
        )
    return weights


def _named(member: Any) -> list[tuple[Any, Any]]:
    """An entry of a list of members as names with what they are; None for a model."""
    return list(member.items()) if isinstance(member, dict) and member else [(member, None)]


class _Method(Section):
    """The method of an alignment, which the file names first."""

    method: Literal[tuple(METHODS)]  # type: ignore[valid-type]


class AlignmentSettings(section(Parameters, _Method)):  # type: ignore[misc]
    """The way from a member's vocabulary into the pivot's, with the `Parameters` of a method that learns.

    In the file the name of a method alone is enough.

    Attributes:
        method: `exact` joins tokens of the same bytes; `spelled` does and takes for the rest the first token of
            the pivot's spelling; `prefix` the one that begins the same text; `eva` learns from embeddings; `mined`
            takes the token that is spelled most like it; `hybrid` is exact where the bytes coincide and eva for
            the rest.
    """

    @model_validator(mode="after")
    def _only_what_the_method_takes(self) -> AlignmentSettings:
        given = [field.name for field in fields(Parameters) if field.name in self.model_fields_set]
        if given and not METHODS[self.method].learns:
            raise PydanticCustomError("alignment", f"{self.method} takes no {given[0]}; leave it out")
        return self

    @property
    def parameters(self) -> Parameters:
        """As the methods take them."""
        return made(Parameters, self)


def _with_method(alignment: Any) -> Any:
    if isinstance(alignment, str) and alignment in METHODS:
        return {"method": alignment}
    if not isinstance(alignment, dict):
        raise PydanticCustomError("method", f"allowed: {', '.join(METHODS)}, or {{method: eva, top: 5}} and such")
    return alignment


class WeightingSettings(section(Weighting, Section)):  # type: ignore[misc]
    """The options of `fusion.options.Weighting`; `method` is None for the weights that are given.

    `weights: packllm-opt` beside this section is the same as this `method`.
    """

    method: Measure | None = None
    file: Source | None = None


class ViewSettings(Section):
    """A member that is a view of a model: the same engine and weights, shown more than the request.

    Attributes:
        model: the name of the model.
        adapter: folder of a LoRA adapter (peft's, in safetensors) that it runs with.
        system: text in front of every conversation's system message.
        template: arguments of its chat template, above those of a request.
        context: a document that it reads with every prompt.
    """

    model: str
    adapter: Source | None = None
    system: Annotated[str, Field(min_length=1)] | None = None
    template: dict[str, Any] = Field(default_factory=dict)
    context: Annotated[str, Field(min_length=1)] | None = None


class _Members(Section):
    """The members of an ensemble and their vocabularies."""

    members: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    views: dict[ServedName, ViewSettings] = Field(default_factory=dict)
    pivot: str
    alignment: Annotated[AlignmentSettings, BeforeValidator(_with_method)] = AlignmentSettings(method="spelled")
    maps: dict[str, Source] = Field(default_factory=dict)


_EnsembleOptions = section(
    FusionParams, with_sums(_Members, Section), without=("members", "report", "views", *SUMS)
)


class EnsembleSettings(_EnsembleOptions):  # type: ignore[misc,valid-type]
    """Several models served as one: their members, and the options of `fusion.options.FusionParams`.

    Attributes:
        members: names of models, each once, or views of models, each as its name with what it is:
            `{maths: {model: base, adapter: FOLDER}}`.
        views: the views among the members, by name; those that `members` holds are put here.
        pivot: the member whose tokens are emitted; `auto` for the one that understands the prompt best, which
            takes the maps between all pairs.
        alignment: how the others' tokens reach the pivot's vocabulary. Members with the pivot's own tokenizer
            need no map whatever this says.
        maps: files that `tutti align` has written, by member, which are taken instead.
        weights: one per member, scaled to sum to 1; None (in the file: `uniform`) for equal weights. In the file
            also the method of `weighting`.
        unmapped: as in the options, but `pivot` by default: better on real models, and never an impossible token.
        on_member_failure: what becomes of a request when a member other than the pivot fails: `fail` ends it with
            503, `degrade` goes on with the others, and with it again when it is back.
    """

    weights: Annotated[dict[str, float] | None, BeforeValidator(_uniform_is_none)] = None
    weighting: WeightingSettings = WeightingSettings()
    unmapped: Unmapped = "pivot"
    on_member_failure: OnMemberFailure = "fail"

    @model_validator(mode="before")
    @classmethod
    def _views_among_members(cls, values: Any) -> Any:
        """`members` may hold views, as a list of names and mappings or as one mapping."""
        if not isinstance(values, dict) or not isinstance(values.get("members"), list | dict):
            return values
        members = values["members"]
        entries = (
            members.items() if isinstance(members, dict) else [pair for one in members for pair in _named(one)]
        )
        names: list[Any] = []
        views = dict(values["views"]) if isinstance(values.get("views"), dict) else {}
        for name, view in entries:
            names.append(name)
            if isinstance(view, str) and view != name:
                views[name] = {"model": view}
            elif view is not None and not isinstance(view, str):
                views[name] = view
        return values | {"members": names} | ({"views": views} if views else {})

    @model_validator(mode="before")
    @classmethod
    def _weights_as_method(cls, values: Any) -> Any:
        """`weights: packllm-opt` is the method of `weighting`."""
        if isinstance(values, dict) and values.get("weights") in MEASURES:
            weighting = values.get("weighting")
            if weighting is None or (isinstance(weighting, dict) and "method" not in weighting):
                return values | {"weights": None, "weighting": {**(weighting or {}), "method": values["weights"]}}
        return values

    @property
    def fusion(self) -> FusionParams:
        """The options as the fuser takes them; weights scaled to sum to 1, but in a sum of log-probabilities."""
        total = 1.0 if self.combine == "arithmetic" else sum((self.weights or {}).values()) or 1.0
        weights = None if self.weights is None else {m: self.weights[m] / total for m in self.members}
        method = self.weighting.method or "given"
        weighting = updated(Weighting(), self.weighting, method=method)
        defaults = FusionParams(unmapped=self.unmapped)  # the default of the file is another one
        return updated(defaults, self, members=None, views=None, weights=weights, weighting=weighting)

    def model_of(self, member: str) -> str:
        """The name of the model that a member is, or is a view of."""
        return self.views[member].model if member in self.views else member

    @property
    def pivots(self) -> tuple[str, ...]:
        """The members that may become the pivot."""
        automatic = self.pivot == AUTO and AUTO not in self.members
        return self.members if automatic else (self.pivot,)
