"""The ensemble dashboard: time of a round, the last member, weights, and the mass that maps lose."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.frame import choice, dashboard_of
from deploy.grafana.panels import (
    COUNT,
    NATS,
    OPERATIONS,
    RATIO,
    SECONDS,
    TOKENS_PER_SECOND,
    Limits,
    Panel,
    Query,
    each,
    heat,
    lines,
    number,
)
from deploy.grafana.promql import BOTH, MEMBER, MODEL, buckets, mean, per, quantile, rate

ROUNDS = rate("rounds_total", MODEL)
ROUNDS_BY_MODEL = rate("rounds_total", MODEL, "model")
VOICE = "{{model}} {{member}}"  # a member as it speaks in one of the models it works for


def dashboard() -> Dashboard:
    """For each chosen ensemble; single models have rounds too, but nothing to disagree about."""
    return dashboard_of(
        "ensemble",
        "Tutti: Ensemble",
        "Where a round goes, who is late, and who is listened to.",
        _numbers(),
        {
            "Time": _time(),
            "Who is listened to": _voices(),
            "Drafts and gates": _policies(),
            "Vocabularies and losses": _losses(),
        },
        choice("member", "Member", f"tutti_ensemble_info{{{MODEL}}}"),
    )


def _of_rounds(counter: str, labels: str = "model, member") -> str:
    """The share of a model's rounds that a counter of its members stands for."""
    return per(rate(counter, BOTH, labels), ROUNDS_BY_MODEL, on="model")


def _mean_and_p95(histogram: str, selector: str, by: str) -> list[Query]:
    return [
        Query(mean(histogram, selector, by), f"{{{{{by}}}}} mean"),
        Query(quantile(0.95, histogram, selector, by), f"{{{{{by}}}}} p95"),
    ]


def _numbers() -> list[Panel]:
    waiting = rate("round_stage_seconds_sum", f'{MODEL}, stage="waiting"')
    later = rate("round_stage_seconds_count", f'{MODEL}, stage="waiting"')  # rounds after the first, each once
    return [
        number("Rounds", "Fused tokens.", OPERATIONS, ROUNDS),
        number(
            "One round, mean",
            "All stages of the rounds after an answer's first, waiting for the members included.",
            SECONDS,
            per(rate("round_stage_seconds_sum", MODEL), later),
        ),
        number(
            "Members that count, mean",
            "Members whose distributions were fused in a round.",
            COUNT,
            mean("surviving_members", MODEL),
        ),
        number(
            "Disagreement",
            "Rounds in which the members' best tokens were not all the same.",
            RATIO,
            per(rate("disagreement_rounds_total", MODEL), ROUNDS),
        ),
        number(
            "Lost to the last",
            "Share of the waiting in which all members but one had answered.",
            RATIO,
            per(rate("straggler_wait_seconds_sum", MODEL), waiting),
            limits=Limits(0.3, 0.5),
        ),
        number(
            "Taken back",
            "Tokens that members took back, per round.",
            COUNT,
            per(rate("rollback_tokens_total", BOTH), ROUNDS),
        ),
    ]


def _time() -> list[Panel]:
    return [
        lines(
            "Where a round goes",
            "Mean seconds of a round after the first. Waiting is the members' passes, the rest the fusion's own.",
            SECONDS,
            each(mean, "round_stage_seconds", MODEL, "stage"),
            stacked=True,
        ),
        lines(
            "A member's answer, mean",
            "From handing work to a member until its answer: its step, and queueing and transport around it.",
            SECONDS,
            each(mean, "member_answer_seconds", MEMBER, "member, phase"),
        ),
        lines(
            "A member's step, mean and p95",
            "One step of its engine, as the member measured it. Answers take longer where it is busy.",
            SECONDS,
            _mean_and_p95("member_step_seconds", MEMBER, "member"),
        ),
        lines(
            "Who is last",
            "Share of the rounds after the first that each member ended. Near 100 %: move it, or quantise it.",
            RATIO,
            [
                Query(
                    per(
                        rate("straggler_rounds_total", BOTH, "model, member"),
                        rate("straggler_rounds_total", MODEL, "model"),
                        on="model",
                    ),
                    VOICE,
                )
            ],
            top=1,
        ),
        lines(
            "Waiting for the last",
            "How much later the last member of a round answered than the last but one.",
            SECONDS,
            _mean_and_p95("straggler_wait_seconds", MODEL, "model"),
        ),
        heat(
            "Members' answers while decoding",
            "All members together: as many bands as there are speeds.",
            SECONDS,
            buckets("member_answer_seconds", f'{MEMBER}, phase="decode"'),
        ),
    ]


