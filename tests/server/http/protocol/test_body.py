"""Large bodies are read beside the event loop, and answered as small ones are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.http.protocol import body, common
from server.http.routes import messages, tokens
from tests.support.scripted_fuser import ScriptedFuser
from tests.support.small_requests import CHAT, CHAT_PATH, TEXT, TEXT_PATH, error_of

FILLING = {"filling": "x" * body.LARGE}


def is_beside_the_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[bool]]]:
    """By function, whether it was called beside the loop."""
    seen: dict[str, set[bool]] = {}

    def watch(module: Any, name: str) -> None:
        call = getattr(module, name)

        def watched(*args: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(is_beside_the_loop())
            return call(*args, **options)

        monkeypatch.setattr(module, name, watched)

    watch(body, "from_json")
    watch(common, "_whole")
    watch(common, "_parts")
    watch(messages, "as_chat")
    watch(tokens, "require_ids")
    return seen


@pytest.mark.parametrize(
    ("path", "fields", "names"),
    [
        (CHAT_PATH, CHAT, ["_parts"]),
        (TEXT_PATH, TEXT | {"prompt": [104.0, 105.0]}, ["_whole"]),
        ("/v1/messages", CHAT | {"max_tokens": 2}, ["_parts", "as_chat"]),
        ("/detokenize", {"tokens": [104.0, 105.0]}, ["_whole", "require_ids"]),
    ],
)
def test_large_bodies_are_parsed_and_checked_beside_the_loop(
    client: TestClient, beside: dict[str, set[bool]], path: str, fields: dict[str, Any], names: list[str]
) -> None:
    assert client.post(path, json=fields | FILLING).status_code == 200
    assert all(beside[name] == {True} for name in ["from_json", *names])


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": 5}]},
        {"temperature": "hot"},
        {"model": None, "messages": None},
    ],
)
def test_what_is_wrong_with_a_large_body_is_told_as_of_a_small_one(client: TestClient, wrong: Any) -> None:
    small, large = (client.post(CHAT_PATH, json=CHAT | wrong | more) for more in ({}, FILLING))
    assert error_of(large, 400) == error_of(small, 400)


@pytest.mark.parametrize("written", ["{%s", "null%s", "[1]%s", '{"a": NaN}%s', '"%s"', "%s"])
def test_what_is_no_object_is_told_as_of_a_small_one(client: TestClient, written: str) -> None:
    headers = {"content-type": "application/json"}
    small, large = (
        client.post(CHAT_PATH, content=written % (" " * spaces), headers=headers) for spaces in (1, body.LARGE)
    )
    assert error_of(large, 400)["code"] == error_of(small, 400)["code"]
    assert error_of(large, 400)["message"][:30] == error_of(small, 400)["message"][:30]


def test_a_large_body_reaches_the_fuser(client: TestClient, fuser: ScriptedFuser) -> None:
    fields = TEXT | FILLING | {"prompt": "hey", "temperature": 0.5, "max_tokens": 3.0}
    assert client.post(TEXT_PATH, json=fields).status_code == 200
    assert (fuser.last.sampling.temperature, fuser.last.sampling.max_tokens) == (0.5, 3)
    assert bytes(fuser.last.prompt.ids["a"][:3]) == b"hey"
