#!/usr/bin/env bash
# anthropic: the second request of a tool runner has neither the conversation nor the tools.
#
# Software: anthropic 2.11.0 (Python).
# Expected: as in every earlier turn of the Messages API, a request holds the whole conversation, so that a server which
#   speaks that API and passes over fields it does not know answers it.
# Seen: the first request asks for a thread, `thread: {"type": "create"}`. Whoever answers it
#   with a message is taken to have made one: the second request is `thread: {"type": "continue", ...}` with the tool's
#   result as its only message and without tools. A server that does not know threads sees a result of no call.
#   With an error whose `details.error_code` is `thread_unsupported_request` for the first request the client sends it again,
#   without a thread, and the second has all three messages and the tool.
# Source: the runner keeps its conversation in a thread, which sends what is new as long as the server has not refused.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check anthropic==2.11.0
cat >"$folder/runner.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import anthropic

CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
TEXT = {"type": "text", "text": "It rains."}
REFUSED = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "thread should be left out.",
        "details": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
    },
}


class Messages(BaseHTTPRequestHandler):
    """Answers with a call, then with a text; knows no threads, and says so where `refuses`."""

    refuses = False
    seen = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kept = [m["content"] if isinstance(m["content"], str) else m["content"][0]["type"] for m in body["messages"]]
        thread = (body.get("thread") or {}).get("type")
        self.seen.append((thread, kept, [tool["name"] for tool in body.get("tools") or []]))
        if self.refuses and thread:
            return self.answer(400, REFUSED)
        first = kept[-1] == "Does it rain?"
        message = {
            "id": f"msg_{len(self.seen)}",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [CALL if first else TEXT],
            "stop_reason": "tool_use" if first else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        self.answer(200, message)

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@anthropic.beta_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return "Rain."


def requests(refuses):
    Messages.refuses, Messages.seen = refuses, []
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.server_port}", api_key="none", max_retries=0)
    asked = [{"role": "user", "content": "Does it rain?"}]
    client.beta.messages.tool_runner(model="m", max_tokens=20, messages=asked, tools=[weather]).until_done()
    return Messages.seen


server = HTTPServer(("127.0.0.1", 0), Messages)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("anthropic", anthropic.__version__)
passed_over, refused = requests(False), requests(True)
print("passed over:", *passed_over, sep="\n  ")
print("refused:", *refused, sep="\n  ")
whole = ["Does it rain?", "tool_use", "tool_result"]
assert passed_over == [("create", whole[:1], ["weather"]), ("continue", whole[2:], [])]
assert refused[1:] == [(None, whole[:1], ["weather"]), (None, whole, ["weather"])]
PYTHON
NO_PROXY=127.0.0.1 "$folder/venv/bin/python" "$folder/runner.py" || exit 1
