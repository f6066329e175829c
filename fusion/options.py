"""Options of fusion, weighting, sampling and engines: each declared once, with default, bounds and meaning.

Bounds are metadata of the types (`annotated_types`) and are not checked here: what reads options from
outside derives its fields from these classes and checks them there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Interval

Combine = Literal["mixture", "product", "arithmetic"]
Unmapped = Literal["pivot", "drop"]
Measure = Literal["top1", "packllm-sim", "packllm-opt", "learned"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
DISTRIBUTIONAL: frozenset[Measure] = frozenset({"packllm-opt"})
"""Those that need the members' distributions where all their tokens begin; the others need losses alone."""
Method = Literal["given", Measure]
Gate = Literal["confident", "draw"]
Place = Literal["user", "system"]
Scale = Annotated[float, Interval(ge=0, le=100)]
Share = Annotated[float, Interval(ge=0, le=1)]
Offset = Annotated[float, Interval(ge=-100, le=100)]


@dataclass(frozen=True, slots=True)
class Weighting:
    """The source of the members' weights: given, measured on the prompt (PackLLM), or learned from questions.

    The defaults are the paper's, except for `positions` and `coinciding`, which it does not limit.

    Attributes:
        method: `given` takes `FusionParams.weights`. `top1`: the member of the lowest perplexity alone.
            `packllm-sim`: softmax(-log PPL / temperature). `packllm-opt`: the weights with which the fusion itself
            predicts the prompt best. `learned`: what a model fitted on questions says of the prompt.
        temperature: of packllm-sim.
        grid: values of packllm-opt's line search, 0 and 1 included.
        prune: members that weigh this or less are closed once the prompt is read.
        normalize: losses are per token of the pivot, so that tokenizers compare; else per token of the member's.
        positions: the most of the pivot's tokens that are scored for a request.
        spread: where those lie in what there is to score: `evenly`, or the `last` ones.
        history: `all` messages count, or only the `last` one.
        coinciding: positions that packllm-opt needs where all members' tokens begin; with fewer it is packllm-sim.
        offsets: by member, its usual loss on prompts in nats per token of the pivot, which is subtracted from its
            loss on this one, so that a tokenizer or a habit of long prompts is no merit; members not named have 0.
        file: of `learned`, as `tutti calibrate --learn-weights` writes it; of the configuration alone.
    """

    method: Method = "given"
    temperature: Annotated[float, Gt(0)] = 1.0
    grid: Annotated[int, Interval(ge=2, le=1001)] = 21
    prune: Share = 0.0
    normalize: bool = True
    positions: Annotated[int, Interval(ge=2, le=4096)] = 24
    spread: Literal["evenly", "last"] = "evenly"
    history: Literal["all", "last"] = "all"
    coinciding: Annotated[int, Ge(1)] = 8
    offsets: dict[str, Offset] | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """The tokens that may win in a sum of log-probabilities, by the pivot's own distribution: one of four.

    Attributes:
        plausibility: those with at least this share of the best one's probability (0: all).
        nucleus: the fewest best ones that hold this probability (1: all).
        top_k: this many best ones.
        off: no mask, which leaves the best ones that members hand over; in the file and in requests `mask: false`.
    """

    plausibility: Share | None = None
    nucleus: Share | None = None
    top_k: Annotated[int, Ge(1)] | None = None
    off: bool = False


@dataclass(frozen=True, slots=True)
class Contrast:
    """Contrastive decoding (2309.09117): (1 + beta) log p - beta log p of the amateur.

    Attributes:
        amateur: a member other than the pivot, weaker than the rest.
        alpha: of its mask, the pivot's plausibility; `mask` stands above it.
        beta: how much the amateur counts.
    """

    amateur: str
    alpha: Share = 0.1
    beta: Scale = 0.5


@dataclass(frozen=True, slots=True)
class Proxy:
    """Proxy tuning (2401.08565) and DExperts (2105.03023): log p + scale * (log p of tuned - log p of untuned).

    Attributes:
        tuned: a member other than the pivot; DExperts' expert.
        untuned: another one; DExperts' anti-expert.
        scale: 1 for proxy tuning, DExperts' alpha otherwise.
    """

    tuned: str
    untuned: str
    scale: Scale = 1.0


