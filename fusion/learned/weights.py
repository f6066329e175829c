"""Learned weights: a linear model of a prompt's features, fitted on questions, with the file that holds it.

The members' weights are softmax(scores / temperature), the scores a bias and a sum over features. A prompt that
resembles none of the questions that it was fitted on gets equal weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from alignment.errors import ConfigError
from alignment.files import replace_file
from fusion.core import Floats
from fusion.learned.features import PromptLosses, number_names, numbers, numeric_features, words
from fusion.learned.vocabulary import Prototypes, Vocabulary, similarity
from fusion.options import Combine
from fusion.step import COMBINATIONS

UNIFORM, ALONE, CONSTANT, TEXT, LOSSES = "equal", "one member", "constant", "text", "text and losses"
KINDS = (UNIFORM, ALONE, CONSTANT, TEXT, LOSSES)  # from the simplest on
FORMAT, VERSION = "tutti.learned_weights", "1"
LARGEST = 16 * 2**20  # bytes of a file
_SHOWN = 4  # features in a report
_CLIP = 3.0  # standard deviations that a numeric feature can be off the usual


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A member as the fit has seen it: digests of its checkpoint and of its tokenizer."""

    checkpoint: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class About:
    """The description that stands in the file as JSON.

    Attributes:
        members: by name, in the order of the weights.
        kind: what cross-validation chose, one of `KINDS`.
        combine: the combination that the weights were fitted for.
        temperature: of the softmax over the scores.
        similar: the likeness to the questions from which on a prompt counts as familiar.
        offsets: by pivot and member, its usual loss on the questions' prompts, in nats per token of that pivot.
        questions: how many it was fitted on.
        tasks: their names.
        notes: sentences about the fit.
    """

    members: dict[str, Fingerprint]
    kind: str
    combine: Combine
    temperature: float
    similar: float
    offsets: dict[str, dict[str, float]]
    questions: int
    tasks: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of the members: names, checkpoints and tokenizers."""
        return digest_of(self.members)


def digest_of(members: Mapping[str, Fingerprint]) -> str:
    """A digest of an ensemble's members, in order."""
    parts = [[name, one.checkpoint, one.tokenizer] for name, one in members.items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Decision:
    """Weights [M], and why.

    Attributes:
        similarity: the likeness to the questions of the fit; None where the prompt does not matter.
        features: what spoke for the member that leads, by feature, in nats over the mean of the members.
        note: a sentence where the weights are equal for another reason than the fit.
    """

    weights: Floats
    similarity: float | None = None
    features: dict[str, float] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class LearnedWeights:
    """The fitted model.

    Attributes:
        about: its description.
        vocabulary: the words and pairs of the questions, F of them.
        bias: [M].
        text: [F, M] float32, score of the share of a word or pair.
        number: [K, M], score of a standardised numeric feature.
        usual: [2, K], mean and standard deviation of these features.
        prototypes: the questions, or as many of them as a prompt is compared with.
    """

    about: About
    vocabulary: Vocabulary
    bias: Floats
    text: NDArray[np.float32]
    number: Floats
    usual: Floats
    prototypes: Prototypes

    @property
    def members(self) -> tuple[str, ...]:
        """The members in the order of the weights."""
        return tuple(self.about.members)

    @property
    def needs_losses(self) -> bool:
        """Whether the members' losses on the prompt are among the features, so that they have to read it first."""
        return self.about.kind == LOSSES

    @cached_property
    def digest(self) -> str:
        """A digest of all of it."""
        digest = hashlib.sha256(json.dumps(asdict(self.about)).encode())
        for array in self._arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def weigh(self, text: str, members: Sequence[str], losses: PromptLosses | None = None) -> Decision:
        """The weights of these members for a prompt, summing to 1; `losses` are theirs, where they are needed."""
        if not set(members) <= set(self.members):
            return Decision(_equal(members), note="The learned weights are of other members: equal weights.")
        if self.about.kind == UNIFORM:
            return Decision(_equal(members), note=self.about.notes[0] if self.about.notes else "Equal weights.")
        found = words(text)
        seen = self.vocabulary.look_up(found)
        likeness = similarity(self.prototypes.cosines(seen, len(self.vocabulary.buckets)))
        if likeness < self.about.similar:
            note = (
                f"The prompt resembles no questions that the weights were fitted on ({likeness:.2f}, "
                f"{self.about.similar:.2f} is needed): equal weights."
            )
            return Decision(_equal(members), likeness, {}, note)
        if self.needs_losses and (losses is None or len(members) < len(self.members)):
            return Decision(_equal(members), likeness, {}, "The prompt could not be measured: equal weights.")
        own = [self.members.index(name) for name in members]
        by_text = self.text[seen.rows][:, own].astype(np.float64) * seen.shares[:, None]
        measured = numbers(len(found), losses, len(self.members))
        by_number = self.number[:, own] * standardised(measured, self.usual)[:, None]
        parts = np.concatenate([by_text, by_number]) / self.about.temperature  # [features, M]
        scores = self.bias[own] / self.about.temperature + parts.sum(axis=0)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        for_leader = parts[:, int(weights.argmax())] - parts.mean(axis=1)
        labels = [*seen.names, *number_names(self.members)]
        best = np.argsort(-for_leader, kind="stable")[:_SHOWN]
        features = {labels[i]: round(float(for_leader[i]), 4) for i in best if for_leader[i] > 0}
        return Decision(weights, likeness, features)

    # -- the file

    def save(self, path: Path) -> None:
        """Write it as safetensors with `about` as JSON in the metadata. OSError where it cannot be written."""
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "digest": self.about.digest,
            "about": json.dumps(asdict(self.about)),
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        replace_file(path, to_safetensors(arrays, metadata))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        own = {name: getattr(self, name) for name in ("bias", "text", "number", "usual")}
        return asdict(self.vocabulary) | own | asdict(self.prototypes)

    @classmethod
    def load(cls, path: Path) -> LearnedWeights:
        """Read what `save` has written.

        Raises:
            ConfigError: no such file, another format or version, or arrays that do not fit each other.
        """
        again = "write it again with `tutti calibrate --learn-weights`"
        try:
            if path.stat().st_size > LARGEST:
                raise ConfigError(f"{path} is too large for learned weights; {again}.")
            with safe_open(path, framework="numpy") as file:
                metadata: dict[str, str] = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ConfigError(f"{path} holds no learned weights; {again}.")
                if metadata.get("version") != VERSION:
                    raise ConfigError(
                        f"{path} has version {metadata.get('version', '')!r:.20} of learned weights, this program "
                        f"reads {VERSION}; {again}."
                    )
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            about = _about(json.loads(metadata["about"]))
            _require_fit(about, arrays)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror or error}); {again}.") from None
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} is damaged ({error!s:.80}); {again}.") from None
        vocabulary = Vocabulary(arrays["buckets"], arrays["rarity"])
        prototypes = Prototypes(arrays["rows"], arrays["starts"], arrays["sizes"])
        bias, text, number, usual = (arrays[name] for name in ("bias", "text", "number", "usual"))
        return cls(about, vocabulary, bias, text, number, usual, prototypes)


