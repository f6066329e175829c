"""What may be chosen about the members' weights, and what is told of those that were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Measure = Literal["top1", "packllm-sim", "packllm-opt"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Method = Literal["given", Measure]


@dataclass(frozen=True, slots=True)
class Weighting:
    """Where the members' weights come from: given, or measured on the prompt (PackLLM).

    The defaults are the paper's, except for `positions` and `coinciding`, which it does not limit.

    Attributes:
        method: `given` takes `FusionParams.weights`. `top1`: the member of the lowest perplexity alone.
            `packllm-sim`: softmax(-log PPL / temperature). `packllm-opt`: what makes the fusion itself predict the
            prompt best.
        temperature: of packllm-sim.
        grid: values of packllm-opt's line search, 0 and 1 included.
        prune: members that weigh this or less are closed once the prompt is read.
        normalise: losses are per token of the pivot, so that tokenizers compare; else per token of the member's.
        positions: the most of the pivot's tokens that are scored for a request.
        spread: where those lie in what there is to score: `evenly`, or the `last` ones.
        history: `all` messages count, or only the `last` one.
        coinciding: packllm-opt needs so many positions where all members' tokens begin; below it is packllm-sim.
    """

    method: Method = "given"
    temperature: float = 1.0
    grid: int = 21
    prune: float = 0.0
    normalise: bool = True
    positions: int = 24
    spread: Literal["evenly", "last"] = "evenly"
    history: Literal["all", "last"] = "all"
    coinciding: int = 8


@dataclass(frozen=True, slots=True)
class WeightingReport:
    """How the weights of a sequence came about; by member where not said otherwise.

    Attributes:
        method: what was used, which is not what was asked for where `notes` say so.
        perplexity: of the text that all members share; empty where there was nothing to measure.
        weights: after pruning, summing to 1.
        pruned: who was closed.
        tokens: of the pivot in the text that counted.
        scored: positions that were scored for this request.
        kept: tokens of the pivot whose scores were known from an earlier request.
        coinciding: positions among those that counted at which all members' tokens begin.
        notes: sentences about what could not be done.
    """

    method: Literal["uniform", "fixed", Measure]
    perplexity: dict[str, float]
    weights: dict[str, float]
    pruned: tuple[str, ...]
    tokens: int
    scored: dict[str, int]
    kept: int
    coinciding: int
    notes: tuple[str, ...]
