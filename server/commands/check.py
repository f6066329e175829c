"""`tutti check`: the plan of a configuration, made without loading weights."""

from __future__ import annotations

import pkgutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from alignment.errors import ConfigError
from alignment.methods.map_cache import MapCache
from fusion.assembly.checkpoints import Checkpoint, engine_spec, open_checkpoint, require_adapters
from fusion.assembly.learned import description, fingerprints, read_learned
from fusion.assembly.maps import MapMaker
from fusion.assembly.members import device_here, environment
from fusion.learned.weights import UNIFORM
from fusion.members.checkpoint import estimate
from fusion.members.memory import machine_memory
from fusion.members.registry import ENGINES
from fusion.terms import terms_of
from server import __version__
from server.commands.map_report import reach_of
from server.commands.tables import right, table
from server.loading import in_file, open_cache
from server.settings import EnsembleSettings, Settings


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model and what it takes up, in bytes."""

    checkpoint: Checkpoint
    weights: int
    cache: int

    @property
    def device(self) -> str:
        """The device with its number; `ray` where the cluster finds it."""
        return device_here(self.checkpoint.spec) or "ray"


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """A member's part in an ensemble.

    `reach` is the share of its text tokens that have a way into the pivot's vocabulary, None where the map has
    yet to be learned. `weight` is the number, or how it is measured. `view` says of which model it is one, and
    what it adds.
    """

    name: str
    view: str
    alignment: str
    reach: float | None
    weight: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked configuration. `problems` keep it from being served, `notes` do not.

    `learned` has a sentence for each ensemble with learned weights.
    """

    models: tuple[ModelPlan, ...]
    ensembles: dict[str, tuple[MemberPlan, ...]]
    learned: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(settings: Settings) -> Plan:
    """Check all that can be checked without weights, and go on after a problem to find the others."""
    models, problems = [], []
    for name in settings.needed:
        try:
            models.append(_plan_model(open_checkpoint(name, settings.models[name])))
        except ConfigError as error:
            problems.append(in_file(error))
    known = {model.checkpoint.name: model.checkpoint for model in models}
    adapters: dict[str, tuple[str, ...]] = {}
    try:
        adapters = require_adapters(known, {n: one for n, one in settings.ensembles.items() if _knows(known, one)})
    except ConfigError as error:
        problems.append(in_file(error))
    cache = open_cache(settings.server)
    ensembles = {}
    for name, ensemble in settings.ensembles.items():
        for pivot in ensemble.pivots if _knows(known, ensemble) else ():
            title = name if pivot == ensemble.pivot else f"{name}, where {pivot} is the pivot"
            try:
                ensembles[title] = _plan_ensemble(ensemble, pivot, known, cache)
            except ConfigError as error:
                problems.append(f"ensembles.{name}: {error}")
    learned = []
    for name, ensemble in settings.ensembles.items():
        file = ensemble.weighting.file
        if file is None or not _knows(known, ensemble):
            continue
        try:
            found = read_learned(file, fingerprints(ensemble, known))
            learned.append(f"{name}: {description(found)}.")
            if found.about.combine != ensemble.combine and found.about.kind != UNIFORM:
                learned.append(f"{name}: combine is {ensemble.combine} here, another than they were fitted for.")
        except ConfigError as error:
            problems.append(f"ensembles.{name}.weighting.file: {error}")
    notes = [
        f"{name} has no chat template: it answers /v1/completions only, and so does every ensemble it is in."
        for name, checkpoint in known.items()
        if not checkpoint.tokenizer.hf.chat_template
    ]
    notes += [f"{name}: {finding}" for name, one in known.items() for finding in one.tokenizer.findings]
    notes += [
        f"{name} runs on the portable path, which is slower: {checkpoint.not_packed}."
        for name, checkpoint in known.items()
        if checkpoint.not_packed
    ]
    notes += [
        f"{name} is hosted by Ray: its engine_args are validated there, when it is loaded."
        for name, checkpoint in known.items()
        if ENGINES[checkpoint.spec.engine].refusals and checkpoint.spec.host == "ray"
    ]
    unused = [name for name in settings.models if name not in settings.needed]
    notes += [f"{name} is in no ensemble and not served by itself: it is not loaded." for name in unused]
    problems += _refused(known.values(), adapters)
    return Plan(tuple(models), ensembles, tuple(learned), (*problems, *_too_large(models)), tuple(notes))


def _knows(known: Mapping[str, Checkpoint], ensemble: EnsembleSettings) -> bool:
    """Return whether all models of an ensemble could be read."""
    return known.keys() >= {ensemble.model_of(member) for member in ensemble.members}


def print_plan(plan: Plan, console: Console) -> None:
    """The plan as tables."""
    if plan.models:
        console.print(_models_table(plan))
        for device, needed in _needed(plan.models).items():
            console.print(f"  {device}: {_size(needed)} of {_size(_memory(device))}", highlight=False)
        for host in ("process", "ray"):
            hosted = [model.checkpoint.name for model in plan.models if model.checkpoint.spec.host == host]
            if hosted:
                console.print(f"  host {host}: {', '.join(hosted)}", highlight=False)
        console.print()
    for name, members in plan.ensembles.items():
        console.print(_ensemble_table(name, members))
        console.print()
    for sentence in plan.learned:
        console.print(f"Ensemble {sentence}", markup=False, highlight=False, soft_wrap=True)
    for note in plan.notes:
        console.print(f"Note: {note}", style="yellow", markup=False, highlight=False)


