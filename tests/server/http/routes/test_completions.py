"""Completions that echo their prompt."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from fusion.core import Delta, End
from tests.support.scripted_fuser import ScriptedFuser, token
from tests.support.served import Served
from tests.support.small_requests import complete

ECHOED = [
    Delta("!", (token(b"!", -3.0),), prompt=(token(b"h", float("nan")), token(b"i", -1.5, ((b"o", -0.5),)))),
    End("", (token(b""),), finish="stop"),
]


@pytest.mark.parametrize("prompt", ["hi", [104, 105], ["hi"], [[104, 105]]])
def test_an_echo_begins_with_the_prompt(client: TestClient, fuser: ScriptedFuser, prompt: object) -> None:
    fuser.script = lambda s: ECHOED
    [choice] = complete(client, prompt=prompt, echo=True, logprobs=1)["choices"]
    assert fuser.last.sampling.prompt_logprobs == 1
    assert fuser.last.prompt.located is not None
    told = choice["logprobs"]
    assert choice["text"] == "hi!"
    assert told["tokens"] == ["h", "i", "!", "<end>"]
    assert told["token_logprobs"][:3] == [None, -1.5, -3.0]
    assert told["top_logprobs"][:2] == [None, {"o": -0.5, "i": -1.5}]
    assert told["text_offset"] == [0, 1, 2, 3]


def test_an_echo_without_logprobs_costs_nothing(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: [End("!", (token(b"!"),), finish="length")]
    choices = complete(client, prompt=["hi", "ho"], n=2, echo=True)["choices"]
    assert [choice["text"] for choice in choices] == ["hi!", "hi!", "ho!", "ho!"]
    assert fuser.last.sampling.prompt_logprobs is None
    assert fuser.last.prompt.located is None


def test_an_echo_streams(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: ECHOED
    body = {"model": "pair", "prompt": "hi", "echo": True, "logprobs": 0, "stream": True}
    lines = client.post("/v1/completions", json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "hi!"
    assert chunks[0]["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.5, -3.0]


def test_an_echo_of_more_than_the_answer_may_hold_is_refused(serve: Callable[..., Served]) -> None:
    served = serve(max_prompt_logprobs=18)
    body = {"model": "pair", "prompt": ["hi", "ho"], "echo": True, "logprobs": 2, "max_tokens": 1}
    with served.http() as http:
        served.fuser.script = lambda s: ECHOED
        assert http.post("/v1/completions", json=body).status_code == 200
        refused = http.post("/v1/completions", json=body | {"n": 2})
        alone = http.post("/v1/completions", json=body | {"logprobs": None, "prompt_logprobs": 3})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "echo"
    assert "36 log-probabilities" in refused.json()["error"]["message"]
    assert alone.json()["error"]["param"] == "prompt_logprobs"
