"""Streams as clients see them on the wire, over a real connection."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from alignment.errors import UnavailableError
from fusion.core import Delta, End
from server.http.generation import Choice
from server.http.protocol.common import Usage
from server.http.streaming import respond
from server.settings import ServerSettings
from tests.support.scripted_fuser import ScriptedFuser, Step, Submission, eventually, report, says, token
from tests.support.served import Served

Serve = Callable[..., Served]
CHAT = {"model": "pair", "messages": [{"role": "user", "content": "hi"}], "stream": True}
TEXT = {"model": "pair", "prompt": "hi", "stream": True}


def lines(served: Served, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[str]:
    """The non-empty lines of the stream."""
    with served.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    return [line for line in answer.text.split("\n") if line]


def asked(served: Served, body: dict[str, Any], buffer: int | None = None) -> socket.socket:
    """A connection that a request was sent over; `buffer` bytes may wait there to be read."""
    url, sent = httpx.URL(served.url), json.dumps(body)
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect((url.host, url.port or 80))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(sent)}"
    connection.sendall(f"{head}\r\ncontent-type: application/json\r\n\r\n{sent}".encode())
    return connection


def events(served: Served, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
    """The stream's events, which have to end with [DONE]."""
    *data, done = [line.removeprefix("data: ") for line in lines(served, body, path) if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(line) for line in data]


def test_chat_stream_is_role_contents_finish(serve: Serve) -> None:
    told = events(serve(), CHAT)
    assert [event["choices"][0]["delta"] for event in told] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " world"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in told] == [None, None, None, "stop"]
    assert {event["object"] for event in told} == {"chat.completion.chunk"}
    assert len({event["id"] for event in told}) == 1
    assert all("usage" not in event for event in told)
    assert all(event["system_fingerprint"] == "tutti-pair" for event in told)


def test_completion_stream_is_texts_finish(serve: Serve) -> None:
    told = events(serve(), TEXT, "/v1/completions")
    assert [event["choices"][0]["text"] for event in told] == ["Hello", " world", ""]
    assert [event["choices"][0]["finish_reason"] for event in told] == [None, None, "stop"]


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_usage_comes_last_and_without_choices_where_asked_for(
    serve: Serve, path: str, body: dict[str, Any]
) -> None:
    *chunks, last = events(serve(), body | {"n": 2, "stream_options": {"include_usage": True}}, path)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 6


def test_rounds_without_text_send_nothing_and_lose_nothing(serve: Serve, fuser: ScriptedFuser) -> None:
    held = [
        Delta("", (token(b"\xf0"),)),
        Delta("", (token(b"\x9f"),)),
        Delta("🙂", (token(b"\x99\x82"),)),
        Delta(" E", (token(b" E"),)),
        End("END?", (token(b"?"),), finish="length"),
    ]
    fuser.script = lambda submission: held
    told = events(serve(), CHAT | {"stream_options": {"include_usage": True}})
    contents = [event["choices"][0]["delta"].get("content") for event in told[:-1]]
    assert contents == ["", "🙂", " E", "END?", None]
    assert told[-1]["usage"]["completion_tokens"] == 5


def test_log_probabilities_come_with_their_round(serve: Serve, fuser: ScriptedFuser) -> None:
    split = [
        Delta("", (token(b"\xc3"),)),
        Delta("é", (token(b"\xa9"),)),
        End("!", (token(b"!"),), finish="length"),
    ]
    fuser.script = lambda submission: split
    served = serve()
    told = events(served, CHAT | {"logprobs": True})
    told_of = [event["choices"][0]["logprobs"] for event in told]
    assert [entry["bytes"] for entries in told_of if entries for entry in entries["content"]] == [
        [0xC3],
        [0xA9],
        [33],
    ]
    told = events(served, TEXT | {"logprobs": 0}, "/v1/completions")
    told_of = [event["choices"][0]["logprobs"] for event in told]
    assert [offset for entries in told_of if entries for offset in entries["text_offset"]] == [0, 0, 1]


def test_choices_interleave(serve: Serve, fuser: ScriptedFuser) -> None:
    order = [0, 1, 0, 1, 0, 0, 1, 1]
    reached = [threading.Event() for _ in range(len(order) + 1)]
    reached[0].set()

    def script(submission: Submission) -> Iterator[Step]:
        mine = submission.sampling.seed
        steps = [*(Delta(f"{mine}{turn}", (token(b"x"),)) for turn in range(3)), End("", finish="stop")]
        places = [place for place, index in enumerate(order) if index == mine]
        for place, step in zip(places, steps, strict=True):
            assert reached[place].wait(timeout=30)
            yield step
            reached[place + 1].set()

    fuser.script = script
    told = events(serve(), CHAT | {"n": 2, "seed": 0})
    assert [event["choices"][0]["index"] for event in told[2:]] == order
    for index in range(2):
        parts = [e["choices"][0]["delta"].get("content", "") for e in told if e["choices"][0]["index"] == index]
        assert "".join(parts) == f"{index}0{index}1{index}2"


