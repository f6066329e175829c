"""Metrics of requests: tokens as they come, everything else when a request is over."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np

from server.http.errors import CLIENT_CLOSED_REQUEST, status_of
from server.http.paths import GENERATING_PATHS
from server.telemetry.metrics.catalogue import FINISH_REASONS, Catalogue
from server.telemetry.record import Record

# By the status that an error is answered with (server/http/errors.py).
ERROR_TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
}
DRAINING = "draining"  # a 503 by which a server that goes down sends requests elsewhere: not an error
OTHER = "other"


class ModelSeries:
    """The series of one served name, bound once."""

    def __init__(self, catalogue: Catalogue, model: str) -> None:
        self.first_token = catalogue.time_to_first_token.labels(model)
        self.inter_token = catalogue.inter_token_latency.labels(model)
        self.per_token = catalogue.time_per_output_token.labels(model)
        self.latency = catalogue.e2e_request_latency.labels(model)
        self.queue = catalogue.request_queue_time.labels(model)
        self.prefill = catalogue.request_prefill_time.labels(model)
        self.decode = catalogue.request_decode_time.labels(model)
        self.prompt_length = catalogue.request_prompt_tokens.labels(model)
        self.answer_length = catalogue.request_generation_tokens.labels(model)
        self.prompt = catalogue.prompt_tokens.labels(model)
        self.generated = catalogue.generation_tokens.labels(model)
        self.requests = {reason: catalogue.requests.labels(model, reason) for reason in FINISH_REASONS}
        self.tokens = catalogue.journal(self._count_tokens)

    def _count_tokens(self, pieces: list[tuple[int, float]]) -> None:
        """Account for pieces of answers: numbers of tokens, and seconds since the answer's last piece.

        Those are NaN for the first piece of an answer.
        """
        numbers, seconds = np.array([number for number, _ in pieces]), np.array([seconds for _, seconds in pieces])
        self.generated.inc(int(numbers.sum()))
        later = ~np.isnan(seconds)
        self.inter_token.observe_all(np.repeat(seconds[later] / numbers[later], numbers[later]))


class RequestMetrics:
    """Feeds the metrics of requests. Names that are not served have no series, whatever requests say."""

    def __init__(self, catalogue: Catalogue, models: Iterable[str]) -> None:
        self.series = {model: ModelSeries(catalogue, model) for model in models}
        self._http = catalogue.http_requests
        for path, status in product(GENERATING_PATHS, ("200", "500", "503")):
            self._http.labels(path, status)  # `rate` does not see what a series is born with
        self._broken = catalogue.broken_answers
        self._errors = {
            name: catalogue.request_errors.labels(name) for name in (*ERROR_TYPES.values(), DRAINING, OTHER)
        }

    def on_tokens(self, model: str, count: int, seconds: float, waited: float | None) -> None:
        """Count new tokens (see `server.telemetry.record.OnTokens`)."""
        series = self.series[model]
        series.tokens.add((count, seconds))
        if waited is not None:
            series.first_token.observe(waited)

    def ended(self, record: Record) -> None:
        """Count a finished request."""
        if record.status is not None:
            path = DRAINING if record.draining else record.path or OTHER
            self._http.labels(path, str(record.status)).inc()
            if record.draining:
                self._errors[DRAINING].inc()
            elif record.status >= 400 and record.status != CLIENT_CLOSED_REQUEST:
                self._errors[ERROR_TYPES.get(record.status, OTHER)].inc()
        if record.model is not None:
            self._generated(record, self.series[record.model])

    def _generated(self, record: Record, series: ModelSeries) -> None:
        # It failed in the middle of its stream.
        if record.error is not None and record.status is not None and record.status < 400:
            self._errors[ERROR_TYPES.get(status_of(record.error), OTHER)].inc()
            if status_of(record.error) >= 500:
                self._broken.inc()
        series.requests[record.outcome].inc()
        series.prompt.inc(record.prompt_tokens)
        series.prompt_length.observe(record.prompt_tokens)
        series.answer_length.observe(record.generated_tokens)
        if record.outcome in ("stop", "length"):
            series.latency.observe(record.ended - record.arrived)
        for sequence in record.sequences:
            if sequence.tokens > 1:
                series.per_token.observe((sequence.latest - sequence.first) / (sequence.tokens - 1))
            account = sequence.account
            if account is not None and account.started is not None:
                series.queue.observe(account.started - account.submitted)
                if sequence.tokens:
                    series.prefill.observe(sequence.first - account.started)
                    series.decode.observe(sequence.latest - sequence.first)
