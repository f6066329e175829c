"""The policy that asks every member for every token."""

from __future__ import annotations

from fusion.policy.policy import ALL, Ask, Asking, Policy


class Always(Policy):
    """Every member, one token at a time."""

    def ask(self, sequence: Asking) -> Ask:
        """Everyone."""
        return ALL
