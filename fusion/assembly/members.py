"""Members from specifications: placing each model's engine on a host and loading it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from importlib.util import find_spec

from alignment.errors import ConfigError
from fusion.assembly.specs import ModelSpec, named
from fusion.core import Member
from fusion.members.devices import parse_device
from fusion.members.hosts.inline import InlineMember
from fusion.members.hosts.process import process
from fusion.members.hosts.remote import Launch, Patience, RemoteMember
from fusion.members.registry import EngineSpec, load_engine


def device_here(model: ModelSpec) -> str | None:
    """The device of this machine that the model will use, with its number; None where another machine may run it.

    Raises:
        ConfigError: there is no such device, or no Ray to find one.
    """
    if model.host == "ray":
        if find_spec("ray") is None:
            raise ConfigError("host ray needs Ray; install it in Tutti's folder with: pip install '.[ray]'.")
        return None
    if model.worker.gpus is None or not model.device.startswith("cuda"):
        return str(parse_device(model.device))
    number = int(model.device.partition(":")[2] or 0)
    return str(parse_device(f"cuda:{model.worker.gpus[number]}"))


def load_members(models: Sequence[tuple[str, ModelSpec, EngineSpec]]) -> dict[str, Member]:
    """The members of these models, their engines loaded; those hosted elsewhere load all at the same time.

    Raises:
        ConfigError: one cannot be loaded; names the model. What had been started is shut down.
    """
    members: dict[str, Member] = {}
    with ExitStack() as on_failure:
        remote: dict[str, RemoteMember] = {}
        for name, model, spec in models:
            if model.host != "inline":
                with named("model", name):
                    members[name] = remote[name] = RemoteMember(name, spec, _launch(model), _patience(model))
                on_failure.callback(remote[name].stop)
        for name, model, spec in models:
            if model.host == "inline":
                with named("model", name):
                    members[name] = InlineMember(name, load_engine(spec))
                on_failure.callback(members[name].stop)
        while remote:  # the first to fail is heard first
            for name in list(remote):
                with named("model", name):
                    if remote[name].wait(0.05):
                        del remote[name]
        on_failure.pop_all()
    return {name: members[name] for name, _, _ in models}


def environment(model: ModelSpec) -> dict[str, str]:
    """Environment variables of the model's process beside the server's; none for an engine in the server.

    Raises:
        ConfigError: it is to see a GPU that the server does not.
    """
    worker = model.worker
    if model.host == "inline":
        return {}
    if not worker.gpus:
        return dict(worker.environment)
    # The numbers are those of this process, which may itself see some of the machine's only, by number or name.
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else []
    if names and (beyond := [gpu for gpu in worker.gpus if gpu >= len(names)]):
        raise ConfigError(
            f"worker.gpus names GPU {beyond[0]}, but this server sees {len(names)} (CUDA_VISIBLE_DEVICES={seen}): "
            "count from 0 among those."
        )
    visible = [names[gpu].strip() if names else str(gpu) for gpu in worker.gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible), **worker.environment}


def _launch(model: ModelSpec) -> Launch:
    worker = model.worker
    if model.host == "process":
        return process(environment(model))
    from fusion.members.hosts.ray import ray_actor

    place = worker.ray
    return ray_actor(
        address=place.address,
        num_cpus=place.num_cpus,
        num_gpus=place.num_gpus,
        resources=place.resources,
        placement_seconds=place.placement_seconds,
        environment=worker.environment,
    )


def _patience(model: ModelSpec) -> Patience:
    return Patience(**{field.name: getattr(model.worker, field.name) for field in fields(Patience)})
