"""Schema of the configuration file: every field with its default, range and meaning."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from alignment.methods.origin import PAPERS, Parameters, TableName
from alignment.methods.registry import METHODS
from fusion.core import OnMemberFailure
from fusion.members.registry import ENGINES
from fusion.options import MEASURES, EngineOptions, FusionParams, Measure, Unmapped, Weighting
from server.settings.derive import section, updated
from server.settings.section import STRICT
from server.settings.sums import NAMES as SUMS
from server.settings.sums import with_sums
from server.settings.workers import Host, WorkerSettings

AUTO = "auto"


def _servable(name: str) -> str:
    """Return a name that can be used in a URL, a log line and, upper-cased, an environment variable."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", name):
        raise PydanticCustomError(
            "name", "allowed: up to 128 letters, digits and . _ : / - with a letter or digit first"
        )
    return name


ServedName = Annotated[str, AfterValidator(_servable)]


def _beside_the_file(source: str, info: ValidationInfo) -> str:
    """The absolute path of a file or folder that the configuration can see, any other `source` as it is."""
    assert info.context is not None, "validate with context={'folder': ...}"
    path = os.path.join(info.context["folder"], source)
    return os.path.abspath(path) if os.path.exists(path) else source


def _names_something(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise PydanticCustomError("empty", "should be a path or a name, not an empty text")
    return text


Source = Annotated[str, AfterValidator(_names_something), AfterValidator(_beside_the_file)]


def _folder(path: str, info: ValidationInfo) -> str:
    """The absolute path of a folder that may not exist yet."""
    assert info.context is not None, "validate with context={'folder': ...}"
    return os.path.abspath(os.path.join(info.context["folder"], os.path.expanduser(path)))


Folder = Annotated[str, AfterValidator(_names_something), AfterValidator(_folder)]


def _http_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url):
        raise PydanticCustomError("url", "should be a URL such as http://collector:4318")
    return url


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


class Section(BaseModel):
    """A part of the file."""

    model_config = STRICT


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
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|mps|cuda(:\d{1,3})?)$")] = "cpu"
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


def _named(member: Any) -> list[tuple[Any, Any]]:
    """An entry of a list of members as names with what they are; None for a model."""
    return list(member.items()) if isinstance(member, dict) and member else [(member, None)]


class AlignmentSettings(Section):
    """The way from a member's vocabulary into the pivot's. In the file the name of a method alone is enough.

    Attributes:
        method: `exact` joins tokens of the same bytes; `prefix` does and takes the token that begins the same text
            for the rest; `eva` learns from embeddings; `mined` takes the token that is spelled most like it;
            `hybrid` is exact where the bytes coincide and eva for the rest.
        embeddings: the table that `eva` and `hybrid` read of each model: `output` (the head) or `input`.
        top: pivot tokens that a token may go to.
        threshold: the lowest score of an entry.
    """

    method: Literal[tuple(METHODS)]  # type: ignore[valid-type]
    embeddings: TableName = PAPERS.embeddings
    top: Annotated[int, Field(ge=1, le=100)] = PAPERS.top
    threshold: Annotated[float, Field(gt=0, le=1)] = PAPERS.threshold

    @model_validator(mode="after")
    def _only_what_the_method_takes(self) -> AlignmentSettings:
        given = [name for name in ("embeddings", "top", "threshold") if name in self.model_fields_set]
        if given and not METHODS[self.method].learns:
            raise PydanticCustomError("alignment", f"{self.method} takes no {given[0]}; leave it out")
        return self

    @property
    def parameters(self) -> Parameters:
        """As the methods take them."""
        return Parameters(self.embeddings, self.top, self.threshold)


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
    template: dict[str, Any] = {}
    context: Annotated[str, Field(min_length=1)] | None = None


class _Members(Section):
    """The members of an ensemble and their vocabularies."""

    members: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    views: dict[ServedName, ViewSettings] = {}
    pivot: str
    alignment: Annotated[AlignmentSettings, BeforeValidator(_with_method)] = AlignmentSettings(method="spelled")
    maps: dict[str, Source] = {}


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
    def _method_as_weights(cls, values: Any) -> Any:
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
        return updated(FusionParams(), self, members=None, views=None, weights=weights, weighting=weighting)

    def model_of(self, member: str) -> str:
        """The name of the model that a member is, or is a view of."""
        return self.views[member].model if member in self.views else member

    @property
    def pivots(self) -> tuple[str, ...]:
        """The members that may become the pivot."""
        automatic = self.pivot == AUTO and AUTO not in self.members
        return self.members if automatic else (self.pivot,)