def _voices() -> list[Panel]:
    return [
        lines(
            "Weights",
            "Mean weight of each member in a round, 0 where it was left out.",
            RATIO,
            each(mean, "member_weight_ratio", BOTH, "model, member"),
            top=1,
        ),
        lines(
            "Own choice not taken",
            "Share of rounds whose likeliest fused token was not this member's own.",
            RATIO,
            [Query(_of_rounds("fused_differs_rounds_total"), VOICE)],
            top=1,
        ),
        lines(
            "Prompts under each member",
            "Mean loss in nats per token of the pivot, which PackLLM's weights come from. Lower is better.",
            NATS,
            each(mean, "member_prompt_nats", BOTH, "model, member"),
        ),
        lines(
            "Left out",
            "Share of rounds that a member was left out of, by EVA's filter or as it cannot spell the text yet.",
            RATIO,
            [Query(_of_rounds("filter_drops_total", "model, member, reason"), f"{VOICE} {{{{reason}}}}")],
            top=1,
        ),
        lines(
            "Disagreement",
            "Share of rounds in which the members' best tokens were not all the same.",
            RATIO,
            [Query(per(rate("disagreement_rounds_total", MODEL, "model"), ROUNDS_BY_MODEL), "{{model}}")],
            top=1,
        ),
        lines(
            "Divergence",
            "Jensen-Shannon divergence of the members' distributions: how much fusing can matter.",
            NATS,
            [
                Query(quantile(0.5, "divergence_nats", MODEL, "model"), "{{model}} p50"),
                Query(quantile(0.95, "divergence_nats", MODEL, "model"), "{{model}} p95"),
            ],
        ),
    ]


def _policies() -> list[Panel]:
    drafted = rate("draft_tokens_total", MODEL, "model")
    passes = rate("member_answer_seconds_count", f'{MEMBER}, phase="decode"', "member")
    return [
        lines(
            "Rounds by policy",
            "Share of rounds; always is everyone for one token, which drafts come back to where they do not pay.",
            RATIO,
            [
                Query(
                    per(rate("policy_rounds_total", MODEL, "model, policy"), ROUNDS_BY_MODEL, on="model"),
                    "{{model}} {{policy}}",
                )
            ],
            top=1,
        ),
        lines(
            "Drafts that hold",
            "Share of drafted tokens that were what was drawn.",
            RATIO,
            [
                Query(
                    per(rate("draft_accepted_tokens_total", MODEL, "model"), f"clamp_min({drafted}, 1e-9)"),
                    "{{model}}",
                )
            ],
            top=1,
        ),
        lines(
            "Drafted tokens",
            "Tokens that members scored ahead of their choice, those that were right, and those lost before that "
            "because a member spells the text otherwise.",
            TOKENS_PER_SECOND,
            [
                Query(drafted, "{{model}} drafted"),
                Query(rate("draft_accepted_tokens_total", MODEL, "model"), "{{model}} accepted"),
                Query(rate("draft_boundary_lost_tokens_total", MODEL, "model"), "{{model}} lost at boundaries"),
            ],
        ),
        lines(
            "Passes of a member per token",
            "Its answers over the tokens of all ensembles chosen: 1 without drafts and gates.",
            COUNT,
            [Query(per(passes, f"scalar({ROUNDS})"), "{{member}}")],
        ),
    ]


def _losses() -> list[Panel]:
    taken_back = rate("rollback_tokens_total", BOTH, "model, member")
    led = rate("led_requests_total", MODEL, "model")
    return [
        lines(
            "Mass that reaches the pivot",
            "Mean probability that a member's map carries over. Mass that is lost lowers its weight.",
            RATIO,
            each(mean, "mapped_mass_ratio", BOTH, "model, member"),
        ),
        lines(
            "Rounds with tokens taken back",
            "Share of rounds after which a member's last tokens changed, because the text was re-tokenised.",
            RATIO,
            [Query(_of_rounds("rollbacks_total"), VOICE)],
        ),
        lines(
            "Tokens taken back",
            "Each time that a member took any back.",
            COUNT,
            [Query(per(taken_back, rate("rollbacks_total", BOTH, "model, member")), VOICE)],
        ),
        lines(
            "Members that count",
            "Mean number of members whose distributions were fused in a round.",
            COUNT,
            each(mean, "surviving_members", MODEL, "model"),
        ),
        lines(
            "Members closed after the prompt",
            "Sequences per second that went on without a member whose weight for their prompt was too small.",
            OPERATIONS,
            each(rate, "pruned_members_total", BOTH, "model, member"),
        ),
        lines(
            "Requests that a member leads",
            "Share of the sequences whose weights their prompts decided on in which a member weighed the most.",
            RATIO,
            [Query(per(rate("led_requests_total", BOTH, "model, member"), led, on="model"), VOICE)],
        ),
        lines(
            "Members started again",
            "Restarts in the last hour.",
            COUNT,
            [Query(f"sum by (member) (increase(tutti_member_restarts_total{{{MEMBER}}}[1h]))", "{{member}}")],
        ),
    ]
