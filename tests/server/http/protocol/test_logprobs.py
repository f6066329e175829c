"""Log-probabilities in the shapes of both endpoints."""

from __future__ import annotations

from starlette.testclient import TestClient

from fusion.core import Delta, End
from tests.support.scripted_fuser import ScriptedFuser, token
from tests.support.small_requests import chat, complete

SPLIT = [
    Delta("", (token(b"\xe2", -0.25, ((b"\xe2", -0.25), (b"a", float("-inf")))),)),
    Delta("", (token(b"\x82"),)),
    Delta("€", (token(b"\xac"),)),
    Delta("!", (token(b"!", -3.0, ((b"?", -0.1),)),)),
    End("", (token(b""),), finish="stop"),
]


def test_chat_logprobs(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: SPLIT
    entries = chat(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"] or []).decode() == "€!"
    assert entries[0]["token"] == "\\xe2"
    assert entries[0]["top_logprobs"][1] == {"token": "a", "logprob": -9999.0, "bytes": [97]}
    assert entries[3]["token"] == "!"
    assert entries[3]["logprob"] == -3.0
    assert (entries[4]["token"], entries[4]["bytes"]) == ("<end>", None)


def test_completion_logprobs(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: SPLIT
    told = complete(client, logprobs=1)["choices"][0]["logprobs"]
    assert told["tokens"] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "!", "<end>"]
    assert told["text_offset"] == [0, 0, 0, 1, 2]
    assert told["token_logprobs"][0] == -0.25
    assert told["top_logprobs"][0] == {"bytes:\\xe2": -0.25, "a": -9999.0}
    assert told["top_logprobs"][3] == {"?": -0.1, "!": -3.0}


def test_a_token_after_a_character_that_breaks_off_stands_behind_it(
    client: TestClient, fuser: ScriptedFuser
) -> None:
    fuser.script = lambda s: [
        Delta("", (token(b"a\xe2"),)),
        Delta("a\ufffdE", (token(b"E"),)),
        Delta("", (token(b"\xf0\x9f"),)),
        Delta("", (token(b"\xe2\x82"),)),
        Delta("\ufffd€!", (token(b"\xac!"),)),
        End("", (token(b""),), finish="stop"),
    ]
    choice = complete(client, logprobs=1)["choices"][0]
    assert choice["text"] == "a\ufffdE\ufffd€!"
    assert choice["logprobs"]["text_offset"] == [0, 2, 3, 4, 4, 6]
