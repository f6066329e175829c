"""Tokenize, detokenize and tokenizer_info, which use the pivot's tokenizer."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.support.scripted_fuser import CONTEXT, END
from tests.support.small_requests import HELLO, PROMPT_TOKENS


def test_tokenize_and_detokenize_use_the_pivot(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "é"}).json()
    assert answer == {"count": 3, "max_model_len": CONTEXT, "tokens": [0xC3, 0xA9, END], "token_strs": None}
    bare = {"model": "pair", "prompt": "é", "add_special_tokens": False, "return_token_strs": True}
    assert client.post("/tokenize", json=bare).json()["token_strs"] == ["<C3>", "<A9>"]
    rendered = client.post("/tokenize", json={"model": "pair", "messages": HELLO}).json()
    assert rendered["count"] == PROMPT_TOKENS
    assert client.post("/detokenize", json={"tokens": [104, 105, END]}).json() == {"prompt": "hi<end>"}


def test_tokenizer_info_is_what_evaluation_harnesses_need(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<end>"
    assert info["chat_template"] == "{{ messages }}"
    assert client.get("/tokenizer_info", params={"model": "nobody"}).status_code == 404
