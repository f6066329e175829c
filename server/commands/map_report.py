"""Report on a vocabulary map: the share of a vocabulary that it carries, and the targets of single tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.table import Column, Table
from rich.text import Text

from alignment.errors import ConfigError
from alignment.methods.held_out import HeldOut
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap
from server.commands.tables import right, table

_EXAMPLES = 10
_SHOWN = 4  # entries of an example
_READABLE = 3  # characters of a word that says something


def reach_of(map: VocabMap, source: Tokenizer) -> float:
    """The share of the source's text tokens that have a way into the target's vocabulary."""
    text = _text_ids(source)
    return float((map.weights[text] > 0).any(axis=1).mean()) if len(text) else 0.0


def summary_table(map: VocabMap, source: Tokenizer, target: Tokenizer, found: HeldOut | None = None) -> Table:
    """The figures of a map, as a table."""
    text = _text_ids(source)
    counts = (map.weights[text] > 0).sum(axis=1)
    covered = counts > 0
    same = [_is_same(map, id, source, target) for id in text]
    sums = map.weights[text].sum(axis=1)[covered]
    result = table("Map", "of the tokens that stand for text", right(""))
    result.add_row("tokens", f"{len(text):,}")
    result.add_row("with a way into the other vocabulary", f"{100 * reach_of(map, source):.1f}%")
    result.add_row("whose best entry is the same text", f"{100 * sum(same) / max(1, len(same)):.1f}%")
    result.add_row("entries per row that has any", f"{counts[covered].mean() if covered.any() else 0:.2f}")
    result.add_row("sum of such a row", f"{sums.mean() if len(sums) else 0:.2f}")
    if found is not None:
        result.add_row(f"{found.anchors:,} anchors held out, found as the best entry", f"{100 * found.best:.1f}%")
        result.add_row("found among the entries", f"{100 * found.any:.1f}%")
    return result


def examples_table(map: VocabMap, source: Tokenizer, target: Tokenizer) -> Table:
    """Ten rows for a person to judge: words spread over the vocabulary, preferably ones that the target lacks."""
    covered = [int(id) for id in _text_ids(source) if (map.weights[id] > 0).any()]
    words = [id for id in covered if _is_word(source.surfaces[id])] or covered
    foreign = [id for id in words if not _is_same(map, id, source, target)]
    result = table("Examples", right("id"), Column("token", no_wrap=True), "goes to")
    for id in _spread(foreign or words):
        entries = [f"{shown(target, to)} {weight:.2f}" for to, weight in _entries(map, id)]
        more = ["..."] if len(entries) > _SHOWN else []
        result.add_row(str(id), Text(shown(source, id)), Text(", ".join(entries[:_SHOWN] + more)))
    return result


def row_table(map: VocabMap, id: int, target: Tokenizer) -> Table:
    """The targets of one token, as a table."""
    result = table("", right("id"), "goes to", right("weight"))
    for to, weight in _entries(map, id):
        result.add_row(str(to), Text(shown(target, to)), f"{weight:.4f}")
    if not result.row_count:
        result.add_row("", "nothing", "")
    return result


def shown(tokenizer: Tokenizer, id: int) -> str:
    """A token as people read it: its text in quotes, its bytes where they are no text, its name if special."""
    surface = tokenizer.surfaces[id]
    if surface is None:
        return str(tokenizer.hf.convert_ids_to_tokens(id) or f"(id {id}, unused)")
    try:
        return repr(surface.decode())
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in surface)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token given as an id, as its text, or as the vocabulary spells it.

    Raises:
        ConfigError: there is no such token.
    """
    size = tokenizer.vocabulary_size
    if token.isascii() and token.isdecimal():
        if int(token) < size:
            return int(token)
        raise ConfigError(f"There is no token {token}: {tokenizer.name} has the ids 0 to {size - 1}.")
    wanted = token.encode(errors="surrogateescape")
    if wanted and wanted in tokenizer.surfaces:
        return tokenizer.surfaces.index(wanted)
    spelled: dict[str, int] = tokenizer.hf.get_vocab()
    if token in spelled:
        return spelled[token]
    pieces = tokenizer.continuation.encode(token) if token.isprintable() else []
    hint = f": it is spelled {' '.join(shown(tokenizer, id) for id in pieces)}" if pieces else ""
    raise ConfigError(f"{token!r} is no single token of {tokenizer.name}{hint}; give one token, or its id.")


def _text_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    return np.array([id for id, surface in enumerate(tokenizer.surfaces) if surface is not None], np.int64)


def _is_same(map: VocabMap, id: int, source: Tokenizer, target: Tokenizer) -> bool:
    """Return whether the heaviest entry of a row stands for the same bytes."""
    best = int(map.weights[id].argmax())
    return bool(map.weights[id, best] > 0) and target.surfaces[map.target_ids[id, best]] == source.surfaces[id]


def _entries(map: VocabMap, id: int) -> list[tuple[int, float]]:
    """The target ids and weights of a row, best first."""
    order = np.argsort(-map.weights[id], kind="stable")
    row = [(int(map.target_ids[id, slot]), float(map.weights[id, slot])) for slot in order]
    return [(to, weight) for to, weight in row if weight > 0]


def _is_word(surface: bytes | None) -> bool:
    text = (surface or b"").decode(errors="replace").strip()
    return len(text) >= _READABLE and text.isalpha()


def _spread(ids: list[int]) -> list[int]:
    """Ten of `ids`, evenly; all where there are no more."""
    count = min(_EXAMPLES, len(ids))
    return [ids[number * len(ids) // count] for number in range(count)]
