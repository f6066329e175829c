"""Align: what every target is trained towards, from the readings of the base and of its teachers.

FuseChat, section 3.2. First the warping paths of every source and the statistics of its tokens, then for every
target the sparse distributions at the base's positions, of the model that predicts a conversation best (MinCE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alignment.errors import ConfigError
from alignment.methods.method import ModelVocabulary
from alignment.methods.registry import Alignment as VocabAlignment
from alignment.vocab_map import VocabMap
from fusion.core import Ids, LogProbs
from fusion.distill.fusechat import pairing
from fusion.distill.fusechat.pairing import Answer, Vocabulary
from fusion.distill.fusechat.represent import Represented
from fusion.distill.fusechat.settings import Align, Target
from fusion.distill.loss import PADDING
from fusion.distill.targets import choose, target_probabilities
from fusion.distill.token_alignment import count_alignments, same_tokens, statistical_map
from fusion.distill.training.reading import open_tokenizer
from fusion.distill.training.settings import BASE, Source, digest_of
from fusion.distill.training.shards import Arrays, Stage
from fusion.members.checkpoint import read_config

LEAST_SHARED = 0.05
"""Share of positions that a source has to have something to say about."""

TOGETHER = 2048
"""Positions that are projected together: each takes k R numbers of every teacher, R the width of its map."""

Shards = Callable[[str, int], Represented]
"""(name of a reader, number) -> its reading of that shard."""


@dataclass
class Coverage:
    """Counts of a target's conversations and positions by what became of them.

    Attributes:
        chosen: conversations by the name of the model whose distributions they are learned towards.
        positions: learned positions of conversations that a source was chosen for.
        shared: those of them where the source had a distribution.
    """

    chosen: dict[str, int] = field(default_factory=dict)
    positions: int = 0
    shared: int = 0


@dataclass(frozen=True)
class Teacher:
    """A source and how its distributions come to the base's tokens: one of the two ways.

    Attributes:
        same, statistics: [Vs], see `token_alignment`.
        map: from a vocabulary to the base's; None where the two are equal.
    """

    name: str
    vocabulary: Vocabulary
    same: Ids | None = None
    statistics: Ids | None = None
    map: VocabMap | None = None


def open_vocabulary(source: Source) -> Vocabulary:
    """The tokens of a model.

    Raises:
        ConfigError: they cannot be read, or it cannot read conversations.
    """
    tokenizer, stops = open_tokenizer(source)
    config = read_config(source.source, revision=source.revision).get_text_config(decoder=True)
    return Vocabulary(tokenizer, stops, max(config.vocab_size, tokenizer.vocabulary_size))


def warp(name: str, base: Vocabulary, source: Source, shards: Shards, stage: Stage) -> Teacher:
    """A teacher for the published ways: paths of all answers go to the stage's shards, statistics follow."""
    own = open_vocabulary(source)
    total = count_alignments((), (base.size, own.size))

    @lru_cache(maxsize=1)  # for a shard that is made, and then counted
    def pairs_of(number: int) -> list[Answer]:
        return list(pairing.answers(shards(BASE, number), shards(name, number)))

    for number, stored in stage.each(lambda number: {"paths": pairing.paths(base, own, pairs_of(number))}):
        pairs = pairs_of(number)
        aligned = (
            (answer.pivot[:-1], answer.source[:-1], pairing.inner_path(pairing.path_of(bounds)))
            for answer, bounds in zip(pairs, _split(stored["paths"], pairs), strict=True)
        )
        total = total + count_alignments(aligned, (base.size, own.size))
    statistics = statistical_map(
        total,
        base.strings,
        own.strings,
        pivot_marker=base.marker,
        source_marker=own.marker,
        unknown=-1,
        special=dict.fromkeys(own.stops, base.stops[0]),
    )
    same = same_tokens(base.strings, own.strings, pivot_marker=base.marker, source_marker=own.marker)
    for stop in own.stops:
        if same[stop] not in base.stops:  # a namesake that ends nothing in the base
            same[stop] = base.stops[0]
    return Teacher(name, own, same=same, statistics=statistics)


def project(name: str, base: Vocabulary, base_source: Source, source: Source, settings: Align) -> Teacher:
    """A teacher for the projected way: its vocabulary map into the base's tokens."""
    own = open_vocabulary(source)
    if own.tokenizer.fingerprint == base.tokenizer.fingerprint:
        return Teacher(name, own)
    theirs, ours = (
        ModelVocabulary(one.source, vocabulary.tokenizer, vocabulary.stops, one.revision)
        for one, vocabulary in ((source, own), (base_source, base))
    )
    learned = VocabAlignment(theirs, ours, settings.map).learn().padded(own.size)
    # Rows of similarities may sum to more than 1, and a token must not leave with more mass than it came with.
    sums = learned.weights.sum(axis=1, keepdims=True)
    return Teacher(name, own, map=replace(learned, weights=learned.weights / np.maximum(sums, 1)))


