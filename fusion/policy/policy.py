"""Policy: which members a sequence asks in a round, and for how many tokens.

A policy belongs to one sequence. Members that it does not ask keep what they have cached, and are given all that
was written meanwhile in one advance when they are asked again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fusion.sequence.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Ask:
    """The members that are asked in a round by name; None for all that take part."""

    members: Collection[str] | None = None


ALL = Ask()


class Policy(Protocol):
    """Decides who is asked. Called on the fuser's thread, so it must not block."""

    def ask(self, sequence: Sequence) -> Ask:
        """Return the members to ask for the next token, now that one was written."""

    def answered(self, sequence: Sequence) -> Ask | None:
        """Whom to ask besides, now that all who vote have answered; None to fuse what there is."""
