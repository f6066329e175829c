"""The policy that asks every member for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.policy.policy import ALL, Ask

if TYPE_CHECKING:
    from fusion.sequence.sequence import Sequence


class Always:
    """Every member, one token at a time."""

    def ask(self, sequence: Sequence) -> Ask:
        """Everyone."""
        return ALL

    def answered(self, sequence: Sequence) -> Ask | None:
        """No one else: all were asked."""
        return None

    def checked(self, drafted: int, accepted: int) -> None:
        """There are no drafts."""