@dataclass(frozen=True, slots=True)
class Guidance:
    """Guidance by a second prompt: scale * log p + (1 - scale) * log p under the other prompt, for every member.

    Attributes:
        scale: 1 is no guidance, below 1 mixes the second prompt in.
        negative: classifier-free guidance (2306.17806): the second prompt, as messages in the place of the
            conversation, or as a text in the place of its system message (in a text completion, of the prompt).
        without_context: context-aware decoding (2305.14739): the second prompt is the first without the context.
    """

    scale: Scale = 1.5
    negative: str | tuple[dict[str, Any], ...] | None = None
    without_context: bool = False


@dataclass(frozen=True, slots=True)
class ContextView:
    """A document that the members read with the prompt, as one of several views of it (REPLUG, 2301.12652).

    Attributes:
        context: its text.
        weight: its share in the fusion; equal where none has one.
    """

    context: str
    weight: Annotated[float, Ge(0)] | None = None


@dataclass(frozen=True, slots=True)
class FusionParams:
    """Options of fusion; an ensemble has defaults, a request may override them.

    Attributes:
        members: names of those that take part, pivot included; None for all.
        weights: one per member by name, summing to 1; None for equal weights. With `arithmetic` they are taken as
            given, below zero and whatever their sum, which acts as a temperature.
        weighting: whether these are taken, or measured on the prompt.
        combine: `mixture` (weighted mean of probabilities, EVA), `product` (of log-probabilities, PackLLM) or
            `arithmetic` (a weighted sum of log-probabilities under `mask`).
        filter_top: EVA's faithful-token filter: leave a member out of a round when its best token is in none
            of the others' best `filter_top`; None switches the filter off.
        renormalize: scale what each member's map carries over to a sum of 1. The authors do not, so a member
            whose tokens map badly counts for less.
        unmapped: what becomes of the probability that a member loses on the way into the pivot's vocabulary:
            `drop` loses it, as the papers' programs do; `pivot` distributes it as the pivot does, so that no token
            is impossible, which is what ensembles of a configuration do. With `renormalize` nothing is left of it.
        guard: keep the pivot's own best token where the fused best is the same text cut differently.
        confidence: in each round a member's weight is multiplied by exp(-confidence * entropy of its distribution
            in nats), so that those count more that are sure; 0 leaves the weights as they are.
        report: collect a `RoundReport` per round.
        draft: who proposes tokens that the members then check together, which changes no answer: `ngram` (what
            followed the same tokens before), a member's name, or `auto` (the member with which a token should take
            the shortest time, by how often it was followed and by what a pass of it takes).
        gate: not all members run for every token, which does change answers. `confident`: the member
            that the ensemble followed most often in the sequence leads, and the others are asked only where its
            best token is less probable than `threshold`, or not by `margin` more probable than its second. `draw`:
            one member is drawn by weight and runs alone (exact for a mixture at temperature 1 with `renormalize`).
        threshold: of the gate, a probability.
        margin: of the gate, a difference of probabilities; 0 leaves it to the threshold.
        mask: the tokens that may win in a sum of log-probabilities; None for the method's own, a plausibility of
            0.1.
        contrast, proxy, guidance: sums of log-probabilities by name; at most one.
        views: documents, each read with the prompt by every member as a view of its own; for requests alone.
        context_place: where a view's context stands: before the text of the last `user` message, or at the
            front of the `system` message.
    """

    members: tuple[str, ...] | None = None
    weights: dict[str, float] | None = None
    weighting: Weighting = field(default_factory=Weighting)
    combine: Combine = "mixture"
    filter_top: Annotated[int, Ge(1)] | None = None
    renormalize: bool = False
    unmapped: Unmapped = "drop"
    guard: bool = False
    confidence: Scale = 0.0
    report: bool = False
    draft: str | None = None
    gate: Gate | None = None
    threshold: Share = 0.9
    margin: Share = 0.0
    mask: Mask | None = None
    contrast: Contrast | None = None
    proxy: Proxy | None = None
    guidance: Guidance | None = None
    views: tuple[ContextView, ...] | None = None
    context_place: Place = "user"

    @property
    def sums(self) -> bool:
        """Return whether log-probabilities are added up with weights of any sign."""
        named = (self.contrast, self.proxy, self.guidance)
        return self.combine == "arithmetic" or any(one is not None for one in named)


