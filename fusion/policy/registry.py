"""The policies by name. A new one takes a file, a line in `POLICIES`, and an option that `policy_name` reads."""

from __future__ import annotations

from collections.abc import Callable, Collection

from alignment.errors import InvalidRequestError, field_error
from fusion.options import AUTO, DRAFTERS, FusionParams, SamplingParams, needed_to_draw
from fusion.policy.always import Always
from fusion.policy.gates import Confident, Draw
from fusion.policy.lead import Lead
from fusion.policy.ngram import Ngram
from fusion.policy.policy import Policy
from fusion.sampling import is_plain

POLICIES: dict[str, Callable[[FusionParams], Policy]] = {
    "always": lambda fusion: Always(),
    "ngram": lambda fusion: Ngram(),
    "member": lambda fusion: Lead(None if fusion.draft == AUTO else fusion.draft),
    "confident": lambda fusion: Confident(fusion.threshold, fusion.margin),
    "draw": lambda fusion: Draw(),
}


def policy_name(fusion: FusionParams) -> str:
    """The policy that these options ask for."""
    if fusion.gate is not None:
        return fusion.gate
    if fusion.draft is not None:
        return "ngram" if fusion.draft == "ngram" else "member"
    return "always"


def policy_of(fusion: FusionParams) -> Policy:
    """A sequence's own policy."""
    return POLICIES[policy_name(fusion)](fusion)


def require_policy(
    fusion: FusionParams, sampling: SamplingParams, members: Collection[str], *, limited: bool = False
) -> None:
    """Raise InvalidRequestError, naming the field, where these options have no policy.

    `limited` says whether a schema or the like limits the text of the answer.
    """
    if fusion.draft is not None and fusion.gate is not None:
        raise InvalidRequestError(
            "fusion.draft and fusion.gate exclude each other; leave one out.", param="fusion.gate"
        )
    if fusion.draft not in (None, *DRAFTERS, *members):
        raise field_error(
            "fusion.draft",
            f"is {fusion.draft!r:.60}; give {', '.join(DRAFTERS)}, or a member: {', '.join(members)}.",
        )
    if fusion.gate == "draw":
        wrong = [
            ("temperature 1 and no other change to the distribution", not _untouched(sampling)),
            ("no logprobs", sampling.logprobs is not None),
            ("no constraint on the answer", limited),
        ]
        needed = needed_to_draw(fusion) + [what for what, missing in wrong if missing]
        if needed:
            raise field_error("fusion.gate", f"draw runs one member a token, which takes {', '.join(needed)}.")


def _untouched(sampling: SamplingParams) -> bool:
    return is_plain(sampling) and sampling.temperature == 1 and not sampling.min_tokens and not sampling.ignore_eos
