"""Timing: where the time of a round went, noted in its sequences' accounts and in the round."""

from __future__ import annotations

from fusion.policy.registry import policy_name
from fusion.round import Round
from fusion.sequence.sequence import Sequence


def account_for(batch: list[Sequence], done: Round) -> None:
    """Add a round of these sequences to their accounts, and to the round who was asked and how they waited."""
    for sequence in batch:
        account, arrived = sequence.account, sequence.arrived
        if account.rounds and not sequence.cursor:  # the members read the prompt before the first
            done.waiting.append(done.began - sequence.sent)
            account.waiting += done.waiting[-1]
            if len(arrived) > 1:
                done.last.append((arrived[-1][0], arrived[-1][1] - arrived[-2][1]))
        account.rounds += 1
        account.fusion += done.fusion
        account.sampling += done.sampling
        sequence.arrived = []
        apart = sequence.draft or sequence.asked.members is not None
        done.policies.append(policy_name(sequence.fusion) if apart else "always")
        if len(sequence.seats) > len(done.voters):
            done.absent += [name for name, seat in sequence.seats.items() if seat.state == "mute"]
