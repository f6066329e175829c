"""Stops: the tokens that end an answer, and which of them a model writes at the end of its turn.

A checkpoint lists them in up to three places that often disagree. All of them count, and the first is the one that
the chat template writes after an assistant's message: an ensemble adds the members' ends up there.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer

_ASKED, _ANSWERED, _ASKED_AGAIN = "Tutti", "Ripieno", "Concertino"


def ordered_stops(
    tokenizer: Tokenizer, generation: Sequence[int], configuration: Sequence[int]
) -> tuple[int, ...]:
    """All ids that end an answer, the one that ends a turn of the chat template first; empty where none is known.

    Args:
        generation: eos_token_id of generation_config.json, in its order.
        configuration: that of config.json, where a library's default may stand for a token of text: what is
            neither an added token nor the tokenizer's own end counts only if nothing else is listed.
    """
    eos = tokenizer.hf.eos_token_id
    own = () if eos is None else (eos,)
    listed = [*generation, *own]
    control = tokenizer.special_ids | set(tokenizer.hf.added_tokens_decoder)
    listed += [id for id in configuration if id in control or not listed]
    stops = tuple(dict.fromkeys(id for id in listed if 0 <= id < tokenizer.vocabulary_size))
    end = turn_end(tokenizer, stops) if len(stops) > 1 else None
    return stops if end is None else (end, *(id for id in stops if id != end))


def turn_end(tokenizer: Tokenizer, stops: Sequence[int]) -> int | None:
    """Which of `stops` the chat template writes first after an assistant's message.

    None where there is no template, where it refuses a plain conversation, and where it writes none of them there.
    """
    answered = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    for messages in (answered, [*answered, {"role": "user", "content": _ASKED_AGAIN}]):
        try:
            ids = tokenizer.encode_chat(messages, add_generation_prompt=False)
        except InvalidRequestError:
            continue
        after = _after_answer(tokenizer, ids)
        if (end := next((id for id in after if id in stops), None)) is not None:
            return end
    return None


def _after_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> Sequence[int]:
    """The tokens after the assistant's message."""
    text, answer = b"", _ANSWERED.encode()
    for index, id in enumerate(ids):
        text += tokenizer.surface_of([id])
        if answer in text:
            return ids[index + 1 :]
    return ()
