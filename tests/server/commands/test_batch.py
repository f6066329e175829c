"""`tutti run-batch`: every line of the file gets an answer, in OpenAI's format, whatever is wrong with it."""

from __future__ import annotations

import json

import pytest

from alignment.errors import ConfigError
from server.commands.batch import read
from tests.support.model_folders import run


def request(id, **fields):
    body = {"model": "ada", "prompt": "a", "max_tokens": 2}
    return json.dumps({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body} | fields)


CHAT = {"model": "both", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def test_every_request_is_answered_under_its_own_id(site, tmp_path):
    lines = [
        request("text"),
        request("chat", url="/v1/chat/completions", body=CHAT),
        request("response", url="/v1/responses", body={"model": "both", "input": "hi", "max_output_tokens": 2}),
        request("unknown", body={"model": "nobody", "prompt": "a"}),
        "",
        request("text"),
        "{",
        request("stream", body={"model": "ada", "prompt": "a", "stream": True}),
        request("elsewhere", url="/metrics"),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, _, err = run("run-batch", site / "tutti.yaml", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert (code, "3 of 8 requests were answered" in err) == (1, True)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8
    assert all(row.keys() == {"id", "custom_id", "response", "error"} for row in rows)
    answered = {row["custom_id"]: row["response"] for row in rows if row["response"]}
    assert answered["text"]["body"]["object"] == "text_completion"
    assert answered["chat"]["body"]["object"] == "chat.completion"
    assert answered["response"]["body"]["object"] == "response"
    assert (answered["unknown"]["status_code"], answered["chat"]["status_code"]) == (404, 200)
    assert answered["unknown"]["body"]["error"]["code"] == "model_not_found"
    assert answered["chat"]["request_id"]
    refused = {row["custom_id"]: row["error"]["message"] for row in rows if row["error"]}
    assert refused[None] == "line 7 is not valid JSON."
    assert "before" in refused["text"]
    assert "stream" in refused["stream"]
    assert "/v1/completions" in refused["elsewhere"]


def test_a_text_may_hold_other_ends_of_lines(tmp_path):
    """JSON allows them in strings as they are."""
    line = json.dumps(
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a\u2028b\x85c"}}, ensure_ascii=False
    )
    (tmp_path / "in.jsonl").write_text(f"{line}\r\n{request('b')}\n", encoding="utf-8", newline="")
    assert [one.custom_id for one in read(tmp_path / "in.jsonl")] == ["a", "b"]


def test_a_batch_wants_files_and_one_server(site, tmp_path):
    assert run("run-batch", "-i", "a", "-o", "b")[0] == 2
    assert run("run-batch", site / "tutti.yaml", "--url", "http://x", "-i", "a", "-o", "b")[0] == 2
    assert run("run-batch", site / "tutti.yaml")[0] == 2
    code, _, err = run("run-batch", site / "tutti.yaml", "-i", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert (code, "cannot be read" in err) == (2, True)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="no requests"):
        read(tmp_path / "empty")


def test_a_server_that_cannot_be_reached_fails_each_request(tmp_path, monkeypatch):
    monkeypatch.setattr("server.commands.client._RETRIES", 1)  # the pauses grow to seconds
    (tmp_path / "in.jsonl").write_text(request("one"))
    arguments = ("--url", "http://127.0.0.1:9", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert run("run-batch", *arguments)[0] == 1
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["custom_id"], row["error"]["code"]) == ("one", "unavailable")
