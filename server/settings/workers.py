"""Settings of workers: engines outside the server's own process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from fusion.members.hosts.remote import Patience
from server.settings.derive import section
from server.settings.fields import Section

Host = Literal["inline", "process", "ray"]


class RaySettings(Section):
    """The actor of a model with `host: ray`.

    Attributes:
        address: of the cluster; `auto` is the one this machine is in, `local` starts one of this machine alone.
        num_cpus: processor cores to set aside.
        num_gpus: GPUs; Ray makes just these visible to the actor.
        resources: the cluster's own resources by name, such as a kind of GPU or a node.
        placement_seconds: how long to wait for a node that has all of that.
    """

    address: Annotated[str, Field(min_length=1)] = "auto"
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0
    resources: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    placement_seconds: PositiveFloat = 120.0


class WorkerSettings(section(Patience, Section)):  # type: ignore[misc]
    """The worker of a model that is not hosted inline, and the `Patience` with it.

    Attributes:
        gpus: those that the process sees, by their numbers among what the server sees; `device: cuda:0` is the
            first of them. None for all.
        environment: variables besides the server's own; OMP_NUM_THREADS keeps models on one CPU apart.
        ray: for `host: ray`.
    """

    gpus: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)] | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    ray: RaySettings = RaySettings()
