"""The policy that asks every member for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.policy.policy import ALL, Ask, Policy

if TYPE_CHECKING:
    from fusion.sequence.sequence import Sequence


class Always(Policy):
    """Every member, one token at a time."""

    def ask(self, sequence: Sequence) -> Ask:
        """Everyone."""
        return ALL