def _plan_model(checkpoint: Checkpoint) -> ModelPlan:
    model = checkpoint.spec
    weights, cache = estimate(
        checkpoint.source,
        checkpoint.dtype,
        model.cache_tokens,
        checkpoint.revision,
        trust_remote_code=model.trust_remote_code,
    )
    return ModelPlan(checkpoint, weights, cache)


def _plan_ensemble(
    ensemble: EnsembleSettings, pivot: str, known: dict[str, Checkpoint], cache: MapCache
) -> tuple[MemberPlan, ...]:
    vocabularies = {member: known[ensemble.model_of(member)].vocabulary for member in ensemble.members}
    maker = MapMaker(ensemble, pivot, vocabularies, cache, __version__)
    given = ensemble.fusion.weights or dict.fromkeys(ensemble.members, 1 / len(ensemble.members))
    weights = {name: ensemble.weighting.method or f"{weight:.3f}" for name, weight in given.items()}
    guided = ensemble.fusion.guidance
    if guided is not None:
        weights = {name: f"{weight}, guided by {guided.scale:g}" for name, weight in weights.items()}
    elif (terms := terms_of(ensemble.fusion, list(ensemble.members))) is not None:
        weights = {name: f"{terms.weights.get(name, 0.0):+.3f}" for name in ensemble.members}
    members = []
    for name in ensemble.members:
        alignment = "pivot" if name == pivot else "identity"
        reach: float | None = 1.0
        if name in maker.members:
            alignment = "file" if name in ensemble.maps else ensemble.alignment.method
            vocabulary_map = maker.known(name)
            reach = None if vocabulary_map is None else reach_of(vocabulary_map, vocabularies[name].tokenizer)
        members.append(MemberPlan(name, _shown(ensemble, name), alignment, reach, weights[name]))
    return tuple(members)


def _shown(ensemble: EnsembleSettings, member: str) -> str:
    """What a member that is a view is one of, and what it adds; nothing for a model."""
    view = ensemble.views.get(member)
    if view is None:
        return ""
    adds = [field for field in ("adapter", "system", "template", "context") if getattr(view, field)]
    return f"{view.model} + {', '.join(adds)}" if adds else view.model


def _refused(checkpoints: Iterable[Checkpoint], adapters: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each model whose engine would not start with its options; asked once for each environment."""
    together = defaultdict(list)
    for one in checkpoints:
        refusals = ENGINES[one.spec.engine].refusals
        if refusals is not None and one.spec.host != "ray":
            together[refusals, tuple(environment(one.spec).items())].append(one)
    sentences = []
    for (refusals, variables), group in together.items():
        try:
            asked = [engine_spec(one, adapters.get(one.name, ())).arguments for one in group]
            said = pkgutil.resolve_name(refusals)(asked, dict(variables))
        except ConfigError as error:
            said = [str(error), *[None] * (len(group) - 1)]
        sentences += [f"models.{one.name}: {text}" for one, text in zip(group, said, strict=True) if text]
    return sentences


def _too_large(models: Iterable[ModelPlan]) -> list[str]:
    """A sentence for each device that cannot hold its models."""
    sentences = []
    for device, needed in _needed(models).items():
        present = _memory(device)
        if needed > present:
            sentences.append(
                f"{device} has {_size(present)} of memory, its models need {_size(needed)}: "
                "lower cache_tokens, take a smaller dtype, or move a model to another device."
            )
    return sentences


def _needed(models: Iterable[ModelPlan]) -> dict[str, int]:
    needed: defaultdict[str, int] = defaultdict(int)
    for model in models:
        if model.device != "ray":
            needed[model.device] += model.weights + model.cache
    return needed


def _memory(device: str) -> int:
    """Bytes of memory of a device; that of this process for the CPU and for `mps`, which shares it."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory()


def _models_table(plan: Plan) -> Table:
    texts, numbers = ("model", "architecture", "engine", "device", "dtype"), ("vocab", "weights", "KV cache")
    result = table("Models", *texts, *map(right, numbers))
    for column in result.columns:
        column.no_wrap = True
    for model in plan.models:
        one = model.checkpoint
        result.add_row(
            one.name,
            one.config.model_type,
            one.spec.engine,
            model.device,
            one.dtype,
            f"{one.tokenizer.vocabulary_size:,}",
            _size(model.weights),
            _size(model.cache),
        )
    return result


def _ensemble_table(name: str, members: tuple[MemberPlan, ...]) -> Table:
    views = any(member.view for member in members)
    named = ("member", "view of", "alignment") if views else ("member", "alignment")
    result = table(f"Ensemble {name}", *named, right("tokens that reach the pivot"), right("weight"))
    for member in members:
        reach = "learned at start" if member.reach is None else f"{100 * member.reach:.1f}%"
        shown = [member.view] if views else []
        result.add_row(member.name, *shown, member.alignment, reach, member.weight)
    return result


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
