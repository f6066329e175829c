"""What the HTTP edge can be told; everything about models and ensembles lies elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from server import __version__


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and credentials of the HTTP server.

    Attributes:
        api_keys: bearer keys that are let in; empty leaves the server open.
        max_body_bytes: larger request bodies are answered with 413.
        keep_alive_seconds: a stream that was silent for this long sends a comment line.
        request_timeout: seconds a generation may take before it fails with 503; None for no limit.
        default_max_tokens: the longest answer to a chat that names no limit; None for all the room there is.
        max_choices: the largest `n`.
        max_prompts: how many prompts one completion request may hold.
        max_stop_strings: how many stop strings, and stop token ids, a request may hold.
        max_logprobs: the largest number of alternatives per token.
        otlp_endpoint: where traces are sent; None for what OpenTelemetry's environment variables say.
        version: what `/version` says.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_body_bytes: int = 4 * 1024 * 1024
    keep_alive_seconds: float = 5.0
    request_timeout: float | None = None
    default_max_tokens: int | None = None
    max_choices: int = 16
    max_prompts: int = 1024
    max_stop_strings: int = 16
    max_logprobs: int = 20
    otlp_endpoint: str | None = None
    version: str = __version__
