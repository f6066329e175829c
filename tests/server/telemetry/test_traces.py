"""Traces as a collector gets them: real requests, sent over OTLP to a server that only listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.testclient import TestClient

from server.http.app import create_app
from server.loading import build
from server.settings import ServerSettings, read_settings
from tests.support.scripted_fuser import ScriptedFuser, ensemble
from tests.support.small_requests import CHAT, CHAT_PATH

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """Takes in OTLP over HTTP."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [s for r in self.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collected.paths.append(self.path)
            body = self.rfile.read(int(self.headers["content-length"]))
            collected.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collected.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield collected
        server.shutdown()


def attributes(span: Span) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(one) for one in found.values] if kind == "array_value" else found

    return {pair.key: plain(pair.value) for pair in span.attributes}


def test_a_request_is_a_trace_of_its_callers(site: Path, collector: Collector) -> None:
    runtime = build(read_settings(site / "tutti.yaml"))
    app = create_app(runtime.ensembles, runtime.fuser, ServerSettings(otlp_endpoint=collector.url))
    with TestClient(app) as client:
        body = {
            **{"model": "both", "max_tokens": 12, "n": 2, "ignore_eos": True},
            "messages": [{"role": "user", "content": "a secret"}],
        }
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        usage = client.post(CHAT_PATH, json=body, headers=headers).json()["usage"]
        client.get("/v1/models")
    assert set(collector.paths) == {"/v1/traces"}
    spans = collector.spans
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    [root] = [span for span in spans if span.name == "chat both"]
    assert root.parent_span_id.hex() == PARENT
    assert root.kind == Span.SPAN_KIND_SERVER
    told = attributes(root)
    assert told["gen_ai.request.model"] == "both"
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 24
    assert told["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert told["http.response.status_code"] == 200
    assert told["tutti.request_id"] == "mine"
    inside = [span for span in spans if span is not root]
    assert all(span.parent_span_id == root.span_id for span in inside)
    assert sorted(span.name for span in inside) == sorted(2 * ["queue", "prefill ada", "prefill ben", "decode"])
    for span in inside:
        begin, end = span.start_time_unix_nano, span.end_time_unix_nano
        assert root.start_time_unix_nano <= begin <= end <= root.end_time_unix_nano
    for span in inside:
        if span.name == "decode":
            found = attributes(span)
            assert (found["tutti.rounds"], found["tutti.tokens"]) == (12, 12)
            stages = sum(found[f"tutti.{stage}_seconds"] for stage in ("waiting", "fusion", "sampling"))
            assert 0 < stages < 2 * (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert "secret" not in str(collector.requests)


def test_the_environment_may_name_the_endpoint(
    collector: Collector, fuser: ScriptedFuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "choir")
    with TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings())) as client:
        assert client.post(CHAT_PATH, json={**CHAT, "stream": True}).is_success
    [span] = collector.spans
    assert span.name == "chat pair"
    resource = collector.requests[0].resource_spans[0].resource.attributes
    assert {pair.key: pair.value.string_value for pair in resource}["service.name"] == "choir"


def test_what_failed_is_marked(collector: Collector, fuser: ScriptedFuser) -> None:
    from fusion.core import End

    fuser.script = lambda submission: [End("", error=RuntimeError("a secret"))]
    options = ServerSettings(otlp_endpoint=collector.url)
    with TestClient(create_app({"pair": ensemble()}, fuser, options)) as client:
        assert client.post(CHAT_PATH, json=CHAT).status_code == 500
        assert client.post(CHAT_PATH, json={"model": "nobody"}).status_code == 400
    [span] = collector.spans
    assert span.status.code == 2
    assert attributes(span)["error.type"] == "RuntimeError"
    assert "secret" not in str(span)


def test_a_collector_that_is_down_disturbs_nobody(fuser: ScriptedFuser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    options = ServerSettings(otlp_endpoint="http://127.0.0.1:9")
    with TestClient(create_app({"pair": ensemble()}, fuser, options)) as client:
        assert client.post(CHAT_PATH, json=CHAT).is_success


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "pair", "input": "hello"}),
        ("/v1/messages", {"model": "pair", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_every_chat_api_is_traced_as_chat(
    path: str, body: dict[str, Any], collector: Collector, fuser: ScriptedFuser
) -> None:
    with TestClient(
        create_app({"pair": ensemble()}, fuser, ServerSettings(otlp_endpoint=collector.url))
    ) as client:
        assert client.post(path, json=body).is_success
    [span] = collector.spans
    assert (span.name, attributes(span)["http.route"]) == ("chat pair", path)
