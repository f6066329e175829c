"""Learn: what a round's training takes from what was gathered, and the training itself (Bohdi's enlightenment)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alignment.errors import ConfigError
from fusion.distill.bohdi.explore import evenly
from fusion.distill.bohdi.settings import Bohdi
from fusion.distill.bohdi.state import Sample, State
from fusion.distill.bohdi.tree import Domain, KnowledgeTree
from fusion.distill.loss import PADDING
from fusion.distill.training.conversations import encode
from fusion.distill.training.examples import Example, Examples
from fusion.distill.training.reading import open_tokenizer, read_as
from fusion.distill.training.settings import Progress, Source, digest_of
from fusion.distill.training.train import Texts, steps_of, train

LESSON_STREAM = 1_000_000
"""Sets the random numbers of lessons apart from those of a round's batches, which are numbered from 0."""


def choose_lesson(round: int, state: State, settings: Bohdi) -> list[str]:
    """The ids of the samples that a round's training takes, in the order of drawing.

    A leaf is drawn along the tree as in exploration, for the share `learn.even` with equal chances; one of its
    samples evenly, and none comes again before all of the leaf have come. Leaves without samples are left out.
    """
    gathered: dict[Domain, list[str]] = defaultdict(list)
    for sample in state.samples.values():
        gathered[sample.path].append(sample.id)
    if not gathered:
        return []
    rng = np.random.default_rng([settings.explore.seed, round, LESSON_STREAM])
    own = sum(sample.round == round for sample in state.samples.values())
    count = settings.learn.samples or own or len(state.samples)
    even = 1.0 if settings.explore.draws == "fixed" else settings.learn.even
    tree = _with_samples(state.tree, gathered)
    left: dict[Domain, list[str]] = {}
    chosen = []
    for _ in range(count):
        path = evenly(tree, rng) if rng.random() < even else tree.draw(rng)
        assert path is not None
        if not left.get(path):
            left[path] = [gathered[path][at] for at in rng.permutation(len(gathered[path]))]
        chosen.append(left[path].pop())
    return chosen


def train_round(
    round: int, student: Source, lesson: Sequence[Sample], settings: Bohdi, folder: Path, progress: Progress
) -> tuple[int, int]:
    """Train the target on a lesson; returns how many samples it could read, and the steps that it took.

    Raises:
        ConfigError: nothing in the lesson fits the model, a loss that is not a number, a full disk.
    """
    exchanges = [(one.question, one.answer) for one in lesson]
    examples = plain_examples(student, exchanges, settings.max_length)
    if not len(examples):
        raise ConfigError(
            f"None of the {len(lesson)} samples of round {round} can be read by the target within "
            f"{settings.max_length} tokens; raise max_length, or lower explore.max_answer."
        )
    # By content: a model may lie elsewhere now, and a sample of the same number be another.
    inputs = digest_of(read_as(student), settings.train, settings.max_length, exchanges)
    texts = Texts(examples, Examples([]))
    train(f"round {round}", student, texts, settings.train, folder, inputs, progress)
    return len(examples), steps_of(settings.train, len(examples))


def _with_samples(tree: KnowledgeTree, gathered: dict[Domain, list[str]]) -> KnowledgeTree:
    """The part of a tree that leads to samples."""
    part = KnowledgeTree(levels=tree.levels, window_size=tree.window_size, threshold=tree.threshold)
    for path, node in tree.nodes.items():
        if any(leaf[: len(path)] == path for leaf in gathered):
            part.add(path)
            part.nodes[path] = node
    return part


def plain_examples(student: Source, exchanges: Iterable[tuple[str, str]], longest: int) -> Examples:
    """Questions with their answers for plain fine-tuning; those that the model cannot read are left out."""
    tokenizer, stops = open_tokenizer(student)
    examples = []
    for question, answer in exchanges:
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        encoded = encode(tokenizer, stops, said, longest)
        if encoded is None:
            continue
        positions = np.array(encoded.positions, np.int64)
        targets = np.full((len(positions), 1), PADDING, np.int32)
        examples.append(
            Example(np.array(encoded.ids, np.int32), positions, targets, np.zeros_like(targets, np.float32))
        )
    return Examples(examples)
