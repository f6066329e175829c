"""What happens between a request whose prompts are read and its first token."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from server.http.routes import chat, completions
from tests.support.scripted_fuser import ScriptedFuser

BODIES = {
    "/v1/chat/completions": {"model": "pair", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "pair", "prompt": "hi"},
}


@pytest.mark.parametrize("path", BODIES)
def test_nothing_runs_for_an_answer_that_has_no_shape(
    client: TestClient, fuser: ScriptedFuser, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no shape")

    monkeypatch.setattr(chat, "ChatShape", fail)
    monkeypatch.setattr(completions, "CompletionShape", fail)
    assert client.post(path, json=BODIES[path]).status_code == 500
    assert not fuser.submissions