def align(
    target: Target,
    base: Vocabulary,
    teachers: Sequence[Teacher],
    shards: Shards,
    settings: Align,
    path_shards: Callable[[str, int], Arrays],
    stage: Stage,
) -> Coverage:
    """Write a target's shards: `ids` and `probabilities` [T,K], `owner` of each conversation [N], `positions` [2].

    The latter are the learned positions of conversations that a teacher owns, and those of them where it has a
    distribution. The owner is 0 for the base's own distributions, n for the n-th teacher's, -1 where the base has
    not read it.

    Raises:
        ConfigError: a source has next to nothing to say in the base's tokens.
    """
    coverage = Coverage()

    def make(number: int) -> Arrays:
        pivot = shards(BASE, number)
        readings = [pivot if teacher.name == BASE else shards(teacher.name, number) for teacher in teachers]
        paths = [
            path_shards(teacher.name, number)["paths"] if teacher.statistics is not None else None
            for teacher in teachers
        ]
        return _shard(target, base, teachers, pivot, readings, paths, settings)

    for _, stored in stage.each(make):
        _count(coverage, stored, [teacher.name for teacher in teachers] if target.combine == "best" else [])
    if coverage.positions and coverage.shared < LEAST_SHARED * coverage.positions:
        names = ", ".join(teacher.name for teacher in teachers)
        raise ConfigError(
            f"The tokens of {names} cannot be aligned with the base's: only {coverage.shared} of "
            f"{coverage.positions} positions have a distribution; choose align.method projected or leave it out."
        )
    return coverage


def inputs_of(target: Target, settings: Align, readers: dict[str, str]) -> str:
    """The inputs that a target's shards depend on; `readers` are the inputs of the readings, by name."""
    return digest_of(target, settings, {name: readers[name] for name in (BASE, *target.teachers)})


def _shard(
    target: Target,
    base: Vocabulary,
    teachers: Sequence[Teacher],
    pivot: Represented,
    readings: Sequence[Represented],
    paths: Sequence[NDArray[np.int32] | None],
    settings: Align,
) -> Arrays:
    owner = _owners(target, pivot, readings)
    rows = pivot.rows()
    own_ids, own_probabilities = _probabilities(pivot.logprobs, pivot.ids, settings)
    ids, probabilities = own_ids.copy(), own_probabilities.copy()
    has_source = np.zeros(len(ids), bool)
    conversation_of = np.repeat(np.arange(len(owner)), np.diff(rows))
    if settings.method == "projected":
        groups = (
            [(1, teachers, readings)]
            if target.combine == "mean"
            else [
                (n, [teacher], [reading])
                for n, (teacher, reading) in enumerate(zip(teachers, readings, strict=True), 1)
            ]
        )
        for number, some, their in groups:
            found = [
                _shared_rows(base, teacher, pivot, reading, owner == number)
                for teacher, reading in zip(some, their, strict=True)
            ]
            mine = np.flatnonzero(owner[conversation_of] == number)
            for start in range(0, len(mine), TOGETHER):
                here = mine[start : start + TOGETHER]
                names, logprobs = _projected(some, their, [rows[here] for rows in found], pivot.ids.shape[1])
                ids[here], probabilities[here] = _probabilities(logprobs, names, settings)
                has_source[here] = (names >= 0).any(axis=1)
    else:
        for number, (teacher, reading, path) in enumerate(zip(teachers, readings, paths, strict=True), 1):
            assert path is not None
            mine = owner[conversation_of] == number
            names, logits, taken = _warped(base, teacher, pivot, reading, path, settings, owner == number)
            new_ids, new = _probabilities(logits, names, settings, own=(pivot.logprobs, pivot.ids))
            ids[mine], probabilities[mine] = new_ids[mine], new[mine]
            has_source[mine] = taken[mine]
    sourced = owner[conversation_of] > 0
    return {
        "ids": ids,
        "probabilities": probabilities,
        "owner": owner,
        "positions": np.array([sourced.sum(), has_source.sum()], np.int64),
    }


def _owners(target: Target, pivot: Represented, readings: Sequence[Represented]) -> NDArray[np.int8]:
    """Return the source of the distributions that each conversation is learned towards, see `align`."""
    owner = np.zeros(len(pivot.lengths), np.int8)
    if target.combine == "mean":
        owner[:] = 1
    else:
        least = pivot.losses
        for number, reading in enumerate(readings, 1):
            better = choose(least, reading.losses)
            owner[better] = number
            least = np.where(better, reading.losses, least)
    owner[pivot.lengths == 0] = -1
    return owner


