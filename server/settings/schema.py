"""The configuration file: its sections, with the default, range and meaning of every field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fusion.members.registry import ENGINES
from fusion.options import EngineOptions
from server.settings.derive import section
from server.settings.ensembles import EnsembleSettings
from server.settings.fields import Device, Match, Section, ServedName, Source
from server.settings.server import ServerSettings
from server.settings.workers import Host, WorkerSettings

# Options that not every engine takes, by those that do.
_ENGINES_OF = {
    option: [name for name, kind in ENGINES.items() if option in kind.options]
    for option in sorted({option for kind in ENGINES.values() for option in kind.options})
}


class _Checkpoint(Section):
    """A checkpoint, and the place where its engine runs.

    Attributes:
        source: a folder (seen from the configuration file) or a Hugging Face id.
        engine: what runs the model: `transformers`, or `vllm` where that is installed.
        dtype: of weights and cache; `auto` takes what the checkpoint says.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        host: where the engine runs: `inline` in the server, `process` in a process of its own, `ray` in an actor
            of a Ray cluster.
        worker: how, for the latter two.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: allow Python code that comes with the checkpoint.
    """

    source: Source
    engine: Literal[tuple(ENGINES)] = "transformers"  # type: ignore[valid-type]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Device = "cpu"
    host: Host = "inline"
    worker: WorkerSettings = WorkerSettings()
    revision: str | None = None
    trust_remote_code: bool = False


class ModelSettings(section(EngineOptions, _Checkpoint)):  # type: ignore[misc]
    """One checkpoint and what runs it, with the options of `fusion.options.EngineOptions`.

    Attributes:
        engine_args: arguments of vLLM's own engine (as `vllm serve` takes them, with _ for -), validated by vLLM.
            Those that size its cache take the place of `cache_tokens`.
        adapter: folder of a LoRA adapter (peft's, in safetensors) that the model runs with.
        chat_template: file whose text takes the place of the checkpoint's own chat template.
    """

    engine_args: dict[str, Any] = Field(default_factory=dict)
    adapter: Source | None = None
    chat_template: Source | None = None

    @model_validator(mode="after")
    def _only_what_the_engine_takes(self) -> ModelSettings:
        for name in sorted(self.model_fields_set & _ENGINES_OF.keys()):
            if self.engine not in _ENGINES_OF[name]:
                others = " or ".join(_ENGINES_OF[name])
                raise PydanticCustomError("engine", f"{name} is for engine: {others}; leave it out")
        sizing = sorted(ENGINES[self.engine].sizes_cache & self.engine_args.keys())
        if sizing and "cache_tokens" in self.model_fields_set:
            raise PydanticCustomError(
                "engine", f"cache_tokens and engine_args.{sizing[0]} both size the cache; leave one out"
            )
        return self


class EvaluationSettings(Section):
    """Tasks of `tutti eval`.

    Attributes:
        tasks: files of JSON lines with `id`, `task`, `prompt` and `reference(s)`.
        match: how answers are compared where a line has no `match`: `exact`, `normalized`, `contains`,
            `last_number` or `choice`; None for `choice` with choices, `last_number` where all references are
            numbers, else `exact`.
    """

    tasks: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    match: Match | None = None


class Settings(Section):
    """A whole configuration file."""

    models: Annotated[dict[ServedName, ModelSettings], Field(min_length=1)]
    ensembles: dict[ServedName, EnsembleSettings] = Field(default_factory=dict)
    server: ServerSettings = ServerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _aliases_of_served_names(self) -> Settings:
        for alias, name in self.server.aliases.items():
            if name not in self.served or alias in self.served:
                raise PydanticCustomError(
                    "alias",
                    "server.aliases.{alias}: should be a new name for one of {served}",
                    {"alias": alias, "served": ", ".join(self.served)},
                )
        return self

    @property
    def served(self) -> tuple[str, ...]:
        """The names that clients may ask for, the default first."""
        return (*self.ensembles, *(self.models if self.server.serve_models else ()))

    @property
    def needed(self) -> tuple[str, ...]:
        """The models to load: those served by themselves or as a member."""
        members = {e.model_of(member) for e in self.ensembles.values() for member in e.members}
        return tuple(name for name in self.models if self.server.serve_models or name in members)
