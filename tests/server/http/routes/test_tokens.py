"""Tokenize, detokenize and tokenizer_info, which use the pivot's tokenizer."""

from __future__ import annotations

from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.scripted_fuser import CONTEXT, END, ScriptedFuser, ensemble
from tests.support.small_requests import CHAT_PATH, HELLO, PROMPT_TOKENS, error_of

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_tokenize_and_detokenize_use_the_pivot(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "é"}).json()
    assert answer == {"count": 3, "max_model_len": CONTEXT, "tokens": [0xC3, 0xA9, END], "token_strs": None}
    bare = {"model": "pair", "prompt": "é", "add_special_tokens": False, "return_token_strs": True}
    assert client.post("/tokenize", json=bare).json()["token_strs"] == ["<C3>", "<A9>"]
    rendered = client.post("/tokenize", json={"model": "pair", "messages": HELLO}).json()
    assert rendered["count"] == PROMPT_TOKENS
    assert client.post("/detokenize", json={"tokens": [104, 105, END]}).json() == {"prompt": "hi<end>"}


def test_tokens_of_a_conversation_are_those_of_a_chat(fuser: ScriptedFuser) -> None:
    """With the server's arguments of the template, and with tools."""
    settings = ServerSettings(chat_template_kwargs={"thinking": False})
    with TestClient(create_app({"pair": ensemble()}, fuser, settings)) as client:
        asked = {"model": "pair", "messages": HELLO}
        usage = client.post(CHAT_PATH, json=asked).json()["usage"]
        assert client.post("/tokenize", json=asked).json()["count"] == usage["prompt_tokens"]
        asked["tools"] = [TOOL]  # too long for an answer, which says how long
        count = client.post("/tokenize", json=asked).json()["count"]
        assert f"the prompt has {count};" in error_of(client.post(CHAT_PATH, json=asked), 400)["message"]


def test_texts_far_over_the_context_are_counted(client: TestClient) -> None:
    """That is how clients decide what to leave out."""
    long = "x" * CONTEXT * 10
    assert client.post("/tokenize", json={"prompt": long}).json()["count"] == len(long) + 1
    messages = [{"role": "user", "content": long}]
    counted = client.post("/tokenize", json={"messages": messages}).json()["count"]
    assert counted == PROMPT_TOKENS - len("hi") + len(long)


def test_what_no_chat_could_ask_is_refused_as_there(client: TestClient) -> None:
    for name, value in {"max_tokens": -1, "temperature": "hot", "n": 0, "tool_choice": 5}.items():
        chat = {"model": "pair", "messages": HELLO, name: value}
        assert error_of(client.post("/tokenize", json=chat), 400)["param"] == name
    asked = {"model": "pair", "messages": HELLO, "tools": [TOOL], "tool_choice": "none", "max_tokens": 5}
    without = client.post("/tokenize", json={"model": "pair", "messages": HELLO}).json()["count"]
    assert client.post("/tokenize", json=asked).json()["count"] == without == PROMPT_TOKENS


def test_tokenizer_info_is_what_evaluation_harnesses_need(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<end>"
    assert info["chat_template"] == "{{ messages }}"
    assert client.get("/tokenizer_info", params={"model": "nobody"}).status_code == 404
