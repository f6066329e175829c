"""The policy that asks every member for every token."""

from __future__ import annotations

from fusion.policy.policy import ALL, Ask, Asking


class Always:
    """Every member, one token at a time."""

    def ask(self, sequence: Asking) -> Ask:
        """Everyone."""
        return ALL

    def answered(self, sequence: Asking) -> Ask | None:
        """No one else: all were asked."""
        return None

    def checked(self, drafted: int, accepted: int) -> None:
        """There are no drafts."""
