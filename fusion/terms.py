"""Terms: the weights and the mask of a sum of log-probabilities, from the options that name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusion.options import FusionParams, Mask

LARGEST = 100  # weight, as of a scale: what is summed stays far from infinity
PLAUSIBILITY = 0.1  # the mask where nothing else is said
NEGATIVE = "/negative"
"""After a member's name: its view of the other prompt of a guidance."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A sum over members: `weights` by name, none of them 0, under the pivot's `mask`; None for no mask."""

    weights: Mapping[str, float]
    mask: Mask | None


def terms_of(fusion: FusionParams, members: Sequence[str]) -> Terms | None:
    """The sum that these options ask for over `members`, the views of a guidance included; None for no sum.

    Weights that are given scale the members on the positive side of a named sum.
    """
    if not fusion.sums:
        return None
    given = fusion.weights
    shares = _led_by(fusion, members)
    if fusion.guidance is not None:
        scale = fusion.guidance.scale
        weights = {name: scale * share for name, share in shares.items()}
        weights |= {name + NEGATIVE: (1 - scale) * share for name, share in shares.items()}
    elif fusion.contrast is not None:
        beta, amateur = fusion.contrast.beta, fusion.contrast.amateur
        weights = {name: (1 + beta) * share for name, share in shares.items()} | {amateur: -beta}
    elif fusion.proxy is not None:
        proxy = fusion.proxy
        weights = {**shares, proxy.tuned: proxy.scale, proxy.untuned: -proxy.scale}
    else:
        weights = dict(given) if given is not None else dict.fromkeys(members, 1 / len(members))
    return Terms({name: weights[name] for name in members if weights.get(name, 0.0) != 0}, _mask(fusion))


def _led_by(fusion: FusionParams, members: Sequence[str]) -> dict[str, float]:
    """The members that share the pivot's part of a named sum, and their shares, which sum to 1."""
    others: set[str] = set()
    if fusion.contrast is not None:
        others = {fusion.contrast.amateur}
    elif fusion.proxy is not None:
        others = {fusion.proxy.tuned, fusion.proxy.untuned}
    return _shares(
        [name for name in members if name not in others and not name.endswith(NEGATIVE)], fusion.weights
    )


def _mask(fusion: FusionParams) -> Mask | None:
    if fusion.mask is not None:
        return None if fusion.mask.off else fusion.mask
    return Mask(plausibility=PLAUSIBILITY if fusion.contrast is None else fusion.contrast.alpha)


def _shares(names: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """Given weights of these members, scaled to sum to 1; equal ones where none are given."""
    weights = {name: 1.0 if given is None else given.get(name, 0.0) for name in names}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else weights


def objections(fusion: FusionParams, members: Sequence[str], pivot: str | None) -> Iterator[tuple[str, str]]:
    """The fields that do not go together, each with the rest of a sentence that begins with its name.

    `members` are those of the ensemble as it is configured; `pivot` is None where each prompt decides on it.
    """
    if fusion.mask is not None:
        given = [fusion.mask.plausibility, fusion.mask.nucleus, fusion.mask.top_k, fusion.mask.off or None]
        if sum(value is not None for value in given) != 1:
            yield "mask", "should hold one of plausibility, nucleus and top_k, or be false"
    named = [name for name in ("contrast", "proxy", "guidance") if getattr(fusion, name) is not None]
    if len(named) > 1:
        yield named[1], f"and {named[0]} exclude each other; leave one out"
        return
    negative = [name for name, weight in (fusion.weights or {}).items() if weight < 0]
    if not fusion.sums:
        if fusion.mask is not None:
            yield "mask", "is of combine: arithmetic, contrast, proxy and guidance; leave it out"
        return
    what = named[0] if named else "combine"
    if pivot is None:
        yield what, "takes a fixed pivot, whose mask comes first; name one"
        return
    if named and negative:
        yield f"weights.{negative[0]}", f"should be greater than or equal to 0 with {what}, which sets the signs"
    if not named and fusion.weights is not None and not any(weight > 0 for weight in fusion.weights.values()):
        yield "weights", "hold no positive weight; at least one must be positive"
    if any(not abs(weight) <= LARGEST for weight in (fusion.weights or {}).values()):  # NaN is not either
        yield "weights", f"should be numbers between -{LARGEST} and {LARGEST}"
    for option, is_set in (
        ("filter_top", fusion.filter_top is not None),
        ("guard", fusion.guard),
        ("gate", fusion.gate is not None),
        ("confidence", fusion.confidence != 0),
        ("weighting", fusion.weighting.method != "given"),
        ("views", bool(fusion.views) and fusion.guidance is None),
    ):
        if is_set:
            yield option, f"does not go with {'combine: arithmetic' if not named else what}; leave it out"
    if fusion.draft not in (None, "ngram"):
        yield "draft", f"should be ngram with {'combine: arithmetic' if not named else what}"
    yield from _names(fusion, members, pivot)
    if named and fusion.weights is not None and not any(_led_by(fusion, members).values()):
        yield (
            "weights",
            f"hold no positive weight of a member whose part {what} shares; at least one must be positive",
        )
    if fusion.guidance is not None:
        yield from _guidance(fusion)


def _names(fusion: FusionParams, members: Sequence[str], pivot: str) -> Iterator[tuple[str, str]]:
    wanted = {}
    if fusion.contrast is not None:
        wanted = {"contrast.amateur": fusion.contrast.amateur}
    if fusion.proxy is not None:
        wanted = {"proxy.tuned": fusion.proxy.tuned, "proxy.untuned": fusion.proxy.untuned}
        if fusion.proxy.tuned == fusion.proxy.untuned:
            yield "proxy.untuned", "should be another member than proxy.tuned"
    for field, name in wanted.items():
        if name not in members:
            yield field, f"is {name!r:.60}, but the members are {', '.join(members)}"
        elif name == pivot:
            yield field, f"is {name!r:.60}, the pivot, which leads; take another member"


def _guidance(fusion: FusionParams) -> Iterator[tuple[str, str]]:
    guidance = fusion.guidance
    assert guidance is not None
    if (guidance.negative is not None) == guidance.without_context:
        yield "guidance", "should have either negative or without_context: true"
    elif guidance.negative is not None and not guidance.negative:
        yield "guidance.negative", "should not be empty"
    if guidance.without_context and fusion.views is not None and len(fusion.views) > 1:
        yield "views", "should hold one context with guidance.without_context"