def _probabilities(
    logprobs: LogProbs, ids: Ids, settings: Align, own: tuple[LogProbs, Ids] | None = None
) -> tuple[Ids, LogProbs]:
    """The targets of rows of log-probabilities; these are normalised, so that their normalisers are 0."""
    rest = np.zeros(len(ids)) if settings.rest else None
    probabilities, names = target_probabilities(
        logprobs, ids, temperature=settings.temperature, own=own, normalisers=rest, own_normalisers=rest
    )
    return names, probabilities


def _shared_rows(
    base: Vocabulary, teacher: Teacher, pivot: Represented, reading: Represented, wanted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The teacher's row [T] after the same text as each of the base's in wanted conversations; -1 for none."""
    rows = np.full(len(pivot.ids), -1, np.int64)
    for answer in pairing.answers(pivot, reading):
        if not wanted[answer.conversation]:
            continue
        found = pairing.shared_positions(base, teacher.vocabulary, answer)
        here = slice(answer.pivot_row, answer.pivot_row + len(found))
        rows[here] = np.where(found >= 0, found + answer.source_row, -1)
    return rows


def _projected(
    teachers: Sequence[Teacher], readings: Sequence[Represented], rows: Sequence[NDArray[np.int64]], best: int
) -> tuple[Ids, LogProbs]:
    """Mean of those teachers' `rows` [n] that are there, [n,best]; all padding where none is."""
    parts: list[tuple[Ids, NDArray[np.float64]]] = []
    present = np.zeros(len(rows[0]))
    for teacher, reading, own in zip(teachers, readings, rows, strict=True):
        shared = own >= 0
        if not shared.any():
            continue
        taken = np.where(shared, own, 0)
        ids = np.where(shared[:, None], reading.ids[taken], PADDING)
        names, mass = pairing.projected_rows(ids, reading.logprobs[taken], teacher.map)
        parts.append((names, mass))
        present += shared
    if not parts:
        padding = np.full((len(present), best), PADDING, np.int32)
        return padding, np.full(padding.shape, -np.inf, np.float32)
    names = np.concatenate([names for names, _ in parts], axis=1)
    mass = np.concatenate([mass for _, mass in parts], axis=1) / np.maximum(present, 1)[:, None]
    ids, kept = pairing.gather(names, mass, best)
    with np.errstate(divide="ignore"):
        return ids, np.log(kept).astype(np.float32)


def _warped(
    base: Vocabulary,
    teacher: Teacher,
    pivot: Represented,
    reading: Represented,
    paths: NDArray[np.int32],
    settings: Align,
    wanted: NDArray[np.bool_],
) -> tuple[Ids, LogProbs, NDArray[np.bool_]]:
    """The teacher's rows [T,k] for the wanted conversations, padding elsewhere, and which were taken over."""
    assert teacher.same is not None
    assert teacher.statistics is not None
    assert settings.method != "projected"
    ids = np.full(pivot.ids.shape, PADDING, np.int32)
    logits = np.full(ids.shape, -np.inf, np.float32)
    taken = np.zeros(len(ids), bool)
    pairs = list(pairing.answers(pivot, reading))
    for answer, bounds in zip(pairs, _split(paths, pairs), strict=True):
        if not wanted[answer.conversation]:
            continue
        here = slice(answer.pivot_row, answer.pivot_row + len(answer.pivot))
        there = slice(answer.source_row, answer.source_row + len(answer.source))
        ids[here], logits[here], taken[here] = pairing.warped_rows(
            base,
            teacher.vocabulary,
            answer,
            pairing.path_of(bounds),
            (reading.ids[there], reading.logprobs[there]),
            settings.method,
            teacher.same,
            teacher.statistics,
            add_up=settings.rest,
        )
    return ids, logits, taken


def _split(paths: NDArray[np.int32], pairs: Sequence[Answer]) -> list[NDArray[np.int32]]:
    """The paths of a shard by answer, each with a position more than it has tokens."""
    ends = np.cumsum([len(answer.pivot) + 1 for answer in pairs])
    return np.split(paths, ends[:-1]) if len(pairs) else []


def _count(coverage: Coverage, stored: Arrays, names: Sequence[str]) -> None:
    owner = stored["owner"]
    for number, name in enumerate([BASE, *names] if names else []):  # a mean chooses nobody
        chosen = int((owner == number).sum())
        coverage.chosen[name] = coverage.chosen.get(name, 0) + chosen
    positions, shared = stored["positions"].tolist()
    coverage.positions += positions
    coverage.shared += shared
