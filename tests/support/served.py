"""A server over the scripted fuser, and clients of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from tests.support.scripted_fuser import ScriptedFuser


@dataclass
class Served:
    """A real server process's worth of HTTP, in a thread, over the scripted fuser."""

    url: str
    fuser: ScriptedFuser
    clients: ExitStack
    """Closes the clients of `sdk` at the end."""

    def sdk(self, **options: Any) -> openai.OpenAI:
        sdk = openai.OpenAI(base_url=f"{self.url}/v1", max_retries=0, **{"api_key": "any", **options})
        return self.clients.enter_context(sdk)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=10)
