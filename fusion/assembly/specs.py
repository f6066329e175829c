"""Specifications of models and ensembles, as the caller has read and checked them.

They are protocols: the settings of a file fit, and so does any plain object with these attributes. Options of
engines and of fusion are those of `fusion.options`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from alignment.errors import ConfigError
from alignment.methods.origin import Parameters
from fusion.core import OnMemberFailure
from fusion.options import FusionParams


class BuildError(ConfigError):
    """A part of what is to be built cannot be; `kind` and `name` say which, `reason` why."""

    def __init__(self, kind: Literal["model", "ensemble"], name: str, reason: object) -> None:
        super().__init__(f"{kind} {name}: {reason}")
        self.kind, self.name, self.reason = kind, name, str(reason)


@contextmanager
def named(kind: Literal["model", "ensemble"], name: str) -> Iterator[None]:
    """Raise a ConfigError from within as a BuildError."""
    try:
        yield
    except ConfigError as error:
        raise BuildError(kind, name, error) from error


class ModelSpec(Protocol):
    """A checkpoint, its engine, and the place where it runs.

    It has every option of `fusion.options.EngineOptions` by name; named here are those that building looks at.

    Attributes:
        worker: of a model that is hosted outside this process: `gpus` (numbers that its process sees, None for
            all), `environment` (variables besides those of this one), the fields of `hosts.remote.Patience`, and
            `ray`, the options of `hosts.ray.ray_actor`.
    """

    source: str
    engine: str
    dtype: str
    device: str
    host: str
    worker: Any
    revision: str | None
    trust_remote_code: bool
    cache_tokens: int
    max_context: int | None
    engine_args: dict[str, Any]
    adapter: str | None
    chat_template: str | None


class AlignmentSpec(Protocol):
    """A method of `alignment.methods.registry` with its parameters."""

    @property
    def method(self) -> str:
        """A key of `METHODS`."""

    @property
    def parameters(self) -> Parameters:
        """For methods that learn."""


class ViewSpec(Protocol):
    """A member that is a view of a model, as `fusion.views.ModelView` takes it; `adapter` is a folder."""

    model: str
    adapter: str | None
    system: str | None
    template: dict[str, Any]
    context: str | None


class EnsembleSpec(Protocol):
    """Members that decode as one.

    `pivot` is the fixed one, `pivots` all that a prompt may decide on; `maps` are files by member that stand in
    for the alignment. `views` are those of the members that are no models, by name.
    """

    members: Sequence[str]
    views: Mapping[str, Any]  # ViewSpec
    pivot: str
    maps: dict[str, str]
    on_member_failure: OnMemberFailure

    def model_of(self, member: str) -> str:
        """The name of the model that a member is, or is a view of."""

    @property
    def pivots(self) -> Sequence[str]:
        """All possible pivots, the first of them in front."""

    @property
    def alignment(self) -> AlignmentSpec:
        """Brings the vocabularies of members without a file into the pivot's."""

    @property
    def fusion(self) -> FusionParams:
        """The defaults of requests."""


Models = Mapping[str, ModelSpec]
Ensembles = Mapping[str, EnsembleSpec]
