"""Reading: what an engine predicts after chosen positions of many texts, several of them at a time.

It drives an engine directly, on the thread that calls it: nothing else uses that engine meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from alignment.errors import ConfigError
from alignment.text.tokenizer import Tokenizer
from fusion.assembly.checkpoints import read_vocabulary
from fusion.core import Advance, AdvanceFailed, NextTokens
from fusion.distill.training.settings import Source, digest_of
from fusion.members.engine import Engine
from fusion.members.identity import content_digest
from fusion.members.registry import EngineSpec, load_engine


@contextmanager
def open_engine(source: Source, best: int) -> Iterator[Engine]:
    """A source's engine, which answers with the `best` most probable tokens; shut down at the end.

    Raises:
        ConfigError: whatever keeps the checkpoint from being run.
    """
    arguments = asdict(source) | {"candidates": best}
    engine = load_engine(EngineSpec(arguments.pop("engine"), arguments))
    try:
        yield engine
    finally:
        engine.shutdown()


def open_tokenizer(source: Source) -> tuple[Tokenizer, tuple[int, ...]]:
    """A source's tokenizer and the ids that end its answers.

    Raises:
        ConfigError: it cannot be loaded, has no chat template or no end token.
    """
    vocabulary = read_vocabulary(source.source, revision=source.revision)
    if not vocabulary.tokenizer.hf.chat_template:
        raise ConfigError(f"{source.source} has no chat template, so it cannot read conversations; give it one.")
    return vocabulary.tokenizer, vocabulary.stop_ids


def read_as(source: Source) -> str:
    """A digest of what a source makes of a conversation: its weights, tokenizer, chat template and ends.

    Raises:
        ConfigError: as `open_tokenizer`.
    """
    tokenizer, stops = open_tokenizer(source)
    weights = content_digest(source.source, revision=source.revision)
    return digest_of(weights, tokenizer.fingerprint, str(tokenizer.hf.chat_template), sorted(stops))


def read_all(
    engine: Engine, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
) -> list[NextTokens]:
    """Return the distributions after these positions of every text, and after its end.

    Args:
        engine: idle; idle again afterwards.
        texts: token ids, each at least one and within the engine's context.
        positions: ascending indices below the last, of each text.

    Returns:
        An answer a text, in order; see `NextTokens` with `score="all"`.

    Raises:
        ConfigError: the engine cannot read one of the texts.
    """
    answers: dict[int, NextTokens] = {}
    waiting = deque(range(len(texts)))
    held: dict[int, int] = {}  # tokens of cache by open sequence
    room = engine.capacity
    while waiting or held:
        work = []
        while waiting and len(held) < room.sequences:
            size = -(-len(texts[waiting[0]]) // room.block) * room.block
            if held and sum(held.values()) + size > room.cache_tokens:
                break
            number = waiting.popleft()
            held[number] = size
            work.append(Advance(number, 0, texts[number], "all", positions[number]))
        if work:
            engine.add(list(work))
        for answer in engine.step():
            del held[answer.sequence]
            engine.close([answer.sequence])
            if isinstance(answer, NextTokens):
                answers[answer.sequence] = answer
                continue
            assert isinstance(answer, AdvanceFailed)
            if not held:  # other texts do not take the room
                raise ConfigError(
                    f"A text of {len(texts[answer.sequence])} tokens cannot be read: {answer.reason}"
                )
            waiting.append(answer.sequence)
    return [answers[number] for number in range(len(texts))]
