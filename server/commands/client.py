"""OpenAI clients of Tutti's own commands: one base URL, never a key that is meant for another server."""

from __future__ import annotations

NO_KEY = "none"  # sent where none is given, so that the SDK does not take OPENAI_API_KEY from the environment


def api_url(url: str) -> str:
    """The base URL of the API for a server's URL, which may end in /v1 already."""
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"
