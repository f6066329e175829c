"""Learned weights of an ensemble: its members as a fit sees them, and the file of a configuration against them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from alignment.errors import ConfigError
from fusion.assembly.checkpoints import Checkpoint
from fusion.assembly.specs import EnsembleSpec
from fusion.learned.weights import Fingerprint, LearnedWeights, digest_of
from fusion.members.identity import content_digest


def fingerprints(ensemble: EnsembleSpec, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Fingerprint]:
    """The members as learned weights know them, in order: by checkpoint (with what a view adds) and tokenizer."""
    found = {}
    for member in ensemble.members:
        checkpoint = checkpoints[ensemble.model_of(member)]
        view = ensemble.views.get(member)
        adapter = (view.adapter if view else None) or checkpoint.spec.adapter
        parts = [content_digest(checkpoint.source, revision=checkpoint.revision)]
        parts += [content_digest(adapter)] if adapter else []
        parts += [repr((view.system, view.context, view.template))] if view else []
        digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
        found[member] = Fingerprint(digest, checkpoint.tokenizer.fingerprint[:16])
    return found


def read_learned(file: str, members: Mapping[str, Fingerprint]) -> LearnedWeights:
    """The learned weights in a file.

    Raises:
        ConfigError: the file cannot be used, or was fitted to other members than these.
    """
    learned = LearnedWeights.load(Path(file))
    expected = learned.about.members
    if learned.about.digest == digest_of(members):
        return learned
    if list(expected) != list(members):
        why = f"it expects the members {', '.join(expected)}, but these are {', '.join(members)}"
    else:
        changed = [
            f"{name} has another {'tokenizer' if one.tokenizer != expected[name].tokenizer else 'checkpoint'}"
            for name, one in members.items()
            if one != expected[name]
        ]
        why = ", ".join(changed)
    raise ConfigError(
        f"{file} was fitted to another ensemble: {why}. Fit it again with `tutti calibrate --learn-weights`."
    )


def description(learned: LearnedWeights) -> str:
    """What learned weights expect and what they were fitted on, in a sentence or two."""
    about = learned.about
    members = ", ".join(
        f"{name} (checkpoint {one.checkpoint[:8]}, tokenizer {one.tokenizer[:8]})"
        for name, one in about.members.items()
    )
    return (
        f"learned weights ({about.kind}, digest {about.digest}) expect {members}; fitted for {about.combine} on "
        f"{about.questions} questions of {', '.join(about.tasks) or 'no task'}"
    )
