"""A member's tokenizer: text to ids and ids to the bytes they stand for."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from alignment.errors import NO_CHAT_TEMPLATE, ConfigError, InvalidRequestError, one_line
from alignment.text import chat
from alignment.text.boundaries import Located, Span
from alignment.text.continuation import Continuation, continuation_of
from alignment.text.surfaces import kind_of, surfaces_of

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ControlToken(NamedTuple):
    """One control token (or none), with its place, as the library gives a text's."""

    ids: list[int]
    offsets: list[Span]


Encoded = tokenizers.Encoding | ControlToken


class Tokenizer:
    """The tokenizer of one checkpoint.

    Attributes:
        name: what the checkpoint is called in messages to people.
        hf: the transformers fast tokenizer.
        vocabulary_size: one more than the largest id with a meaning (`len(hf)` where no id is unused); a model
            may pad its embeddings beyond it.
        surfaces: the bytes each id stands for inside running text, of length `vocabulary_size`; None for
            special tokens and unused ids.
        byte_ids: for each of the 256 bytes the id that stands for just this byte (`<0xXX>` in a vocabulary with
            byte fallback), or None.
        special_ids: ids of the control tokens. Added tokens that are not special count as text.
        fingerprint: sha256 over what decides ids <-> text. Equal fingerprints need no vocabulary map.
    """

    def __init__(self, hf: Any, name: str = "the model") -> None:
        backend: tokenizers.Tokenizer = hf.backend_tokenizer
        pipeline = json.loads(backend.to_str())
        added = backend.get_added_tokens_decoder()
        self.name = name
        self.hf = hf
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        kind = kind_of(pipeline, name)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        surfaces = surfaces_of(pipeline, kind, vocabulary, added, self.special_ids)
        self.kind = kind
        self.surfaces = surfaces.of
        self.byte_ids = surfaces.byte_ids
        self.vocabulary_size = len(self.surfaces)
        self.fingerprint = _fingerprint(pipeline)
        self._pipeline = pipeline
        self._added = {id: token.content for id, token in added.items()}
        self._plain = derive(backend, encode_special_tokens=True)
        # What adds tokens around a text also trims the spaces off the places of tokens: these do neither.
        self._placing = derive(backend, encode_special_tokens=True, post_process=False)
        self._control = derive(backend, encode_special_tokens=False, post_process=False)

    @classmethod
    def load(cls, source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
        """Load the tokenizer of a folder or hub id; ConfigError, in one sentence, when that cannot be done."""
        from transformers import AutoTokenizer

        folder = Path(source)
        if folder.is_dir():
            if not any((folder / file).exists() for file in _TOKENIZER_FILES):
                raise ConfigError(
                    f"The folder {source} has no tokenizer.json: save the model's tokenizer into it."
                )
        elif folder.exists() or not _HUB_ID.fullmatch(source):
            raise ConfigError(f"The model folder {source} does not exist: check the path in the configuration.")
        try:
            hf = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:  # the libraries raise everything from OSError to bare Exception here
            raise ConfigError(_load_failure(source, folder.is_dir(), error)) from error
        if not getattr(hf, "is_fast", False):
            raise ConfigError(
                f"The model {source} has only a slow tokenizer: convert it to a tokenizer.json "
                "(transformers' save_pretrained of its fast tokenizer) first."
            )
        return cls(hf, source)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenise `text`, none of which is read as a control token.

        With `add_special_tokens` the tokenizer's own post-processor adds what it adds (BOS for most).
        """
        return list(self._plain.encode(checked(text), add_special_tokens=add_special_tokens).ids)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        """Tokenise a conversation with the model's own chat template.

        Control tokens come from the template alone: their spellings inside messages are plain text.
        `continue_final_message` leaves the last message open, instead of a generation prompt.
        InvalidRequestError when there is no template, or when it refuses the messages.
        """
        return self._ids(self._rendered(messages, add_generation_prompt, continue_final_message, template_kwargs))

    def locate_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
    ) -> tuple[list[int], Located]:
        """As `encode_chat`, with the places of the tokens in the messages' contents."""
        rendered = self._rendered(messages, add_generation_prompt, continue_final_message, template_kwargs)
        texts = chat.contents(
            self.hf,
            messages,
            rendered.text,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs or {},
        )
        pieces = self._pieces(rendered)
        spans = [(start + at, end + at) for at, piece in pieces for start, end in piece.offsets]
        return [id for _, piece in pieces for id in piece.ids], Located.of(spans, texts)

    def locate(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], Located]:
        """As `encode`, with the places of the tokens in `text`; those that were added around it are empty."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        inner = self._placing.encode(text, add_special_tokens=False)
        size = len(inner.ids)
        first = next((i for i in range(len(ids) - size + 1) if ids[i : i + size] == inner.ids), None)
        if first is None:  # the post-processor does more than add
            return ids, Located.of([(0, 0)] * len(ids), [None])
        around = [(0, 0)] * first, [(len(text), len(text))] * (len(ids) - first - size)
        return ids, Located.of([*around[0], *inner.offsets, *around[1]], [(0, len(text))])

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: dict[str, Any] | None,
    ) -> chat.Rendered:
        if not self.hf.chat_template:
            raise InvalidRequestError(
                f"The model {self.name} has no chat template: use the completions API with plain text instead.",
                param="messages",
                code=NO_CHAT_TEMPLATE,
            )
        rendered = chat.render(
            self.hf,
            messages,
            control=self._control_spelling,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs or {},
        )
        checked(rendered.text)
        return rendered

    def _ids(self, rendered: chat.Rendered) -> list[int]:
        return [id for _, piece in self._pieces(rendered) for id in piece.ids]

    def _pieces(self, rendered: chat.Rendered) -> list[tuple[int, Encoded]]:
        """A rendered conversation in tokens, piece by piece, each with the character it begins at.

        Where there are protected spans, control tokens are read outside of them only.
        """
        if not rendered.protected:
            return [(0, self._control.encode(rendered.text, add_special_tokens=False))]
        located = self._control.encode(rendered.masked(), add_special_tokens=False)
        pieces: list[tuple[int, Encoded]] = []
        done = 0
        for id, (start, end) in zip(located.ids, located.offsets, strict=True):
            if id in self.special_ids and end > start:
                pieces.append((done, self._piece(rendered.text[done:start], first=done == 0)))
                pieces.append((start, ControlToken([id], [(0, end - start)])))
                done = end
        return [*pieces, (done, self._piece(rendered.text[done:], first=done == 0))]

    def _piece(self, text: str, *, first: bool) -> Encoded:
        """Tokenise what stands between two control tokens, as the backend does inside a longer text."""
        if not text:
            return ControlToken([], [])
        if first or not self._prefixes_first_piece_only:
            return self._placing.encode(text, add_special_tokens=False)
        return self.continuation.backend.encode(text, add_special_tokens=False)

    @cached_property
    def _prefixes_first_piece_only(self) -> bool:
        return '"prepend_scheme": "first"' in json.dumps(self._pipeline["pre_tokenizer"])

    @cached_property
    def _control_spelling(self) -> chat.Spellings:
        return chat.Spellings.of(self._added[id] for id in self.special_ids)

    @cached_property
    def chat_lead(self) -> bytes:
        """The white space the template puts between its generation prompt and the answer's content.

        b" " for Llama 2 (`[/INST] Hello`), b"" for most and where there is no template.
        """
        return chat.lead(self.hf) if self.hf.chat_template else b""

    @cached_property
    def continuation(self) -> Continuation:
        """This tokenizer as it reads text that continues other text."""
        front = derive(self.hf.backend_tokenizer, encode_special_tokens=True, post_process=False)
        return continuation_of(self._pipeline, front)

    def decode(self, ids: Sequence[int]) -> str:
        """A whole text from its ids, special tokens included, as transformers decodes it: without the space that
        SentencePiece puts in front."""
        text: str = self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def surface_of(self, ids: Sequence[int]) -> bytes:
        """The surfaces of `ids` one after the other; special tokens and unused ids give nothing."""
        return b"".join(map(self._surface, ids))

    def _surface(self, id: int) -> bytes:
        return (self.surfaces[id] or b"") if 0 <= id < self.vocabulary_size else b""


def derive(
    backend: tokenizers.Tokenizer, *, encode_special_tokens: bool, post_process: bool = True
) -> tokenizers.Tokenizer:
    """A second front on the same vocabulary and merges, without truncation or padding.

    Whether special tokens are read from text is a state of the backend, which transformers flips on each call:
    a front of our own keeps the choice, whatever thread encodes. The model itself is shared, not copied.
    """
    front = tokenizers.Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(front, part, value)
    added = backend.get_added_tokens_decoder()
    in_order = (token for _, token in sorted(added.items()))
    for special, tokens in itertools.groupby(in_order, key=lambda token: bool(token.special)):
        (front.add_special_tokens if special else front.add_tokens)(list(tokens))
    if front.get_added_tokens_decoder().keys() != added.keys():
        # Ids of added tokens with holes between them can only be had from a file.
        front = tokenizers.Tokenizer.from_str(backend.to_str())
        front.no_truncation()
        front.no_padding()
    if not post_process:
        front.post_processor = None
    front.encode_special_tokens = encode_special_tokens
    return front


def checked(text: str) -> str:
    """`text`, or InvalidRequestError where it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "The text contains half of a surrogate pair, which is not a character: send valid Unicode."
        ) from error
    return text


def _fingerprint(pipeline: dict[str, Any]) -> str:
    parts = {key: pipeline.get(key) for key in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _load_failure(source: str, is_folder: bool, error: Exception) -> str:
    reason = one_line(error)
    if is_folder and (Path(source) / "tokenizer.json").exists():
        return f"The tokenizer.json of {source} cannot be read ({reason}): save or download the tokenizer again."
    if is_folder:
        return (
            f"The folder {source} has only a slow tokenizer, which could not be converted ({reason}): "
            "save a tokenizer.json into it."
        )
    return (
        f"The model {source} is neither a folder on this machine nor one whose tokenizer the model hub gives out "
        f"({type(error).__name__}): check the name, or download it and give the path of its folder."
    )