def test_a_report_comes_with_the_end_of_each_choice(serve: Serve, fuser: ScriptedFuser) -> None:
    rounds = [
        Delta("a", (token(b"a"),)),
        End("b", (token(b"b"),), finish="length", rounds=(report(1), report(2)), departed={"b": "it failed"}),
    ]
    fuser.script = lambda submission: rounds
    told = events(serve(), CHAT | {"n": 2, "fusion": {"report": True}})
    with_report = [event["choices"][0] for event in told if "fusion" in event["choices"][0]]
    assert sorted(choice["index"] for choice in with_report) == [0, 1]
    assert all(choice["finish_reason"] == "length" for choice in with_report)
    assert [entry["token"] for entry in with_report[0]["fusion"]["rounds"]] == [1, 2]
    assert with_report[0]["fusion"]["departed"] == {"b": "it failed"}


def test_each_round_is_reported_as_it_comes(serve: Serve, fuser: ScriptedFuser) -> None:
    first, second = replace(report(1), text="a"), replace(report(2), drafted=True)
    fuser.script = lambda submission: [
        Delta("a", (token(b"a"),), round=first),
        End("", (token(b"b"),), finish="length", rounds=(first, second), round=second),
    ]
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        told = [e["choices"][0] for e in events(serve(), body | {"fusion": {"report": True}}, path)]
        *rounds, whole = [choice["fusion"] for choice in told if "fusion" in choice]
        assert [[r["token"] for r in one["rounds"]] for one in rounds] == [[1], [2]]
        assert [(r["text"], r["drafted"]) for one in rounds for r in one["rounds"]] == [("a", False), ("", True)]
        assert [r["token"] for r in whole["rounds"]] == [1, 2]


