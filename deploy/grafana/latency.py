"""The latency dashboard: time of requests, and of each part of them."""

from __future__ import annotations

from typing import NamedTuple

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.frame import dashboard_of
from deploy.grafana.panels import SECONDS, Limits, Panel, Query, heat, lines, number
from deploy.grafana.promql import MODEL, buckets, mean, quantile


class Part(NamedTuple):
    """A part of a request's way: a stat above, a row below."""

    title: str
    text: str
    histogram: str
    level: float = 0.95
    limits: Limits | None = None


QUEUE, PROMPT, DECODE = (f"request_{part}_time_seconds" for part in ("queue", "prefill", "decode"))
PARTS = (
    Part(
        "First token",
        "From a request's arrival to its first token: the line, the slowest member's prompt, one round.",
        "time_to_first_token_seconds",
        limits=Limits(1, 2.5),
    ),
    Part(
        "Per token",
        "Mean time between the tokens of an answer. A round takes as long as its slowest member.",
        "time_per_output_token_seconds",
        limits=Limits(0.1, 0.2),
    ),
    Part(
        "Between two tokens",
        "Every pause by itself: long prompts of others, or a member that stalls, show at the top.",
        "inter_token_latency_seconds",
        level=0.99,
        limits=Limits(0.2, 1),
    ),
    Part(
        "Whole request",
        "From arrival to the end of the answer; depends on how long answers are.",
        "e2e_request_latency_seconds",
    ),
    Part(
        "In line",
        "Until every member had room for the sequence. Where it grows, the members' caches are too small.",
        QUEUE,
        limits=Limits(0.5, 2.5),
    ),
    Part("Prompt", "From a sequence's start to its first token.", PROMPT),
)


def dashboard() -> Dashboard:
    """Percentiles of each part of a request's way, over all chosen models and by model."""
    return dashboard_of(
        "latency",
        "Tutti: Latency",
        "How long requests take, from the server's point of view.",
        [_number(part) for part in PARTS],
        {"A request's way": [_way()], **{part.title: _row(part) for part in PARTS}},
    )


def _number(part: Part) -> Panel:
    title = f"{part.title}, p{part.level * 100:.0f}"
    return number(title, part.text, SECONDS, quantile(part.level, part.histogram, MODEL), limits=part.limits)


def _way() -> Panel:
    return lines(
        "Where a request's time goes",
        "Mean seconds in line, from there to the first token, and from there to the last.",
        SECONDS,
        [
            Query(mean(QUEUE, MODEL), "in line"),
            Query(mean(PROMPT, MODEL), "prompt"),
            Query(mean(DECODE, MODEL), "decoding"),
        ],
        width=24,
        stacked=True,
    )


def _row(part: Part) -> list[Panel]:
    levels = [Query(quantile(q, part.histogram, MODEL), f"p{q * 100:.0f}") for q in (0.5, 0.9, 0.95, 0.99)]
    by_model = Query(quantile(part.level, part.histogram, MODEL, "model"), "{{model}}")
    title = f"{part.title}: p{part.level * 100:.0f} by model"
    return [
        lines(
            f"{part.title}: percentiles",
            part.text,
            SECONDS,
            [*levels, Query(mean(part.histogram, MODEL), "mean")],
            limits=part.limits,
        ),
        lines(title, part.text, SECONDS, [by_model], limits=part.limits),
        heat(
            f"{part.title}: how many",
            "How many fell into each range. Two bands mean two kinds of requests.",
            SECONDS,
            buckets(part.histogram, MODEL),
        ),
    ]
