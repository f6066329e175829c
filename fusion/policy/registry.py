"""The policies by name. A new one takes a file here, a line in `POLICIES`, and its option."""

from __future__ import annotations

from collections.abc import Callable

from fusion.options import FusionParams
from fusion.policy.always import Always
from fusion.policy.policy import Policy

POLICIES: dict[str, Callable[[FusionParams], Policy]] = {"always": lambda fusion: Always()}


def policy_name(fusion: FusionParams) -> str:
    """The policy that these options ask for."""
    return "always"


def policy_of(fusion: FusionParams) -> Policy:
    """A sequence's own policy."""
    return POLICIES[policy_name(fusion)](fusion)