def test_stop_reason_comes_with_the_end(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: [End("a", finish="stop", stop_reason="\n")]
    assert events(serve(), CHAT)[-1]["choices"][0]["stop_reason"] == "\n"


def test_a_silent_stream_is_kept_alive(serve: Serve, fuser: ScriptedFuser) -> None:
    def script(submission: Any) -> Any:
        yield 0.5  # a slow prefill
        yield Delta("a", (token(b"a"),))
        for _ in range(5):  # busy, but with nothing to send
            yield 0.1
            yield Delta("", (token(b"b"),))
        yield End("c", (token(b"c"),), finish="length")

    fuser.script = script
    served = serve(keep_alive_seconds=0.2)
    began = time.monotonic()
    told = lines(served, CHAT)
    comments = [line for line in told if line.startswith(":")]
    assert 3 <= len(comments) <= (time.monotonic() - began) / 0.2 + 1
    first_text = next(i for i, line in enumerate(told) if '"a"' in line)
    assert any(line.startswith(":") for line in told[:first_text])
    assert any(line.startswith(":") for line in told[first_text:])
    assert told[-1] == "data: [DONE]"


def test_every_write_is_a_whole_event_however_slowly_a_client_reads(serve: Serve, fuser: ScriptedFuser) -> None:
    def script(submission: Any) -> Any:
        for _ in range(20):
            yield Delta("x" * 30_000, (token(b"x"),))
            yield 0.02
        yield End("c", (token(b"c"),), finish="length")

    fuser.script = script
    with asked(serve(keep_alive_seconds=0.01), CHAT, buffer=4096) as slow:
        received = b""
        while piece := slow.recv(16_384):
            received += piece
            time.sleep(0.005)
    rest, writes = received.split(b"\r\n\r\n", 1)[1], []
    while rest:
        size, rest = rest.split(b"\r\n", 1)
        writes.append(rest[: int(size, 16)].decode())
        rest = rest[int(size, 16) + 2 :]
    assert sum(write.startswith("data: {") for write in writes) == 23
    assert any(write == ": keep-alive\n" for write in writes)
    for write in filter(None, writes):
        assert write == ": keep-alive\n" or (write.startswith("data: ") and write.endswith("\n\n"))


def test_a_lively_stream_has_no_comments(serve: Serve) -> None:
    assert not [line for line in lines(serve(), CHAT) if line.startswith(":")]


def test_a_late_failure_is_an_event_and_then_done(serve: Serve, fuser: ScriptedFuser) -> None:
    failing = [*says("Hel")[:-1], 0.05, End("", error=UnavailableError("Member 'b' failed."))]
    fuser.script = lambda submission: failing
    *_, partial, error = events(serve(), CHAT | {"stream_options": {"include_usage": True}})
    assert partial["choices"][0]["delta"]["content"] == "Hel"
    assert error["error"] == {
        "message": "Member 'b' failed.",
        "type": "server_error",
        "param": None,
        "code": None,
    }


def test_a_late_failure_stops_the_other_choices(serve: Serve, fuser: ScriptedFuser) -> None:
    failing = [*says("Hel")[:-1], 0.1, End("", error=KeyError("secret"))]
    fuser.script = lambda s: failing if s.sampling.seed == 1 else [*says("Hel")[:-1], 60.0]
    error = events(serve(), CHAT | {"n": 3, "seed": 0})[-1]
    assert "secret" not in str(error)
    assert eventually(lambda: [s.cancelled.is_set() for s in fuser.submissions] == [True, False, True])


def test_a_request_over_its_time_ends_in_an_event(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: [*says("Hel")[:-1], 60.0]
    error = events(serve(request_seconds=2), CHAT)[-1]
    assert "2 seconds" in error["error"]["message"]
    assert eventually(fuser.last.cancelled.is_set)


def test_a_client_that_does_not_read_holds_nothing_for_longer(serve: Serve, fuser: ScriptedFuser) -> None:
    def flood(submission: Submission) -> Iterator[Step]:
        while True:
            yield Delta("x" * 20_000, (token(b"x"),))
            yield 0.001

    fuser.script = flood
    served = serve(request_seconds=1)
    with served.http() as http, http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert eventually(fuser.last.cancelled.is_set, 30)
        assert "took longer than" in [line for line in lines if line.startswith("data: {")][-1]


def endless(submission: Any) -> Any:
    while True:
        yield Delta("x", (token(b"x"),))
        yield 0.02


def silent(submission: Any) -> Any:
    yield 60.0


@pytest.mark.parametrize("script", [endless, silent])
@pytest.mark.parametrize("body", [CHAT, CHAT | {"stream": False}], ids=["stream", "whole"])
def test_a_client_that_leaves_stops_all_its_sequences(
    serve: Serve, fuser: ScriptedFuser, script: Any, body: dict[str, Any]
) -> None:
    fuser.script = script
    with asked(serve(), body | {"n": 2}) as leaving:
        assert eventually(lambda: len(fuser.submissions) == 2)
        if body["stream"] and script is endless:  # else there are no headers yet, or none before all has come
            assert leaving.recv(1)
        assert not any(s.cancelled.is_set() for s in fuser.submissions)
    assert eventually(lambda: all(s.cancelled.is_set() for s in fuser.submissions))


def test_a_client_that_leaves_after_the_headers_stops_its_sequence(serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = silent
    served = serve(keep_alive_seconds=0.1)
    with served.http() as http, http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        lines = answer.iter_lines()  # dropping the iterator would close the connection
        assert next(lines).startswith(": keep-alive")
        assert not fuser.last.cancelled.is_set()
    assert eventually(fuser.last.cancelled.is_set)


def test_finished_sequences_are_not_cancelled(serve: Serve, fuser: ScriptedFuser) -> None:
    events(serve(), CHAT)
    time.sleep(0.1)
    assert not fuser.last.cancelled.is_set()


def test_a_slow_request_does_not_hold_others_up(serve: Serve, fuser: ScriptedFuser) -> None:
    quick_is_answered = threading.Event()

    def script(submission: Submission) -> Iterator[Step]:
        if submission.sampling.seed == 1:
            quick_is_answered.wait(timeout=10)
            yield from says("slow")
        else:
            yield from says("quick")

    fuser.script = script
    served = serve()
    answers: list[str] = []

    def ask(seed: int) -> None:
        told = events(served, CHAT | {"seed": seed})
        answers.append(told[1]["choices"][0]["delta"]["content"])

    slow = threading.Thread(target=ask, args=(1,))
    slow.start()
    assert eventually(lambda: len(fuser.submissions) == 1)
    ask(2)
    quick_is_answered.set()
    slow.join()
    assert answers == ["quick", "slow"]


def test_a_stream_that_never_runs_dry_leaves_the_loop_to_others() -> None:
    """Updates come faster than they are written, until another task has run."""

    class Busy:
        running, seen, other_has_run = True, 0, False

        async def settle(self, seconds: float | None) -> None:
            pass

        async def wait(self, seconds: float | None) -> bool:
            return True

        def take(self) -> Iterator[tuple[Choice, Delta]]:
            while not self.other_has_run and self.seen < 1000:
                self.seen += 1
                yield Choice(0), Delta("more")
            self.running = False

    class Plain:
        done = ""

        def opening(self, choices: object) -> list[Usage]:
            return []

        def chunks(self, choice: Choice, update: Delta) -> list[Usage]:
            return [Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)]

        def frame(self, chunk: Usage) -> str:
            return chunk.model_dump_json()

    async def connected() -> None:
        await asyncio.Event().wait()

    async def stream(busy: Any) -> None:
        busy.choices = []
        options: dict[str, Any] = {"stream": True, "include_usage": False}
        request: Any = SimpleNamespace(receive=connected)
        shape: Any = Plain()
        answer: Any = await respond(request, busy, shape, ServerSettings(), **options)

        async def other() -> None:
            busy.other_has_run = True

        asked = asyncio.create_task(other())
        async for _ in answer.body_iterator:
            pass
        await asked

    busy = Busy()
    asyncio.run(stream(busy))
    assert 0 < busy.seen < 50
