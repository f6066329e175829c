"""The exact map: tokens of two vocabularies that stand for the same bytes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from alignment.methods.method import Method
from alignment.text.tokenizer import Tokenizer
from alignment.vocab_map import VocabMap


def exact_map(
    source: Tokenizer,
    target: Tokenizer,
    *,
    source_stops: Collection[int],
    target_stop: int,
    source_lead: bytes = b"",
    target_lead: bytes = b"",
) -> VocabMap:
    """Map each source id onto the target id with the same surface, weight 1.

    Every id of `source_stops` maps onto `target_stop`. Other special tokens, unused ids and tokens whose bytes no
    target token stands for have empty rows. Of several target ids with one surface that of
    `Reverse.ids_by_surface` is taken.

    The leads are for the first position of an answer, where a template may glue a space to the first word: a
    surface that begins with its side's lead is compared without it, so that "▁Hello" after `[/INST]` is "Hello"
    after `<|im_start|>assistant\\n`. A target that had the lead goes before one that had not.
    """
    ids_of: dict[bytes, int] = {}
    in_order = list(target.reverse.ids_by_surface.items())
    if target_lead:
        in_order.sort(key=lambda item: not item[0].startswith(target_lead))
    for surface, id in in_order:
        if after := _after(surface, target_lead):
            ids_of.setdefault(after, id)
    of_source = (ids_of.get(_after(surface, source_lead), -1) for surface in source.surfaces)
    target_ids = np.fromiter(of_source, np.int32, source.vocabulary_size)
    target_ids[list(source_stops)] = target_stop
    return VocabMap(target_ids[:, None], (target_ids[:, None] >= 0).astype(np.float32), target.vocabulary_size)


def _after(surface: bytes | None, lead: bytes) -> bytes:
    """`surface` without a leading `lead`; empty when nothing is left to compare."""
    return b"" if surface is None else surface.removeprefix(lead)


METHOD = Method("a token goes to the one that stands for the same bytes", lambda request: request.by(exact_map))
