"""Every metric of the server: name, meaning, labels, buckets.

Names follow vLLM's where the two mean the same, with our own prefix. Labels are bounded by the configuration:
`model` is a served name, `member` a model of the configuration; values from requests never become labels.
Buckets are the same for every model, so that quantiles over several can be taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from fusion.loop.observer import Leaving
from server.telemetry.metrics.histogram import Histogram
from server.telemetry.metrics.journal import Entry, Journal
from server.telemetry.record import Outcome

# vLLM's, whose first bounds are of use only to large models, with smaller ones before them.
TO_FIRST_TOKEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0),
    *(20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0),
)
TOKENS = (*(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5)), 1e6)
WEIGHT = (0.0, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
MASS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0, 1.1, 1.5, 2.0)
NATS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0)
DIVERGENCE = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0, 1.5, 2.5)
MEMBERS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)

FINISH_REASONS = get_args(Outcome)
PHASES = ("prefill", "decode")
STAGES = ("waiting", "fusion", "sampling", "synchronisation")
DROP_REASONS = ("filter", "spelling")
DEGRADED_REASONS = get_args(Leaving)

ENTRIES = 1024  # that a journal holds


class Catalogue:
    """All metrics, in a registry of their own: every application has one."""

    def __init__(self) -> None:
        # A second series for each counter, which no query of ours asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._journals: list[Journal[Any]] = []
        registry = self.registry

        def histogram(
            name: str, documentation: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histogram:
            return Histogram(f"tutti_{name}", documentation, labels, buckets=buckets, registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"tutti_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"tutti_{name}", documentation, labels, registry=registry)

        model, member, both = ("model",), ("member",), ("model", "member")

        # -- requests
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", model, TO_FIRST_TOKEN
        )
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds",
            "Mean time between the tokens of one answer, once per answer of two tokens or more.",
            model,
            PER_TOKEN,
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Between one token of an answer and the next.", model, PER_TOKEN
        )
        self.e2e_request_latency = histogram(
            "e2e_request_latency_seconds",
            "From a request's arrival to the end of its answer, of those that ended well.",
            model,
            REQUEST,
        )
        self.request_queue_time = histogram(
            "request_queue_time_seconds",
            "How long a sequence waited for room in the members before it started.",
            model,
            REQUEST,
        )
        self.request_prefill_time = histogram(
            "request_prefill_time_seconds", "From a sequence's start to its first token.", model, REQUEST
        )
        self.request_decode_time = histogram(
            "request_decode_time_seconds", "From a sequence's first token to its last.", model, REQUEST
        )
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Tokens of a request's prompts, in the pivot's tokens.", model, TOKENS
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens of a request's answers, in the pivot's tokens.", model, TOKENS
        )
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens of all requests, in the pivot's tokens.", *model
        )
        self.generation_tokens = counter(
            "generation_tokens", "Generated tokens, in the pivot's tokens, counted as they come.", *model
        )
        self.requests = counter(
            "requests",
            "Generations that ended: stop, length, error, or cancelled because the client went away. Of several "
            "answers to one request the worst counts, in the order error, cancelled, length, stop.",
            "model",
            "finish_reason",
        )
        self.request_errors = counter(
            "request_errors",
            "Requests answered with an error, before or during the answer, by its type; `draining` are those that "
            "a server that goes down sends to another.",
            "type",
        )
        self.broken_answers = counter(
            "broken_answers",
            "Answers that the server broke off after their status of 200 was sent, as an error amid a stream.",
        )
        self.http_requests = counter(
            "http_requests",
            "HTTP requests by route and status; paths without a route are `other`, requests that a server that "
            "goes down sends to another are `draining`.",
            "path",
            "status",
        )

        # -- load
        self.sequences_running = gauge("sequences_running", "Sequences that hold a place in the members.", *model)
        self.sequences_waiting = gauge("sequences_waiting", "Sequences that wait for a place.", *model)
        self.waiting_limit = gauge("waiting_limit", "Sequences that may wait; more are refused with 429.")
        self.member_up = gauge("member_up", "1 while the member answers, 0 while it is down.", *member)
        self.member_sequences = gauge("member_sequences", "Sequences open in the member.", *member)
        self.member_kv_usage = gauge(
            "member_kv_usage_ratio", "Share of the member's KV cache that holds tokens.", *member
        )
        self.member_kv_reserved = gauge(
            "member_kv_reserved_ratio",
            "Share of the member's KV cache that is set aside for running sequences, their answers included: what "
            "decides whether another may start.",
            *member,
        )

        # -- members
        self.member_step = histogram(
            "member_step_seconds", "One step of the member's engine, as the member measured it.", member, STEP
        )
        self.member_answer = histogram(
            "member_answer_seconds",
            "From handing work to the member until its answer is there: its step, queueing and transport.",
            ("member", "phase"),
            STEP,
        )
        self.member_restarts = counter(
            "member_restarts", "Times a member that went down was started again.", *member
        )

        # -- rounds
        self.rounds = counter("rounds", "Rounds: fused tokens of all sequences.", *model)
        self.round_stage = histogram(
            "round_stage_seconds",
            "Where a round of a sequence after its first goes: waiting for its members, fusion with the others of "
            "its batch, sampling, and synchronisation until the first member has its next work.",
            ("model", "stage"),
            STEP,
        )
        self.straggler_wait = histogram(
            "straggler_wait_seconds",
            "How much later the last member of a round answered than the last but one; the first round of a "
            "sequence, which waits for its prompt, aside.",
            model,
            STEP,
        )
        self.straggler_rounds = counter(
            "straggler_rounds", "Rounds of sequences after their first in which this member was the last.", *both
        )
        self.member_weight = histogram(
            "member_weight_ratio", "Weight of a member in a round, 0 where it was left out.", both, WEIGHT
        )
        self.member_prompt_nats = histogram(
            "member_prompt_nats", "A prompt's loss under a member, in nats per token of the pivot.", both, NATS
        )
        self.filter_drops = counter(
            "filter_drops",
            "Rounds that a member was left out of: by EVA's filter, or because it cannot spell the text yet.",
            "model",
            "member",
            "reason",
        )
        self.surviving_members = histogram(
            "surviving_members", "Members whose distributions were fused in a round.", model, MEMBERS
        )
        self.disagreement_rounds = counter(
            "disagreement_rounds", "Rounds in which the members' best tokens were not all the same.", *model
        )
        self.divergence = histogram(
            "divergence_nats",
            "Jensen-Shannon divergence of the members' distributions in a round, all counted equally: 0 where "
            "they are the same, at most the logarithm of their number. Measured in one round of sixteen.",
            model,
            DIVERGENCE,
        )
        self.fused_differs = counter(
            "fused_differs_rounds", "Rounds whose likeliest fused token was not this member's own.", *both
        )
        self.mapped_mass = histogram(
            "mapped_mass_ratio",
            "Probability of a member that reached the pivot's vocabulary in a round.",
            both,
            MASS,
        )
        self.rollbacks = counter(
            "rollbacks", "Times a member took tokens back after re-tokenising the text.", *both
        )
        self.rollback_tokens = counter("rollback_tokens", "Tokens that members took back.", *both)
        self.draft_tokens = counter("draft_tokens", "Drafted tokens that the members scored.", *model)
        self.draft_accepted = counter("draft_accepted_tokens", "Drafted tokens that were what was drawn.", *model)
        self.draft_lost = counter(
            "draft_boundary_lost_tokens",
            "Proposed tokens that were not scored, because a member spells the text before them otherwise.",
            *model,
        )
        self.policy_rounds = counter(
            "policy_rounds",
            "Rounds by the policy that decided who was asked; `always` is everyone for one token, which drafts "
            "come back to where they do not pay, and gates where the member that leads is not sure.",
            "model",
            "policy",
        )
        self.pruned_members = counter(
            "pruned_members",
            "Sequences that closed a member after the prompt because its weight was too small.",
            *both,
        )
        self.leads = counter(
            "led_requests",
            "Sequences in which this member alone weighed the most, where the prompt decided on the weights.",
            *both,
        )
        self.degraded_requests = counter(
            "degraded_requests",
            "Sequences that went on without a member: it went down (lost), could not go on with this sequence "
            "(failed), or the text outgrew its cache.",
            "model",
            "reason",
        )

        # -- constant
        self.ensemble_info = gauge(
            "ensemble_info",
            "1 for every member of every served model; joins what is labelled by model with what is by member.",
            *("model", "member", "pivot", "combine", "weighting"),
        )
        self.build_info = gauge("build_info", "1, labelled with the server's version.", "version")

    def journal(self, count: Callable[[list[Entry]], None], room: int = ENTRIES) -> Journal[Entry]:
        """A journal whose entries `count` turns into metrics: when it is full, and at every scrape."""
        journal = Journal(count, room)
        self._journals.append(journal)
        return journal

    def settle(self) -> None:
        """Count everything that has happened so far."""
        for journal in self._journals:
            journal.settle()
