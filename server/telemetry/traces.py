"""Traces of requests, sent over OTLP where an endpoint is configured.

A trace is made when its request is over, from the times that were noted anyway, so tracing costs decoding nothing:

    chat MODEL                 the request
      queue                    each sequence: waiting for room in the members
      prefill MEMBER           from its start until the member had answered the prompt
      decode                   first to last token; its rounds, and where their time went, as attributes

Attributes follow OpenTelemetry's conventions for generative AI, our own begin with `tutti.`. No text is traced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server import __version__
from server.telemetry.record import SHOWN_SEQUENCES

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from server.telemetry.record import Record, Recorded

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}


class Tracing:
    """Sends the traces of requests in the background. What cannot be delivered is dropped after a while.

    Args:
        endpoint: base URL of an OTLP collector over HTTP; None for what OpenTelemetry's own environment variables
            say (OTEL_EXPORTER_OTLP_ENDPOINT and others, which also set headers, timeouts and sampling).
    """

    def __init__(self, endpoint: str | None) -> None:
        resource = {SERVICE_VERSION: __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            resource[SERVICE_NAME] = "tutti"
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tutti", __version__)

    def ended(self, record: Record) -> None:
        """Trace a request that generated something."""
        if record.model is not None:
            trace(self._tracer, record)

    def stop(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def trace(tracer: Tracer, record: Record) -> None:
    """Make the spans of a request. It belongs to the trace that its `traceparent` header names, if it has one."""

    def wall(moment: float) -> int:
        return record.wall_time + int((moment - record.arrived) * 1e9)

    headers = {"traceparent": record.traceparent, "tracestate": record.tracestate}
    carrier = {name: value for name, value in headers.items() if value}
    parent = TraceContextTextMapPropagator().extract(carrier, context.Context())
    operation = OPERATIONS.get(record.path or "", "generate")
    root = tracer.start_span(
        f"{operation} {record.model}",
        parent,
        SpanKind.SERVER,
        {"gen_ai.operation.name": operation, **request_attributes(record)},
        start_time=wall(record.arrived),
    )
    if record.error is not None:
        root.set_status(Status(StatusCode.ERROR, type(record.error).__name__))
    inside = set_span_in_context(root, parent)

    def span(name: str, begin: float, end: float, attributes: Mapping[str, AttributeValue]) -> None:
        child = tracer.start_span(name, inside, attributes=attributes, start_time=wall(begin))
        child.end(wall(end))

    for index, sequence in enumerate(record.sequences[:SHOWN_SEQUENCES]):
        account, choice = sequence.account, {"tutti.choice": index}
        if account is None or account.started is None:
            continue
        span("queue", account.submitted, account.started, choice)
        for member, answered in account.prompts.items():
            span(f"prefill {member}", account.started, answered, {**choice, "tutti.member": member})
        if sequence.tokens:
            span("decode", sequence.first, sequence.latest, {**choice, **rounds_attributes(sequence)})
    root.end(wall(record.ended))


def request_attributes(record: Record) -> dict[str, AttributeValue]:
    """Attributes of the span of a request."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.provider.name": "tutti",
        "gen_ai.request.model": record.model or "",
        "gen_ai.response.model": record.model or "",
        "gen_ai.request.choice.count": len(record.sequences),
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.generated_tokens,
        "gen_ai.response.finish_reasons": [s.finish or record.outcome for s in record.sequences],
        "http.request.method": record.method,
        "http.route": record.path or "",
        "tutti.request_id": record.id,
        "tutti.outcome": record.outcome,
    }
    if record.status is not None:
        attributes["http.response.status_code"] = record.status
    if record.first_token is not None:
        attributes["gen_ai.latency.time_to_first_token"] = record.first_token - record.arrived
    if record.error is not None:
        attributes["error.type"] = type(record.error).__name__
    return attributes


def rounds_attributes(sequence: Recorded) -> dict[str, AttributeValue]:
    """Attributes of the span of decoding: its rounds."""
    account = sequence.account
    assert account is not None
    return {
        "tutti.rounds": account.rounds,
        "tutti.tokens": sequence.tokens,
        "tutti.waiting_seconds": account.waiting,
        "tutti.fusion_seconds": account.fusion,
        "tutti.sampling_seconds": account.sampling,
    }
