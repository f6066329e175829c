"""The terminal chat against a server that plays OpenAI's part."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from server.cli import app
from server.commands import chat as terminal_chat
from server.commands.chat import ChatClient, ChatError, Conversation, printable


def chunk(content: str) -> bytes:
    body = {"choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass
class Actor:
    """What the fake server says next, and what it was told."""

    url: str = ""
    answers: list[list[bytes]] = field(default_factory=list)
    status: int = 200
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    models: bytes = b'{"data": [{"id": "ada"}, {"id": "ben"}]}'


@pytest.fixture
def actor() -> Iterator[Actor]:
    actor = Actor()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            actor.keys.append(self.headers["authorization"])
            self.reply(actor.models if self.path == "/v1/models" else b"{}")

        def do_POST(self) -> None:
            assert self.path in ("/v1/chat/completions", "/v1/completions")
            actor.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            parts = actor.answers.pop(0) if actor.answers else [chunk("Hello"), chunk(" there."), DONE]
            self.reply(*parts)

        def reply(self, *parts: bytes) -> None:
            self.send_response(actor.status)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        actor.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield actor
        server.shutdown()


def talk(actor: Actor, *lines: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    arguments = ["chat", "--url", actor.url, *options]
    result = CliRunner().invoke(
        app, arguments, input="".join(line + "\n" for line in lines), env={"COLUMNS": "200"}
    )
    return result.exit_code, result.output


def test_an_answer_is_shown_as_it_streams(actor):
    assert talk(actor, "Hi") == (0, "Hello there.\n")
    asked = {"model": "ada", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.0, "stream": True}
    assert actor.requests == [asked]


def test_the_conversation_is_remembered(actor):
    talk(actor, "Hi", "", "And you?", options=("--system", "Be kind.", "--model", "ben"))
    assert actor.requests[1]["model"] == "ben"
    assert actor.requests[1]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there."},
        {"role": "user", "content": "And you?"},
    ]


def test_commands(actor):
    code, output = talk(actor, "Hi", "/reset", "/system Be brief.", "/model ben", "/model", "Ho", "/quit", "never")
    assert code == 0
    assert "* ben" in output
    assert "  ada" in output
    assert actor.requests[1]["model"] == "ben"
    assert [message["content"] for message in actor.requests[1]["messages"]] == ["Be brief.", "Ho"]
    assert len(actor.requests) == 2


def test_a_model_that_is_not_there_is_not_taken(actor):
    code, output = talk(actor, "/model eve", "Hi")
    assert (code, actor.requests[0]["model"]) == (1, "ada")
    assert "error: there is no model 'eve' here; there are ada, ben" in output


def test_an_unknown_command_lists_the_known_ones(actor):
    assert "/reset" in talk(actor, "/help")[1]
    assert actor.requests == []


def test_the_key_is_sent(actor):
    talk(actor, options=("--api-key", "sk-1"))
    assert actor.keys == ["Bearer sk-1"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1(actor, suffix):
    assert ChatClient(actor.url + suffix).models() == ["ada", "ben"]


def test_keep_alive_comments_and_other_events_are_not_text(actor):
    actor.answers = [[b": keep-alive\n\n", chunk("a"), b": \n\n", b"event: x\nid: 1\n", chunk("b"), DONE]]
    assert talk(actor, "Hi") == (0, "ab\n")


def test_a_stream_without_done_ends_with_the_connection(actor):
    actor.answers = [[chunk("a"), chunk("b")]]
    assert talk(actor, "Hi") == (0, "ab\n")


def test_an_answer_cannot_steer_the_terminal(actor):
    actor.answers = [[chunk("a\x1b[2Jb\x07[red]c[/]\x9b1m"), DONE]]
    assert talk(actor, "Hi") == (0, "a[2Jb[red]c[/]1m\n")


@pytest.mark.parametrize(
    ("status", "parts", "line"),
    [
        (429, [b'{"error": {"message": "The line\\nis full."}}'], "error: The line is full. (HTTP 429)"),
        (502, [b"Bad gateway"], "error: Bad gateway (HTTP 502)"),
        (401, [b'{"error": "UnauthorizedError"}'], 'error: {"error": "UnauthorizedError"} (HTTP 401)'),
        (200, [b'data: {"error": {"message": "A member failed."}}\n\n', DONE], "error: A member failed."),
        (200, [b"data: {]\n\n"], "error: the server sent something that is not a chat completion chunk"),
        (
            200,
            [b'data: {"choices": 3}\n\n'],
            "error: the server sent something that is not a chat completion chunk",
        ),
    ],
)
def test_errors_are_one_line_and_the_chat_goes_on(actor, status, parts, line):
    actor.answers = [parts]
    actor.status = status
    client, conversation = ChatClient(actor.url), Conversation("ada")
    with pytest.raises(ChatError) as caught:
        list(client.answer(conversation))
    assert f"error: {caught.value}" == line
    actor.status, actor.answers = 200, [[b"data: nonsense\n\n"]]
    code, output = talk(actor, "Hi", "Ho")
    assert code == 1, "a question went unanswered"
    assert output.endswith("Hello there.\n")
    assert [message["content"] for message in actor.requests[-1]["messages"]] == ["Ho"], (
        "the failed one is forgotten"
    )


def test_what_came_before_an_error_is_kept(actor):
    actor.answers = [[chunk("Half"), b'data: {"error": {"message": "gone"}}\n\n']]
    assert talk(actor, "Hi", "Ho")[1] == "Half\nerror: gone\nHello there.\n"
    assert actor.requests[1]["messages"][1] == {"role": "assistant", "content": "Half"}


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://[", "http://a:b"])
def test_a_url_that_is_none(url):
    result = CliRunner().invoke(app, ["chat", "--url", url], input="Hi\n")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("models", "sentence"),
    [(b'{"data": []}', "serves no model"), (b"<html>", "does not answer like an OpenAI-compatible server")],
)
def test_a_server_with_nobody_to_talk_to(actor, models, sentence):
    actor.models = models
    assert talk(actor, "Hi") == (1, f"error: {actor.url}/v1/ {sentence}\n")


def test_a_server_that_is_not_there():
    result = CliRunner().invoke(app, ["chat", "--url", "http://127.0.0.1:9"], input="Hi\n")
    assert result.exit_code == 1
    assert result.output.startswith("error: http://127.0.0.1:9/v1/ cannot be reached: ")
    assert len(result.output.splitlines()) == 1


def test_control_c_stops_the_answer_and_not_the_chat(actor, monkeypatch):
    """The second piece never comes: the interrupt arrives while waiting for it."""
    conversation, console = Conversation("ada"), Console(file=io.StringIO(), highlight=False)
    lines = iter(["Hi", "Ho"])
    closed = []

    class Interrupted(ChatClient):
        def answer(self, conversation: Conversation) -> Iterator[str]:
            try:
                yield "Once"
                if not closed:
                    raise KeyboardInterrupt
            finally:
                closed.append(True)

    monkeypatch.setattr(terminal_chat, "_read_line", lambda interactive: next(lines, None))
    assert terminal_chat.chat(Interrupted(actor.url), conversation, console)
    assert [turn["content"] for turn in conversation.turns] == ["Hi", "Once", "Ho", "Once"]
    assert console.file.getvalue() == "Once (stopped)\nOnce\n"  # type: ignore[attr-defined]


# Event streams


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_pieces_come_out_whole_however_the_bytes_are_cut(actor, texts, cuts, end):
    """Line separators such as U+2028, which JSON leaves as they are, end no line of an event stream."""
    stream = b"".join(b": hm" + end + chunk(text).replace(b"\n\n", end + end) for text in texts)
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    actor.answers = [[stream[start:stop] for start, stop in pairwise(ends)]]
    with closing(ChatClient(actor.url)) as client:
        assert list(client.answer(Conversation("ada"))) == texts


def test_the_lines_of_one_event_belong_together(actor):
    first, rest = chunk("a").split(b" [")
    actor.answers = [[first + b"\ndata:[" + rest, b'data: {"choices"']]
    assert talk(actor, "Hi") == (0, "a\n")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_ADMIN_KEY"])
def test_a_key_for_another_server_is_not_sent(actor, monkeypatch, name):
    monkeypatch.setenv(name, "sk-for-openai")
    talk(actor)
    assert actor.keys == ["Bearer none"]


@given(st.text())
def test_printable_text_loses_control_characters_only(text):
    kept = printable(text)
    assert "\x1b" not in kept
    assert [c for c in text if c.isprintable()] == [c for c in kept if c.isprintable()]


def test_a_quick_question_is_answered_and_that_is_all(actor):
    assert talk(actor, "never read", options=("--quick", "Hi")) == (0, "Hello there.\n")
    assert [request["messages"][-1]["content"] for request in actor.requests] == ["Hi"]
    actor.status = 500
    assert talk(actor, options=("-q", "Hi", "--model", "ada"))[0] == 1


def text_chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}]}).encode() + b"\n\n"


def test_texts_are_continued_line_by_line_or_one_alone(actor):
    actor.answers = [[text_chunk(" upon"), text_chunk(" a time"), DONE] for _ in range(3)]
    arguments = ["complete", "--url", actor.url, "--max-tokens", "9"]
    result = CliRunner().invoke(app, arguments, input="Once\n\nTwice\n")
    assert (result.exit_code, result.output) == (0, " upon a time\n upon a time\n")
    assert [request["prompt"] for request in actor.requests] == ["Once", "Twice"]
    assert actor.requests[0]["max_tokens"] == 9
    result = CliRunner().invoke(app, [*arguments, "--quick", "Thrice"], input="never read\n")
    assert (result.exit_code, result.output) == (0, " upon a time\n")
    actor.status = 500
    assert CliRunner().invoke(app, [*arguments, "--model", "ada"], input="Once\n").exit_code == 1
