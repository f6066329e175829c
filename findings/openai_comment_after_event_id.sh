#!/usr/bin/env bash
# openai-python: a keep-alive comment ends a stream once an event has carried an id.
#
# Software: openai 3.52.0 (Python client), Python 3.11.
# Expected: the specification of server-sent events lets a server send comment lines (": text") at any time, and an
#   event without data is not dispatched. Servers send such comments to keep idle connections open.
# Seen: after a chunk with an "id:" line, a comment followed by a blank line is handed on as an event with empty
#   data, and the stream raises JSONDecodeError. The same bytes without the "id:" line are read without an error.
# Source: the client's own SSE decoder dispatches where any of event, data, id or retry is set, and keeps the last id.
#   Reported as openai/openai-python#2722.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.52.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai

CHUNK = json.dumps(
    {
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}],
    }
)
STREAMS = {
    "plain": f"data: {CHUNK}\n\n: keep-alive\n\ndata: {CHUNK}\n\ndata: [DONE]\n\n",
    "numbered": f"id: 1\ndata: {CHUNK}\n\n: keep-alive\n\ndata: {CHUNK}\n\ndata: [DONE]\n\n",
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = STREAMS[json.loads(self.rfile.read(length))["model"]].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)


def read(model):
    try:
        stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], stream=True)
        return "".join(chunk.choices[0].delta.content for chunk in stream)
    except json.JSONDecodeError as error:
        return f"JSONDecodeError: {error}"


found = {model: read(model) for model in STREAMS}
print("openai", openai.__version__, found)
sys.exit(0 if found["plain"] == "hihi" and found["numbered"].startswith("JSONDecodeError") else 1)
PYTHON