AUTO = "auto"
"""In the place of a member's name, for a pivot or a drafter: which one is decided while it runs."""
DRAFTERS = ("ngram", AUTO)
"""What `draft` may be besides a member's name."""


def needed_to_draw(fusion: FusionParams) -> list[str]:
    """What `gate: draw` takes that these options lack: only a plain mixture is its members' draws by weight."""
    wrong = [
        ("combine: mixture", fusion.combine != "mixture"),
        ("renormalize: true", not fusion.renormalize),
        ("no filter_top", fusion.filter_top is not None),
        ("no guard", fusion.guard),
        ("no confidence", fusion.confidence != 0),
        ("no contrast, proxy or guidance", any((fusion.contrast, fusion.proxy, fusion.guidance))),
    ]
    return [what for what, missing in wrong if missing]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Options of sampling: drawing a token from the fused distribution, and ending a sequence.

    The bounds are OpenAI's where its API has the option, and vLLM's otherwise.

    Attributes:
        max_tokens: the longest answer.
        min_tokens: no end token and no stop string ends it before.
        temperature: 0 is greedy.
        top_p: draw from the fewest best tokens that hold this probability; 1 for all.
        top_k: draw from this many best tokens; 0 for all.
        min_p: leave out tokens below this share of the best one's probability.
        presence_penalty: subtracted from the logarithm of every token that the answer holds.
        frequency_penalty: the same, as often as the answer holds it.
        repetition_penalty: divides, and for negative logarithms multiplies, those of prompt and answer.
        logit_bias: added to the logarithms of these ids of the pivot.
        seed: of the draws, modulo 2**64; None for a different one each time.
        stop: strings that end the answer, in whatever tokens they come.
        stop_token_ids: ids of the pivot that end it.
        include_stop: keep the stop string in the text.
        ignore_eos: go on after an end token.
        logprobs: alternatives to report per token; None for no log-probabilities at all.
        prompt_logprobs: the same for the tokens of the prompt, which takes an ensemble with a fixed pivot.
    """

    max_tokens: Annotated[int, Ge(1)]
    min_tokens: Annotated[int, Ge(0)] = 0
    temperature: Annotated[float, Interval(ge=0, le=2)] = 1.0
    top_p: Share = 1.0
    top_k: Annotated[int, Interval(ge=-1, lt=2**31)] = 0
    min_p: Share = 0.0
    presence_penalty: Annotated[float, Interval(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Interval(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Interval(ge=0.01, le=10)] = 1.0
    logit_bias: dict[int, Offset] = field(default_factory=dict)
    seed: Annotated[int, Interval(ge=-(2**63), lt=2**63)] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: Annotated[int, Ge(0)] | None = None
    prompt_logprobs: Annotated[int, Ge(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Sizes that every engine has; its defaults are also those of the engines' own parameters.

    Attributes:
        cache_tokens: tokens of KV cache over all sequences.
        max_sequences: sequences that can be open at a time.
        max_context: tokens per sequence; None for what the model supports.
        prefill_chunk: prompt tokens per step, which bounds how long a prefill holds up decoding. Models that
            cannot go on from a state with many tokens (Mamba, Jamba) take a pass per token beyond it: raise it
            for them.
        candidates: next tokens handed to the fuser per round, the k of its top k.
    """

    cache_tokens: Annotated[int, Gt(0)] = 16384
    max_sequences: Annotated[int, Gt(0)] = 32
    max_context: Annotated[int, Gt(0)] | None = None
    prefill_chunk: Annotated[int, Gt(0)] = 512
    candidates: Annotated[int, Gt(0)] = 320
