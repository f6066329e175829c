"""Section `server` of the configuration file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.settings.fields import Folder, Section, ServedName, Source, ToolFormat


def _http_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url):
        raise PydanticCustomError("url", "should be a URL such as http://collector:4318")
    return url


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
        max_prompt_logprobs: log-probabilities of its prompts' tokens (`echo`, `prompt_logprobs`), alternatives
            included, that an answer may hold.
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
    max_waiting: PositiveInt = 256
    default_max_tokens: PositiveInt | None = None
    max_choices: PositiveInt = 16
    max_views: PositiveInt = 16
    max_context_chars: PositiveInt = 65536
    max_prompt_logprobs: PositiveInt = 1_000_000
    max_search: PositiveInt = 4096
    request_seconds: PositiveFloat | None = None
    keep_alive: Literal["comment", "chunk"] = "comment"
    keep_alive_seconds: NonNegativeFloat = 5.0
    long_max_tokens: Literal["clamp", "refuse"] = "clamp"
    tool_format: Literal["auto", ToolFormat] = "auto"
    reasoning_tags: Annotated[tuple[str, str], Field(strict=False)] | None = ("<think>", "</think>")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    sampling_defaults: Literal["openai", "checkpoint"] = "openai"
    force_usage: bool = False
    aliases: dict[ServedName, str] = Field(default_factory=dict)
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
