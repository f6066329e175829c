"""Origin of a vocabulary map: its models, method and parameters; kept in the map's file, compared before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from alignment.errors import ConfigError
from alignment.vocab_map import VocabMap, read_map

TableName = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of the methods that learn from embeddings; the defaults are EVA's (arXiv 2404.09492).

    The bounds are checked by what reads parameters from outside.

    Attributes:
        embeddings: the table that is read of each model: of its input, or of its output (the language-model head).
        top: target tokens a source token may go to.
        threshold: the lowest score of an entry.
        temperature: makes each learned row a distribution, softmax(scores / temperature); None leaves the scores
            as they are.
    """

    embeddings: TableName = "output"
    top: Annotated[int, Interval(ge=1, le=100)] = 10
    threshold: Annotated[float, Interval(gt=0, le=1)] = 0.1
    temperature: Annotated[float, Interval(gt=0, le=10)] | None = None


PAPERS = Parameters()


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models of a map: fingerprints of what was read of it, and its name, which is for people.

    `stops` are the ids that end an answer, of which a target has one: all of the source's go there. `embeddings`
    is None for methods that read none. `special` is of the control tokens, which the chat template decides too.
    """

    name: str
    tokenizer: str
    stops: tuple[int, ...]
    embeddings: str | None = None
    special: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Everything that a map's content depends on. `parameters` is None for methods that take none."""

    method: str
    parameters: Parameters | None
    source: Side
    target: Side
    tutti: str

    @property
    def key(self) -> str:
        """A digest of everything but the names. Equal keys mean equal maps."""
        nameless = replace(self, source=replace(self.source, name=""), target=replace(self.target, name=""))
        return hashlib.sha256(json.dumps(asdict(nameless), sort_keys=True).encode()).hexdigest()[:32]

    def require_same_models(self, wanted: Origin, path: str | Path) -> None:
        """ConfigError where this, the origin of the map in `path`, is of other models than `wanted`.

        Names may differ, and so may method and parameters: what counts is that the ids mean what the map says.
        """
        for role, ours, theirs in (("from", self.source, wanted.source), ("into", self.target, wanted.target)):
            for what in ("tokenizer", "stops", "special", "embeddings"):
                if getattr(ours, what) != getattr(theirs, what):
                    raise ConfigError(
                        f"The vocabulary map {path} is {role} {ours.name}, whose {_WORDS[what]} not those of "
                        f"{theirs.name}: build the map again with `tutti align`."
                    )


_WORDS = {
    "tokenizer": "tokens are",
    "stops": "end tokens are",
    "special": "control tokens are",
    "embeddings": "embeddings are",
}


def save_with_origin(map: VocabMap, path: str | Path, origin: Origin) -> None:
    """Write a map together with where it comes from; OSError where that fails."""
    map.save(path, {name: json.dumps(value, sort_keys=True) for name, value in asdict(origin).items()})


def load_with_origin(path: str | Path) -> tuple[VocabMap, Origin]:
    """Read what `save_with_origin` wrote; ConfigError for anything else."""
    map, metadata = read_map(path)
    try:
        return map, _origin({name: json.loads(metadata[name]) for name in Origin.__slots__})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The vocabulary map {path} does not say what it was made from: build it with `tutti align`."
        ) from error


def _origin(fields: Mapping[str, Any]) -> Origin:
    def side(given: Mapping[str, Any]) -> Side:
        return Side(**{**given, "stops": tuple(given["stops"])})

    parameters = None if fields["parameters"] is None else Parameters(**fields["parameters"])
    return Origin(fields["method"], parameters, side(fields["source"]), side(fields["target"]), fields["tutti"])
