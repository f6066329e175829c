"""Settings of workers: engines outside the server's own process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

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


class WorkerSettings(Section):
    """The worker of a model that is not hosted inline.

    Attributes:
        gpus: those that the process sees, by their numbers among what the server sees; `device: cuda:0` is the
            first of them. None for all.
        environment: variables besides the server's own; OMP_NUM_THREADS keeps models on one CPU apart.
        silence_seconds: a worker that is silent for this long has hung and is replaced.
        step_seconds: an engine whose step takes this long has hung too.
        load_seconds: so has a process that has not loaded its model again by then.
        restart_seconds: before a worker that ended is started again; doubles with every attempt that fails.
        longest_restart_seconds: the longest time between two attempts.
        ray: for `host: ray`.
    """

    gpus: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)] | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    silence_seconds: PositiveFloat = 10.0
    step_seconds: PositiveFloat = 300.0
    load_seconds: PositiveFloat = 3600.0
    restart_seconds: PositiveFloat = 1.0
    longest_restart_seconds: PositiveFloat = 60.0
    ray: RaySettings = RaySettings()