class ServerSettings(Section):
    """The HTTP side.

    Attributes:
        host: address to listen on; `0.0.0.0` for every interface.
        port: 0 takes a free one.
        api_keys: accepted bearer keys; with none here and no file, every request is let in.
        api_keys_file: more keys, one per line; blank lines and lines starting with `#` are skipped.
        serve_models: serve every model under its own name as well.
        cache_dir: where learned maps are kept; None for `tutti` in the user's cache ($XDG_CACHE_HOME or ~/.cache).
        max_body_bytes: larger requests are answered with 413.
        max_waiting: sequences that may wait for room in the members; more are answered with 429. One key (one
            address, where there are no keys) gets four fifths of the places, so that others find some.
        default_max_tokens: the longest answer to a chat request that names no limit; None for all the room
            there is, which such a request then reserves.
        max_choices: the largest `n` of a request.
        max_views: the most contexts of a request.
        max_context_chars: the longest context, or second prompt, of a request.
        max_search: grid times positions times members less one (a grid below 21 counts as 21) that a request may
            ask of `packllm-opt`; what an ensemble is configured with is allowed whatever it is.
        request_seconds: how long one generation may take; None for no limit.
        keep_alive: what a silent stream gets: a `comment` line, which clients skip, or an empty `chunk`.
        keep_alive_seconds: how long a stream may be silent before it gets one; 0 switches them off.
        long_max_tokens: what becomes of a `max_tokens` beyond what fits after the prompt: `clamp` shortens it,
            `refuse` answers 400.
        tool_format: how the pivot writes tool calls; `auto` finds it in its chat template.
        reasoning_tags: the two tags that thoughts stand between; None leaves them in the text.
        chat_template_kwargs: arguments of every chat template that a request does not set.
        sampling_defaults: for sampling options that a request leaves out: `openai` takes that API's, `checkpoint`
            those that the pivot's generation_config.json lists, as vLLM does.
        force_usage: end every stream with usage, whether or not the request asks for it.
        aliases: further names for what is served, each with the name that it stands for.
        page: serve the web page at `/`.
        cors_origins: origins whose pages may ask this server from a browser; `*` for all. None by default.
        root_path: path that a proxy in front has taken off the URL.
        unix_socket: path of a socket to listen on in place of `host` and `port`.
        tls_certificate: file of the certificate chain (PEM), with which the server speaks HTTPS alone.
        tls_key: file of its private key (PEM).
        shutdown_seconds: how long requests in progress may go on after SIGTERM.
        log_level: of the server's own log.
        otlp_endpoint: base URL of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of every request;
            None for what OTEL_EXPORTER_OTLP_ENDPOINT says, if anything.
        log_format: `text` for people, `json` for machines: an object per line, to stderr.
    """

    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_keys: Annotated[tuple[Annotated[SecretStr, Field(min_length=1)], ...], Field(strict=False)] = ()
    api_keys_file: Source | None = None
    serve_models: bool = True
    cache_dir: Folder | None = None
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    max_waiting: NonNegativeInt = 256
    default_max_tokens: PositiveInt | None = None
    max_choices: PositiveInt = 16
    max_views: PositiveInt = 16
    max_context_chars: PositiveInt = 65536
    max_search: PositiveInt = 4096
    request_seconds: PositiveFloat | None = None
    keep_alive: Literal["comment", "chunk"] = "comment"
    keep_alive_seconds: NonNegativeFloat = 5.0
    long_max_tokens: Literal["clamp", "refuse"] = "clamp"
    tool_format: Literal["auto", "hermes", "coder", "llama", "mistral", "args", "json"] = "auto"
    reasoning_tags: Annotated[tuple[str, str], Field(strict=False)] | None = ("<think>", "</think>")
    chat_template_kwargs: dict[str, Any] = {}
    sampling_defaults: Literal["openai", "checkpoint"] = "openai"
    force_usage: bool = False
    aliases: dict[ServedName, str] = {}
    page: bool = True
    cors_origins: Annotated[tuple[str, ...], Field(strict=False)] = ()
    root_path: str = ""
    unix_socket: Folder | None = None
    tls_certificate: Source | None = None
    tls_key: Source | None = None
    shutdown_seconds: NonNegativeInt = 30
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    otlp_endpoint: Annotated[str, AfterValidator(_http_url)] | None = None

    @model_validator(mode="after")
    def _certificate_with_key(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise PydanticCustomError("tls", "tls_certificate and tls_key go together; set both or neither")
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
    match: Literal["exact", "normalized", "contains", "last_number", "choice"] | None = None


class Settings(Section):
    """A whole configuration file."""

    models: Annotated[dict[ServedName, ModelSettings], Field(min_length=1)]
    ensembles: dict[ServedName, EnsembleSettings] = {}
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
