"""Unknown fields: 400 for features that would change the answer, a line in the log for the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from alignment.errors import UnsupportedError
from server.http.errors import shorten
from server.http.protocol.common import RequestModel

log = logging.getLogger(__name__)

NOTHING: tuple[object, ...] = (None, False, "", [], {})

# Ignoring these would give an answer other than the one asked for. To each the values that ask for nothing.
UNBUILT: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        (
            "add_special_tokens",
            "audio",
            "chat_template",
            "documents",
            "echo",
            "functions",
            "logits_processors",
            "logprob_token_ids",
            "prompt_embeds",
            "repetition_detection",
            "return_prompt_text",
            "return_tokens_as_token_ids",
            "suffix",
            "use_beam_search",
            "watermarking",
        ),
        NOTHING,
    ),
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    "skip_special_tokens": (None, True),
    "web_search_options": (None,),
}

# Where leaving it out is not all there is to say.
REASONS = {
    "add_special_tokens": "the chat template writes the special tokens of a chat",
    "echo": "the prompt of a chat is its template's; return_prompt_text returns it",
    "watermarking": "the distribution of an ensemble removes the mark of any one member",
}

MAX_LOGGED = 1000
_logged: set[str] = set()


def check_unknown(body: RequestModel) -> None:
    """Refuse what is not built and log, once per name, what is ignored.

    Raises:
        UnsupportedError: naming the field.
    """
    for name, value in (body.model_extra or {}).items():
        if name in UNBUILT and not _asks_nothing(value, UNBUILT[name]):
            why = f": {REASONS[name]}" if name in REASONS else " yet"
            raise UnsupportedError(f"{name} is not supported{why}; leave it out.", param=name)
    for name in _unknown(body, ""):
        # Bounded, so that made-up names fill neither the log nor the memory.
        if name not in _logged and len(_logged) < MAX_LOGGED:
            _logged.add(name)
            log.info("requests hold the unknown field %s, which is ignored", shorten(name))


def _asks_nothing(value: object, nothing: tuple[object, ...]) -> bool:
    return any(type(value) is type(harmless) and value == harmless for harmless in nothing)  # 0 is not false


def _unknown(body: RequestModel, prefix: str) -> Iterator[str]:
    yield from (prefix + name for name in body.model_extra or {} if prefix or name not in UNBUILT)
    for name, value in body:
        inside = value if isinstance(value, list) else [value]
        if inside and isinstance(inside[0], int):
            continue  # a prompt of ids, which may be long
        for item in inside:
            if isinstance(item, RequestModel):
                yield from _unknown(item, f"{prefix}{name}.")
