"""Tokenizer of one member: text to ids, and ids to the bytes that they stand for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import tokenizers

from alignment.errors import NO_CHAT_TEMPLATE, ConfigError, InvalidRequestError, PromptTooLongError
from alignment.text import chat
from alignment.text.boundaries import Indices, Located, Span
from alignment.text.characters import Beginnings
from alignment.text.continuation import Continuation, continuation_of
from alignment.text.control import Encoded, Respelling, Spelled, control_ids, place_of
from alignment.text.conversations import Conversations
from alignment.text.fronts import derive
from alignment.text.length import Lengths
from alignment.text.loading import as_the_file_says, fast_tokenizer, require_lossless, template_file
from alignment.text.reverse import Reverse
from alignment.text.room import Room
from alignment.text.surfaces import components, fingerprint_of, kind_of, surfaces_of
from alignment.text.template import Template

_COMPATIBILITY = {"NFKC", "NFKD", "Precompiled"}  # normalisers that make characters of others
FAR = 8  # times the limit of tokens, from where on a prompt's are only counted
# UTF-8 uses all but these.
_BYTES_OF_TEXT = sorted({*range(0xF5)} - {0xC0, 0xC1})


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
        special_ids: ids of the control tokens (see `control`). Added tokens that are none count as text.
        fingerprint: sha256 over what decides ids <-> text. Equal fingerprints need no vocabulary map.
        findings: what was found when it was loaded, in sentences.
    """

    def __init__(self, hf: Any, name: str = "the model", *, findings: Sequence[str] = ()) -> None:
        backend: tokenizers.Tokenizer = hf.backend_tokenizer
        pipeline = json.loads(backend.to_str())
        added = backend.get_added_tokens_decoder()
        self.name = name
        self.hf = hf
        kind = kind_of(pipeline, name)
        require_lossless(pipeline, name)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.template = Template(hf) if hf.chat_template else None
        written = self._written(backend)
        self.special_ids = control_ids(
            vocabulary,
            added,
            hf.all_special_ids,
            written,
            kind=kind,
            of_model=backend.model.id_to_token,
            ends={hf.eos_token_id},
        )
        surfaces = surfaces_of(pipeline, kind, vocabulary, added, self.special_ids)
        self.kind = kind
        self.surfaces = surfaces.of
        self.byte_ids = surfaces.byte_ids
        self.vocabulary_size = len(self.surfaces)
        self.fingerprint = fingerprint_of(pipeline)
        for token in pipeline["added_tokens"]:
            token["special"] = token["id"] in self.special_ids
        self._pipeline = pipeline
        self.findings = [*findings, *self._found()]
        names = [text.encode() for text in self.spelling.values()]
        self._lengths = Lengths.of([*self.surfaces, *names], pipeline)
        self._added = frozenset(added)
        self._plain = self._front(encode_special_tokens=True)
        # What adds tokens around a text also trims the spaces off the places of tokens: these do neither.
        self._placing = self._front(encode_special_tokens=True, post_process=False)
        self._control = self._front(encode_special_tokens=False, post_process=False)

    def _found(self) -> list[str]:
        """Return the remarks on this tokenizer and its template for the log, in sentences."""
        flagged = {
            id for id, token in self.hf.backend_tokenizer.get_added_tokens_decoder().items() if token.special
        }
        unflagged = sorted(text for id, text in self.spelling.items() if id not in flagged)
        found = self.template.findings() if self.template else []
        unspelled = [byte for byte in _BYTES_OF_TEXT if self.byte_ids[byte] is None]
        if self.kind == "byte_level" and unspelled and self._unknown is None:
            found.append(
                f"{len(unspelled)} bytes of text have no token: the model reads a text without the characters "
                "that take them."
            )
        if unflagged:
            shown = ", ".join(unflagged[:5]) + (", ..." if len(unflagged) > 5 else "")
            found.append(f"{len(unflagged)} control tokens are not flagged special in the file: {shown}.")
        return found

    def _front(self, *, encode_special_tokens: bool, post_process: bool = True) -> tokenizers.Tokenizer:
        return derive(
            self.hf.backend_tokenizer,
            control=self.special_ids,
            encode_special_tokens=encode_special_tokens,
            post_process=post_process,
        )

    def _written(self, backend: tokenizers.Tokenizer) -> set[int]:
        """The ids of what the template writes around messages, and the added tokens in its source."""
        if self.template is None:
            return set()
        added = backend.get_added_tokens_decoder().keys()

        def ids(texts: Collection[str]) -> set[int]:
            return {id for read in backend.encode_batch(list(texts), add_special_tokens=False) for id in read.ids}

        return ids(self.template.frames()) | (ids(self.template.texts) & added)

    @classmethod
    def load(
        cls,
        source: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Load the tokenizer of a folder or hub id; ConfigError, in one sentence, when that cannot be done.

        `chat_template` is a file whose text takes the place of the checkpoint's own template.
        """
        hf = fast_tokenizer(source, revision, trust_remote_code)
        if chat_template is not None:
            hf.chat_template = template_file(chat_template)
        tokenizer = cls(hf, source, findings=as_the_file_says(hf, source, revision))
        if chat_template is not None and tokenizer.template and (reason := tokenizer.template.fault):
            raise ConfigError(f"The chat template {chat_template} renders no conversation ({reason}): mend it.")
        return tokenizer

    def encode(
        self, text: str, *, add_special_tokens: bool, limit: int | None = None, room: Room | None = None
    ) -> list[int]:
        """Tokenise `text`, none of which is read as a control token.

        With `add_special_tokens` the tokenizer's own post-processor adds what it adds (BOS for most).
        InvalidRequestError for a text that must come to more than `limit` tokens, which is not read, and for one
        that comes to far more. Where there is a `room` the text is shortened to it.
        """
        return self.shortened(self._encoded(text, add_special_tokens, limit).ids, room)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
        limit: int | None = None,
        room: Room | None = None,
    ) -> list[int]:
        """Tokenise a conversation with the model's own chat template.

        Control tokens come only from the template: their spellings inside messages are plain text.
        `continue_final_message` leaves the last message open, instead of a generation prompt.
        InvalidRequestError when there is no template, when it refuses the messages, or when they must come to more
        than `limit` tokens or come to far more. Where there is a `room` the conversation is shortened to it.
        """
        rendered = self._rendered(messages, add_generation_prompt, continue_final_message, template_kwargs, limit)
        pieces = self._pieces(rendered, messages, limit)
        return self.shortened([id for _, piece in pieces for id in piece.ids], room)

    def locate_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
        limit: int | None = None,
        room: Room | None = None,
    ) -> tuple[list[int], Located]:
        """As `encode_chat`, with the places of the tokens in the messages' contents."""
        rendered = self._rendered(messages, add_generation_prompt, continue_final_message, template_kwargs, limit)
        texts = chat.contents(self._require_template(), messages, rendered)
        return self._located(self._pieces(rendered, messages, limit), texts, room)

    def locate(
        self, text: str, *, add_special_tokens: bool, limit: int | None = None, room: Room | None = None
    ) -> tuple[list[int], Located]:
        """As `encode`, with the places of the tokens in `text`; those that were added around it are empty."""
        ids = self._encoded(text, add_special_tokens, limit).ids
        inner = self._spelled(_read(self._placing, text), text)
        of_text = inner.ids
        size, end = len(of_text), len(text)
        first = next((i for i in range(len(ids) - size + 1) if ids[i : i + size] == of_text), None)
        if first is None:  # the post-processor does more than add
            return self._located([(0, Spelled(ids, [(0, 0)] * len(ids)))], [None], room)
        before, after = ids[:first], ids[first + size :]
        pieces: list[tuple[int, Encoded]] = [
            (0, Spelled(before, [(0, 0)] * len(before))),
            (0, inner),
            (0, Spelled(after, [(end, end)] * len(after))),
        ]
        return self._located(pieces, [(0, end)], room)

    def shortened(self, ids: list[int], room: Room | None) -> list[int]:
        """The ids of a prompt that stay where there is a `room`, all where that is None."""
        return ids if room is None else [ids[index] for index in room.kept(ids, self.hf.bos_token_id)]

    def _encoded(self, text: str, add_special_tokens: bool, limit: int | None) -> Encoded:
        self._require_length(text, limit, "prompt")
        encoding = _read(self._plain, checked(text), add_special_tokens=add_special_tokens)
        self._require_near(len(encoding), text, limit, "prompt")
        return self._spelled(encoding, text)

    def _pieces(
        self, rendered: chat.Rendered, messages: list[dict[str, Any]], limit: int | None
    ) -> list[tuple[int, Encoded]]:
        whole = self._conversations.read(rendered.text)
        self._require_near(len(whole), rendered.text, limit, "messages")
        return self._conversations.pieces(rendered, whole, messages)

    def _located(
        self, pieces: list[tuple[int, Encoded]], texts: Sequence[Span | None], room: Room | None
    ) -> tuple[list[int], Located]:
        """The ids of a prompt and their places, of pieces with the characters that they begin at."""
        ids = [id for _, piece in pieces for id in piece.ids]
        kept = np.arange(len(ids)) if room is None else room.kept(ids, self.hf.bos_token_id)

        def spans(indices: Indices) -> Iterator[Span]:
            begin = 0
            for at, piece in pieces:
                end = begin + len(piece.ids)
                for index in indices[(indices >= begin) & (indices < end)].tolist():
                    first, last = place_of(piece, index - begin)
                    yield first + at, last + at
                begin = end

        return [ids[index] for index in kept], Located.of_kept(spans, kept, texts)

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: dict[str, Any] | None,
        limit: int | None,
    ) -> chat.Rendered:
        return chat.render(
            self._require_template(),
            messages,
            shades=self._shades,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs or {},
            require=lambda text: self._require_length(checked(text), limit, "messages"),
        )

    def _require_length(self, text: str, limit: int | None, param: str) -> None:
        if limit is not None and (least := self.least_tokens(text)) > limit:
            raise _too_long(least, text, limit, param)

    def _require_near(self, tokens: int, text: str, limit: int | None, param: str) -> None:
        """Refuse what is `FAR` too long. What is less so may be for a member that takes no part in the answer."""
        if limit is not None and tokens > FAR * limit:
            raise _too_long(tokens, text, limit, param)

    def least_tokens(self, text: str) -> int:
        """The number of tokens that `text` comes to at the least, found without reading it."""
        return self._lengths.least_tokens(text)

    def _require_template(self) -> Template:
        if self.template is None:
            raise InvalidRequestError(
                f"The model {self.name} has no chat template: use the completions API with plain text instead.",
                param="messages",
                code=NO_CHAT_TEMPLATE,
            )
        return self.template

    @cached_property
    def _conversations(self) -> Conversations:
        return Conversations(
            self.name,
            partial(_read, self._control),
            self._piece,
            self.special_ids,
            self._added,
            self.spelling,
            self._unknown,
            self._shades,
        )

    def _piece(self, text: str, after_added: bool | None) -> Encoded:
        """Tokenise what stands between two control tokens, as the backend does inside a longer text.

        `after_added` says whether the control token before is an added token; None where there is none.
        """
        if not text:
            return Spelled([], [])
        if after_added is None or (after_added and not self._prefixes_first_piece_only):
            return self._spelled(_read(self._placing, text), text)
        return self._spelled(_read(self.continuation.backend, text), text)

    def _spelled(self, encoding: tokenizers.Encoding, text: str) -> Encoded:
        respelling = self.continuation.respelling
        return respelling.spelled(encoding, text) if respelling else encoding

    @cached_property
    def _prefixes_first_piece_only(self) -> bool:
        return '"prepend_scheme": "first"' in json.dumps(self._pipeline["pre_tokenizer"])

    @cached_property
    def _shades(self) -> chat.Shades:
        literals = self.template.literals if self.template else ()
        rewrites = any(step["type"] in _COMPATIBILITY for step in components(self._pipeline["normalizer"]))
        normalized = self.hf.backend_tokenizer.normalizer.normalize_str if rewrites else None
        return chat.Shades.of(self.spelling.values(), literals, normalized)

    @cached_property
    def spelling(self) -> dict[int, str]:
        """The texts of the control tokens, by id."""
        texts = self.hf.backend_tokenizer.id_to_token
        return {id: text for id in self.special_ids if (text := texts(id)) is not None}

    def control_tokens(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of `texts` that are spellings of control tokens, by id."""
        id_of = self.hf.backend_tokenizer.token_to_id
        return {id: text for text in texts if (id := id_of(text)) in self.special_ids}

    @cached_property
    def _unknown(self) -> int | None:
        """The id that stands for characters that the vocabulary lacks."""
        model = self._pipeline["model"]
        id: int | None = model.get("unk_id")
        if model["type"] == "BPE":
            id = self.hf.backend_tokenizer.token_to_id(model.get("unk_token") or "")
        return id

    @cached_property
    def chat_lead(self) -> bytes:
        """The white space the template puts between its generation prompt and the answer's content.

        b" " for Llama 2 (`[/INST] Hello`), where the template writes it, and for Phi-3, whose tokenizer puts it
        there after a control token; b"" for most and where there is no template.
        """
        if self.template is None:
            return b""
        question, answer = {"role": "user", "content": "Tutti"}, {"role": "assistant", "content": "Ripieno"}
        try:
            prompt = self.encode_chat([question])
            whole = self.encode_chat([question, answer], add_generation_prompt=False)
        except InvalidRequestError:  # a template that refuses so plain a conversation has no known lead
            return b""
        if whole[: len(prompt)] != prompt:
            return self.template.lead
        between, said, _ = self.surface_of(whole[len(prompt) :]).partition(b"Ripieno")
        return between if said and not between.strip() else b""

    @cached_property
    def continuation(self) -> Continuation:
        """This tokenizer as it reads text that continues other text."""
        front = self._front(encode_special_tokens=True, post_process=False)
        continuation = continuation_of(self._pipeline, front)
        of_model = {id: text for id, text in self.spelling.items() if front.model.id_to_token(id) is not None}
        if not of_model:
            return continuation
        respelling = Respelling(
            of_model,
            lambda text: front.encode(text, add_special_tokens=False).ids,
            self.surfaces,
            self.byte_ids,
            self._unknown,
        )
        return replace(continuation, respelling=respelling)

    @cached_property
    def reverse(self) -> Reverse:
        """The way back from bytes to ids."""
        return Reverse(self.surfaces, self.byte_ids, self.continuation)

    @cached_property
    def beginnings(self) -> Beginnings:
        """How this tokenizer spells beginnings of characters."""
        return Beginnings(self.continuation)

    def decode(self, ids: Sequence[int]) -> str:
        """A whole text from its ids, special tokens included, as transformers decodes it: without the space that
        SentencePiece puts in front."""
        text: str = self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def surface_of(self, ids: Sequence[int]) -> bytes:
        """The surfaces of `ids` one after the other; special tokens and unused ids give nothing."""
        return b"".join(map(self._surface, ids))

    def written(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each of a prompt's ids adds to its text.

        They are the surfaces, without the space that this tokenizer itself puts before a text.
        """
        surfaces = [self._surface(id) for id in ids]
        first = next((index for index, surface in enumerate(surfaces) if surface), None)
        if first is not None and self.adds_a_space:
            surfaces[first] = surfaces[first].removeprefix(b" ")
        return surfaces

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that a prompt of these ids stands for."""
        return b"".join(self.written(ids)).decode(errors="replace")

    @cached_property
    def adds_a_space(self) -> bool:
        """Return whether a text is tokenised as if a space stood before it, as SentencePiece does."""
        return any(self.surface_of(self.encode(text, add_special_tokens=False))[:1] == b" " for text in "a1.")

    def _surface(self, id: int) -> bytes:
        return (self.surfaces[id] or b"") if 0 <= id < self.vocabulary_size else b""


def _read(front: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False) -> tokenizers.Encoding:
    """Tokenise one text. Reading a batch lets go of Python's lock, which reading a single text does not."""
    [encoding] = front.encode_batch([text], add_special_tokens=add_special_tokens)
    return encoding


def _too_long(tokens: int, text: str, limit: int, param: str) -> PromptTooLongError:
    """The error of a text that has at least so many tokens, more than `limit`."""
    return PromptTooLongError(
        f"This model's maximum context length is {limit} tokens, but the prompt has at least {tokens} "
        f"({len(text)} characters): shorten it.",
        tokens=tokens,
        limit=limit,
        param=param,
    )


def checked(text: str) -> str:
    """Return `text`; raise InvalidRequestError where it cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "The text contains half of a surrogate pair, which is not a character: send valid Unicode."
        ) from error
    return text
