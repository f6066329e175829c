"""The throughput dashboard: tokens served, failures, and the limits that are met."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.frame import dashboard_of
from deploy.grafana.panels import (
    COUNT,
    OPERATIONS,
    PER_SECOND,
    RATIO,
    TOKENS,
    TOKENS_PER_SECOND,
    Limits,
    Panel,
    Query,
    each,
    lines,
    number,
    rows,
)
from deploy.grafana.promql import MODEL, OF_MODEL, per, quantile, rate

API = 'path=~"/v1/.*"'
FAILED = f'{API}, status=~"5.."'


def dashboard() -> Dashboard:
    """Traffic, errors, saturation and members, in this order."""
    return dashboard_of(
        "throughput",
        "Tutti: Throughput and saturation",
        "How much is served, what fails, and what limits it.",
        _numbers(),
        {"Traffic": _traffic(), "Errors": _errors(), "Saturation": _saturation()},
    )


def _numbers() -> list[Panel]:
    return [
        number("Requests", "Generations that ended.", PER_SECOND, rate("requests_total", MODEL)),
        number("Generated", "Tokens of the pivots.", TOKENS_PER_SECOND, rate("generation_tokens_total", MODEL)),
        number("Read", "Tokens of prompts.", TOKENS_PER_SECOND, rate("prompt_tokens_total", MODEL)),
        number(
            "Failing",
            "Share of API requests answered with 5xx, or broken off amid their stream.",
            RATIO,
            per(
                f"(({rate('http_requests_total', FAILED)} or vector(0)) + {rate('broken_answers_total', '')})",
                rate("http_requests_total", API),
            ),
            limits=Limits(0.01, 0.05),
        ),
        number(
            "Line filled",
            "Waiting sequences out of those that may wait. A client alone is answered 429 at 80 %, all at 100 %.",
            RATIO,
            per(f"sum(tutti_sequences_waiting{{{MODEL}}})", "sum(tutti_waiting_limit)"),
            limits=Limits(0.4, 0.6),
        ),
        number(
            "Members down",
            "Models that do not answer.",
            COUNT,
            "sum(1 - tutti_member_up)",
            limits=Limits(1, 1),
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        lines(
            "Generated tokens",
            "By model, in tokens of its pivot.",
            TOKENS_PER_SECOND,
            each(rate, "generation_tokens_total", MODEL, "model"),
            stacked=True,
        ),
        lines(
            "Prompt tokens",
            "By model, in tokens of its pivot.",
            TOKENS_PER_SECOND,
            each(rate, "prompt_tokens_total", MODEL, "model"),
            stacked=True,
        ),
        lines(
            "Requests by how they ended",
            "stop: an end token or stop string; length: max_tokens; cancelled: the client went away.",
            PER_SECOND,
            each(rate, "requests_total", MODEL, "finish_reason"),
            stacked=True,
        ),
        lines("Length of prompts", "Tokens per request.", TOKENS, _lengths("request_prompt_tokens")),
        lines("Length of answers", "Tokens per request.", TOKENS, _lengths("request_generation_tokens")),
        lines(
            "Rounds",
            "Fused tokens of all sequences: what the members work for.",
            OPERATIONS,
            each(rate, "rounds_total", MODEL, "model"),
            stacked=True,
        ),
    ]


def _lengths(histogram: str) -> list[Query]:
    return [Query(quantile(level, histogram, MODEL), f"p{level * 100:.0f}") for level in (0.5, 0.95, 0.99)]


def _errors() -> list[Panel]:
    return [
        lines(
            "API requests by status",
            "4xx is the client's doing, 429 a full line, 5xx ours.",
            PER_SECOND,
            each(rate, "http_requests_total", API, "status"),
            stacked=True,
        ),
        lines(
            "Errors by type",
            "Counted too when an answer breaks off after its first token. draining: a server that goes down sent "
            "the request to another, and no alert minds.",
            PER_SECOND,
            each(rate, "request_errors_total", "", "type"),
            stacked=True,
        ),
        lines(
            "Sequences that lost a member",
            "lost: the member went down; failed: it did so for this sequence; outgrown: its cache was too small.",
            PER_SECOND,
            each(rate, "degraded_requests_total", MODEL, "model, reason"),
        ),
    ]


def _saturation() -> list[Panel]:
    return [
        lines(
            "Sequences",
            "A sequence runs when every member has room for its prompt and its longest answer.",
            COUNT,
            [
                Query(f"sum by (model) (tutti_sequences_running{{{MODEL}}})", "{{model}} running"),
                Query(f"sum by (model) (tutti_sequences_waiting{{{MODEL}}})", "{{model}} waiting"),
            ],
        ),
        lines(
            "KV cache set aside",
            "For running sequences, their answers included. The member that is full first decides who waits: give "
            "it more cache_tokens.",
            RATIO,
            [Query(f"max by (member) (tutti_member_kv_reserved_ratio {OF_MODEL})", "{{member}}")],
            top=1,
            limits=Limits(0.8, 0.95),
        ),
        lines(
            "KV cache in use",
            "Holds tokens. Far below what is set aside: requests ask for a larger max_tokens than they use.",
            RATIO,
            [Query(f"max by (member) (tutti_member_kv_usage_ratio {OF_MODEL})", "{{member}}")],
            top=1,
        ),
        lines(
            "Sequences open in members",
            "More than run in one model where several models share a member.",
            COUNT,
            [Query(f"sum by (member) (tutti_member_sequences {OF_MODEL})", "{{member}}")],
        ),
        lines(
            "Members that answer",
            "1 while a member answers, 0 while it is down.",
            COUNT,
            [Query(f"min by (member) (tutti_member_up {OF_MODEL})", "{{member}}")],
            top=1,
        ),
        rows(
            "Served",
            "Every model, its members and how it fuses them.",
            f"tutti_ensemble_info{{{MODEL}}}",
            ("model", "member", "pivot", "combine", "weighting"),
        ),
    ]