def standardised(measured: Floats, usual: Floats) -> Floats:
    """Numeric features [..., K] in standard deviations from the usual [2, K], cut off far from it."""
    standard: Floats = np.clip((measured - usual[0]) / usual[1], -_CLIP, _CLIP)
    return standard


def equal_weights(members: Mapping[str, Fingerprint], note: str) -> LearnedWeights:
    """The stand-in for a file that cannot be used: equal weights, and the reason."""
    about = About(dict(members), UNIFORM, "mixture", 1.0, 0.0, {}, 0, (), (note,))
    size, numeric = len(members), numeric_features(len(members))
    vocabulary = Vocabulary(np.empty(0, np.int32), np.empty(0, np.float32))
    return LearnedWeights(
        about,
        vocabulary,
        np.zeros(size),
        np.zeros((0, size), np.float32),
        np.zeros((numeric, size)),
        np.stack([np.zeros(numeric), np.ones(numeric)]),
        Prototypes.of([]),
    )


def _equal(members: Sequence[str]) -> Floats:
    return np.full(len(members), 1 / len(members))


def _about(listed: dict[str, Any]) -> About:
    members = {str(name): Fingerprint(**one) for name, one in listed.pop("members").items()}
    tasks, notes = tuple(map(str, listed.pop("tasks"))), tuple(map(str, listed.pop("notes")))
    return About(members=members, tasks=tasks, notes=notes, **listed)


def _require_fit(about: About, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError where an array has another shape or type than the members take, or is not finite."""
    members, numeric = len(about.members), numeric_features(len(about.members))
    known, prototypes = len(arrays["buckets"]), len(arrays["rows"])
    shapes = {
        "buckets": (np.int32, (known,)),
        "rarity": (np.float32, (known,)),
        "bias": (np.float64, (members,)),
        "text": (np.float32, (known, members)),
        "number": (np.float64, (numeric, members)),
        "usual": (np.float64, (2, numeric)),
        "rows": (np.int32, (prototypes,)),
        "starts": (np.int64, (len(arrays["sizes"]) + 1,)),
        "sizes": (np.int64, (len(arrays["sizes"]),)),
    }
    for name, (kind, shape) in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != kind or not np.isfinite(array).all():
            raise ValueError(f"{name} is not what {members} members take")
    starts, rows = arrays["starts"], arrays["rows"]
    ordered = (
        starts[0] == 0
        and starts[-1] == prototypes
        and (np.diff(starts) >= 0).all()
        and (arrays["sizes"] >= 0).all()
    )
    if not ordered or ((rows < 0) | (rows >= known)).any() or (np.diff(arrays["buckets"]) <= 0).any():
        raise ValueError("the questions are not where they should be")
    scales = (about.temperature, about.similar)
    if not about.temperature > 0 or not np.isfinite(scales).all() or (arrays["usual"][1] <= 0).any():
        raise ValueError("a scale is not positive")
    if about.kind not in KINDS or about.combine not in COMBINATIONS:
        raise ValueError("the kind or the combination is not known")
