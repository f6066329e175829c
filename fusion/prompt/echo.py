"""Echo: teacher-forced log-probabilities of a prompt's own tokens under the fusion.

Each token of the pivot is predicted by the pivot and by the members that have a boundary before it as well.
Members that are inside a token of their own there, or had a boundary before a character that the pivot is inside
of, say what their distribution from before it makes of the text since (see `fusion.inside`). The others abstain,
as all with other vocabularies do before a special token: in their own templates another one stands there, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.text.boundaries import Indices
from alignment.text.characters import beginning_at_the_end
from alignment.vocab_map import VocabMap
from fusion.core import Floats, Ids, LogProbs, Prompt, Token, TokenLogProb
from fusion.ensemble import View
from fusion.inside import (
    Begun,
    Level,
    Spoken,
    conditioned,
    first_likelihood,
    first_trust,
    shifted,
    weights_inside,
)
from fusion.options import FusionParams
from fusion.prompt.scoring import ScoredPrompt
from fusion.step import fuse, of_one_width, project
from fusion.tokens import described

ABSENT, PLAIN, INSIDE = range(3)  # how a member votes at a position
BLOCK = 128  # positions fused at a time, which bounds the memory that takes


@dataclass(frozen=True, slots=True)
class Beginning:
    """The beginning of a character, or of a member's token, that ends a text, as the member tokenises the whole.

    Attributes:
        data: its bytes.
        points: by position in the member's prompt, from that before the beginning on, how many bytes it has
            spelled there.
    """

    data: bytes
    points: dict[int, int]


class Echo:
    """The positions at which members vote on the pivot's tokens.

    Attributes:
        own: by member, the position in its prompt for each of the pivot's, -1 where it has none.
        apart: at each position of the pivot [P], whether the token after it is one of `View.apart`.
        positions: by member, those [P] that it has.
    """

    @classmethod
    def of(cls, prompt: Prompt, members: Sequence[str], view: View) -> Echo:
        """The positions of a prompt, which all answers to it share."""
        return prompt.once((cls, tuple(members), id(view)), lambda: cls(prompt, members, view))

    def __init__(self, prompt: Prompt, members: Sequence[str], view: View) -> None:
        self._view = view
        self._ids = prompt.ids[view.pivot]
        self._follow = [name for name in members if view.follows_ids(name) and prompt.ids[name] == self._ids]
        self.apart = view.apart(self._ids[1:])
        self.own = {name: self._counterparts(prompt, name) for name in members}
        for name, own in self.own.items():
            if not view.follows_ids(name):
                own[self.apart] = -1
        # By member and position of the pivot's, where those of the pivot end inside a character or a token.
        self._inside = {
            name: {
                at: beginning
                for at, beginning in [*self._within_tokens(prompt, name), *self._beginnings(prompt, name)]
                if not self.apart[at]
            }
            for name in members
        }
        self.positions = {
            name: np.unique(
                [*own[own >= 0], *(p for one in self._inside[name].values() for p in one.points)]
            ).astype(np.int64)
            for name, own in self.own.items()
        }

    def _counterparts(self, prompt: Prompt, name: str) -> Indices:
        last = len(self._ids) - 1
        if prompt.ids[name] == self._ids:
            return np.arange(last)
        own = np.full(last, -1, dtype=np.int64)
        if prompt.located is not None:
            pivot, member = prompt.located[self._view.pivot], prompt.located[name]
            for text in range(len(pivot.texts)):
                (places, at), (own_places, own_at) = pivot.boundaries(text), member.boundaries(text)
                _, here, there = np.intersect1d(places, own_places, return_indices=True)
                inside = (at[here] < last) & (own_at[there] < len(prompt.ids[name]) - 1)
                own[at[here][inside]] = own_at[there][inside]
        return own

    def _beginnings(self, prompt: Prompt, name: str) -> Iterator[tuple[int, Beginning]]:
        """The positions of the pivot inside characters that this member has a boundary before."""
        view, ids = self._view, prompt.ids[name]
        if prompt.located is None or ids == self._ids:
            return
        pivot, member = prompt.located[view.pivot], prompt.located[name]
        spelled = view.tokenizer.written(self._ids)
        surfaces = view.models[name].tokenizer.written(ids)
        inside = np.flatnonzero(pivot.starts[1:] < pivot.ends[:-1])
        starts, ends = pivot.starts[inside + 1], pivot.ends[inside]
        for text, span in enumerate(pivot.texts):
            if span is None:
                continue
            first, last = np.searchsorted(starts, span[0]), np.searchsorted(ends, span[1], side="right")
            position_of = dict(zip(*(part.tolist() for part in member.boundaries(text)), strict=True))
            for at in inside[first:last].tolist():
                begins = position_of.get(int(pivot.starts[at + 1]) - span[0])
                data = beginning_at_the_end(b"".join(spelled[max(0, at - 3) : at + 1]))
                if begins is None or not data or begins >= len(ids) - 1:
                    continue
                points, size = {begins: 0}, 0
                for position in range(begins + 1, len(ids) - 1):
                    surface = surfaces[position]
                    if not surface or not data.startswith(surface, size) or size == len(data):
                        break
                    size += len(surface)
                    points[position] = size
                yield at, Beginning(data, points)

    def _within_tokens(self, prompt: Prompt, name: str) -> Iterator[tuple[int, Beginning]]:
        """The positions of the pivot between characters that are inside one of this member's tokens."""
        if prompt.located is None or prompt.ids[name] == self._ids:
            return
        pivot, member = prompt.located[self._view.pivot], prompt.located[name]
        surfaces = self._view.models[name].tokenizer.surfaces
        for text in range(len(pivot.texts)):
            for place, at in zip(*(part.tolist() for part in pivot.boundaries(text)), strict=True):
                if at >= len(self._ids) - 1 or self.own[name][at] >= 0:
                    continue
                inside = member.inside(text, place)
                if inside is None:
                    continue
                token, seen = inside
                surface = surfaces[prompt.ids[name][token]] or b""
                data = _beginning(surface, seen, int(member.ends[token] - member.starts[token]))
                if data:
                    yield at, Beginning(data, {token - 1: 0})

    def tokens(
        self, prompts: Mapping[str, ScoredPrompt], weights: Mapping[str, float], fusion: FusionParams, wanted: int
    ) -> tuple[Token, ...]:
        """The pivot's tokens with their fused log-probability and the `wanted` best of each distribution.

        Nothing predicts the first: its log-probability is NaN.
        """
        found: list[Token | None] = [*self._first, *[None] * (len(self._ids) - 1)]
        begun = [
            Begun.at_the_end(self._ids[max(0, at - 3) : at + 1], self._view.surface)
            for at in self.own[self._view.pivot]
        ]
        spoken = {name: self._conditioned(name, prompt, begun) for name, prompt in prompts.items()}
        # [P, M]: where a member votes, and whether it speaks from before a character.
        votes = np.stack([np.where(self.own[name] >= 0, PLAIN, ABSENT) for name in prompts], axis=1)
        for member, by_position in enumerate(spoken.values()):
            votes[list(by_position), member] = INSIDE
        force = np.tile([weights[name] for name in prompts], (len(votes), 1))  # [P, M]
        if fusion.combine == "mixture":
            self._weigh(force, prompts, spoken, begun, weights, fusion)
        alike = np.column_stack([self.apart, votes])
        for pattern in np.unique(alike, axis=0) if len(votes) else ():
            is_apart, *own = pattern.tolist()
            voters = {name: vote for name, vote in zip(prompts, own, strict=True) if vote != ABSENT}
            at = np.flatnonzero((alike == pattern).all(axis=1))
            for block in np.array_split(at, -(-len(at) // BLOCK)):
                answers = [
                    prompts[name].best(self.own[name][block]) if vote == PLAIN else _stacked(spoken[name], block)
                    for name, vote in voters.items()
                ]
                given = force[block][:, pattern[1:] != ABSENT]
                maps = [
                    self.map_of(name, bool(is_apart)) if vote == PLAIN else None for name, vote in voters.items()
                ]
                tokens = self._fused(block, list(voters), answers, maps, given, fusion, wanted)
                for index, token in zip(block, tokens, strict=True):
                    found[index + 1] = token
        return tuple(token for token in found if token is not None)

    def map_of(self, name: str, is_apart: bool) -> VocabMap | None:
        """The map of a member that votes on a token that is one of `View.apart`, or on any other."""
        return None if is_apart else self._view.maps[name].rest

    def described(
        self, distributions: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], wanted: int
    ) -> tuple[Token, ...]:
        """The pivot's tokens where the distribution before each but the first, on ids [C], is given."""
        rest = [
            described(label, tokens, probabilities, wanted, self._view.surface)
            for label, (tokens, probabilities) in zip(self._ids[1:], distributions, strict=True)
        ]
        return (*self._first, *rest)

    def _weigh(
        self,
        force: Floats,
        prompts: Mapping[str, ScoredPrompt],
        spoken: Mapping[str, Mapping[int, Spoken]],
        begun: Sequence[Begun | None],
        weights: Mapping[str, float],
        fusion: FusionParams,
    ) -> None:
        """Put the members' weights inside characters in their places, [P, M]."""
        view = self._view
        given_ids = [name for name in prompts if name in self._follow]
        if len(given_ids) == len(prompts):
            return
        likelihoods: dict[str, float] = {}
        trust = first_trust(prompts, self._follow.__contains__)
        for at, one in enumerate(begun):
            if one is None or at == 0:
                continue
            for name in given_ids:
                if len(one.tokens) == 1:
                    ids, logprobs = prompts[name].best(np.array([at - 1]))
                    likelihoods[name] = first_likelihood(Level(ids[0], logprobs[0], b""), one, view.surface)
                elif name in likelihoods:
                    likelihoods[name] += float(prompts[name].given(np.array([at - 1]))[0])
            said = {name: by_position[at] for name, by_position in spoken.items() if at in by_position}
            likely = likelihoods | {name: one.likelihood for name, one in said.items()}
            force[at] = list(weights_inside(weights, likely, trust).values())
            if at + 1 == len(begun) or begun[at + 1] is None:
                own = {name: float(np.exp(prompts[name].given(np.array([at]))[0])) for name in given_ids}
                of_pivot = own.get(view.pivot, 0.0) if fusion.unmapped == "pivot" else 0.0
                given = own | {name: one.given(self._ids[at + 1], of_pivot) for name, one in said.items()}
                trust = shifted(trust, weights, likely, given)

    def _conditioned(self, name: str, prompt: ScoredPrompt, begun: Sequence[Begun | None]) -> dict[int, Spoken]:
        """By position of the pivot inside a character or token, what this member says of it; see `conditioned`."""
        view, spoken = self._view, {}
        surfaces = view.models[name].tokenizer.surfaces
        for at, beginning in self._inside[name].items():
            positions = np.array(list(beginning.points))
            ids, logprobs = prompt.best(positions)
            paths = np.cumsum([0.0, *prompt.given(positions[:-1]).tolist()]).tolist()
            levels = [
                Level(ids[row], logprobs[row], beginning.data[size:], paths[row])
                for row, size in enumerate(beginning.points.values())
            ]
            answer = conditioned(levels, surfaces, view.tokenizer, view.maps[name].rest, begun[at])
            if answer is not None:
                spoken[at] = answer
        return spoken

    def _fused(
        self,
        at: Indices,
        names: list[str],
        answers: Sequence[tuple[Ids, LogProbs]],
        maps: Sequence[VocabMap | None],
        given: Floats,
        fusion: FusionParams,
        wanted: int,
    ) -> list[Token]:
        """The tokens after these positions of the pivot, on which the same members vote in the same way."""
        view = self._view
        candidates = project(answers, maps, view.vocabulary_size)
        mapped = view.mapped(names)
        fused = fuse(candidates.probabilities, given, names.index(view.pivot), mapped, fusion).distribution
        return [
            described(self._ids[index + 1], row, probabilities, wanted, view.surface)
            for index, row, probabilities in zip(at, candidates.tokens, fused, strict=True)
        ]

    @property
    def _first(self) -> list[Token]:
        """The first token of the prompt, which nothing predicts; none of an empty one."""
        return [Token(TokenLogProb(id, self._view.surface(id), np.nan)) for id in self._ids[:1]]


def _stacked(spoken: Mapping[int, Spoken], at: Indices) -> tuple[Ids, LogProbs]:
    """What a member says at these positions of the pivot, [len(at), n] both."""
    ids, logprobs = zip(
        *of_one_width([(spoken[one].ids, spoken[one].logprobs) for one in at.tolist()]), strict=True
    )
    return np.concatenate(ids), np.concatenate(logprobs)


def _beginning(surface: bytes, seen: int, covered: int) -> bytes:
    """The bytes of a token before the place that `seen` of its `covered` characters lie before; b"" for none.

    A token covers fewer characters than it spells where its tokenizer put a space before the text.
    """
    try:
        spelled = surface.decode()
    except UnicodeDecodeError:
        return b""
    added = len(spelled) - covered
    return spelled[: added + seen].encode() if added >= 0 else b""
