"""An ensemble: members, their pivot, and the maps that bring every vocabulary into the pivot's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from alignment.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequestError, PromptTooLongError
from alignment.text.boundaries import Located
from alignment.text.ids import require_ids
from alignment.text.room import Room
from alignment.text.tokenizer import Tokenizer
from fusion.core import Member, OnMemberFailure, Prompt
from fusion.learned.weights import LearnedWeights
from fusion.maps import Maps, identity
from fusion.options import AUTO, FusionParams, Place
from fusion.sequence.grammar_table import GrammarTable
from fusion.terms import terms_of
from fusion.views import ModelView, original_spans

Reading = tuple[list[int], Located | None]
"""Ids of a prompt, and their places in it where it can be scored."""


@dataclass(frozen=True, slots=True)
class Model:
    """A running checkpoint: its engine, its tokenizer, the ids that end its answers, and what it was made from.

    The first of `stop_ids` ends a turn of its chat template. `parents` names the models that it was distilled
    from. With `view` it is one of several views of a checkpoint, which share its engine. `sampling` holds what its
    checkpoint recommends of the options of sampling.
    """

    member: Member
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    origin: str
    parents: tuple[str, ...] = ()
    view: ModelView = field(default_factory=ModelView)
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name it has in the configuration."""
        return self.view.name or self.member.name

    @property
    def engine(self) -> str:
        """The name of the member that runs it."""
        return self.member.name


@dataclass(frozen=True)
class View:
    """An ensemble with its pivot decided: whose tokens are emitted, and the maps into its vocabulary.

    The end is one event: in `maps` every end of every member goes to `end`. `of` is the one whose members these
    are views of.

    Attributes:
        ends: the ids that end an answer of any member with the pivot's tokenizer.
        masked: whether the pivot's other special tokens go nowhere, since there are members that could not follow.
    """

    models: dict[str, Model]
    pivot: str
    maps: dict[str, Maps]
    ends: frozenset[int] = frozenset()
    masked: bool = False
    of: View | None = field(default=None, repr=False)
    # Maps for requests, while a sequence uses them; each is two numbers for every token.
    _own: WeakValueDictionary[object, Maps] = field(default_factory=WeakValueDictionary, repr=False, compare=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The pivot's tokenizer: ids in requests and answers are its ids."""
        return self.models[self.pivot].tokenizer

    @property
    def end(self) -> int:
        """The pivot's id that stands for the end of the answer, whichever end a member meant."""
        return self.models[self.pivot].stop_ids[0]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The pivot's ids that end an answer."""
        return frozenset(self.models[self.pivot].stop_ids)

    @cached_property
    def vocabulary_size(self) -> int:
        """The number of ids that members can name in the pivot's vocabulary, padding included."""
        sizes = [m.member.vocabulary_size for n, m in self.models.items() if self.follows_ids(n)]
        return max(self.tokenizer.vocabulary_size, *sizes)

    @cached_property
    def grammar_table(self) -> GrammarTable:
        """The pivot's vocabulary, as grammars are compiled for it."""
        if self.of is not None:
            return self.of.grammar_table
        return GrammarTable(self.tokenizer, width=self.vocabulary_size, end_ids=self.models[self.pivot].stop_ids)

    def surface(self, token: int) -> bytes:
        """The bytes a pivot token stands for; none for special tokens and for the padding of the vocabulary."""
        surfaces = self.tokenizer.surfaces
        return (surfaces[token] or b"") if token < len(surfaces) else b""

    def follows_ids(self, name: str) -> bool:
        """Return whether this member takes the pivot's ids as they are: it has the pivot's tokenizer."""
        return self.models[name].tokenizer.fingerprint == self.tokenizer.fingerprint

    def maps_of(self, name: str, *, distinct: bool = False, kept: frozenset[int] = frozenset()) -> Maps:
        """A member's maps for a request.

        Args:
            distinct: the request names one of the pivot's ends apart from the others (see `Ends.distinct`):
                members with the pivot's tokenizer keep these ends as they are.
            kept: special tokens that these members keep although others could not follow. Under a constraint all
                of them, since it says itself where one may come, such as the one that opens a tool call; else
                those that end the answer because the request wants to stop there.
        """
        maps = self.maps[name]
        if maps.rest is None or not (distinct or kept) or not self.follows_ids(name):
            return maps
        key = name, distinct, kept
        if (found := self._own.get(key)) is None:
            found = self._own[key] = self.own_maps(name, distinct=distinct, kept=kept)
        return found

    def own_maps(self, name: str, *, distinct: bool = False, kept: frozenset[int] = frozenset()) -> Maps:
        """The maps of a member with the pivot's tokenizer: the identity, but for ends and what is masked.

        `distinct` and `kept` as for `maps_of`. The padding of its embeddings is masked as special tokens are.
        """
        tokenizer = self.models[name].tokenizer
        return identity(
            tokenizer.vocabulary_size,
            padded=self.models[name].member.vocabulary_size,
            joined=self.ends - self.stop_ids if distinct else self.ends,
            end=self.end,
            masked=tokenizer.special_ids - kept - self.ends if self.masked else None,
        )

    def apart(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """Return which of the pivot's ids its own map hides or takes for the end, [n]: rightly in decoding only.

        Where such a token stands in a text, nobody but members with the pivot's tokenizer has a word for it.
        """
        own = self.maps[self.pivot].rest
        tokens = np.array(ids, dtype=np.int64)
        return np.zeros(len(tokens), np.bool_) if own is None else own.target_ids[tokens, 0] != tokens

    def mapped(self, voters: Sequence[str]) -> NDArray[np.bool_]:
        """Return whose distributions a map brings into the pivot's vocabulary, [M]; nobody's without the pivot."""
        return np.array([self.pivot in voters and not self.follows_ids(name) for name in voters], np.bool_)


@dataclass(frozen=True)
class Ensemble:
    """Members that decode as one, served under one name. Built by `fusion.assembly.ensembles`.

    `views` holds one view where the pivot is fixed, and one around each member where the prompt decides on it.
    `learned` is there where its configuration names a file of learned weights.
    """

    name: str
    models: dict[str, Model]
    views: Mapping[str, View] = field(repr=False)
    defaults: FusionParams
    fingerprint: str = field(repr=False)
    on_member_failure: OnMemberFailure = "fail"
    learned: LearnedWeights | None = field(default=None, repr=False)

    @cached_property
    def first(self) -> View:
        """The view around its pivot; while a prompt decides on that, around the first member."""
        return next(iter(self.views.values()))

    @property
    def chooses_pivot(self) -> bool:
        """True where each prompt decides on the pivot."""
        return len(self.views) > 1

    def view(self, pivot: str | None) -> View:
        """This ensemble around the pivot that a prompt has decided on."""
        return self.first if pivot is None else self.views.get(pivot, self.first)

    @property
    def pivot(self) -> str:
        """The member whose tokens are emitted; the first one where prompts decide on it."""
        return self.first.pivot

    @property
    def pivot_name(self) -> str:
        """The pivot, or `auto`."""
        return AUTO if self.chooses_pivot else self.pivot

    def scores(self, fusion: FusionParams) -> bool:
        """Return whether these parameters need scored prompts: to weigh the members, or to choose the pivot."""
        if fusion.weighting.method == "learned" and self.learned is not None:
            return self.learned.needs_losses
        return fusion.weighting.method != "given" or self.chooses_pivot

    @property
    def tokenizer(self) -> Tokenizer:
        """The pivot's tokenizer."""
        return self.first.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """The pivot's ids that end an answer."""
        return self.first.stop_ids

    @property
    def context(self) -> int:
        """The smallest context of the members, in that member's tokens."""
        return min(model.member.capacity.context for model in self.models.values())

    @property
    def longest_context(self) -> int:
        """The largest context of the members: a prompt that cannot fit it is not read."""
        return max(model.member.capacity.context for model in self.models.values())

    def can_do_without(self, name: str) -> bool:
        """Return whether its sequences go on without this member: any but the pivot, once that is decided."""
        return self.on_member_failure == "degrade" and (self.chooses_pivot or name != self.pivot)

    def engine(self, name: str) -> str:
        """The name of the member that runs this one: its own, unless it is a view."""
        return self.models[name].engine

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
        locate: bool = False,
        limited: bool = True,
        room: Room | None = None,
        shown: Mapping[str, tuple[list[dict[str, Any]], dict[str, Any]]] | None = None,
        place: Place = "user",
    ) -> Prompt:
        """The conversation in every member's own template and tokens; with `locate` it can be scored.

        One far longer than any context is refused, before it is read where that is certain, unless it is not
        `limited` or there is a `room`: as much of it is what each member keeps.
        `shown` holds the messages, and further arguments of the template, for members that are to be shown others.
        `place` is where the contexts of views go.
        """
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **self._bounds(room, limited),
        }

        def read(name: str, tokenizer: Tokenizer) -> Reading:
            view = self.models[name].view
            own, extra = (shown or {}).get(name, (messages, {}))
            seen, at = view.chat(own, place, continued=continue_final_message)
            kwargs = {**(template_kwargs or {}), **view.template, **extra}
            if not locate:
                return tokenizer.encode_chat(seen, **options, template_kwargs=kwargs), None
            ids, places = tokenizer.locate_chat(seen, **options, template_kwargs=kwargs)
            return ids, places if view.is_plain else original_spans(places, at)

        continued = messages[-1].get("content") if messages and continue_final_message else None
        blank = isinstance(continued, str) and not continued.strip()
        begins_answer = blank or (add_generation_prompt and not continue_final_message)
        leads = {name: model.tokenizer.chat_lead if begins_answer else b"" for name, model in self.models.items()}
        texts = tuple(one for message in messages if isinstance(one := message.get("content"), str))
        return self._by_each(read, leads, texts)

    def encode_text(
        self, text: str, *, add_special_tokens: bool = True, locate: bool = False, room: Room | None = None
    ) -> Prompt:
        """A text to go on from, in every member's own tokens; with `locate` it can be scored.

        With `room` each member keeps as much of it; what a view sets before it is no part of what is cut.
        """

        def read(name: str, tokenizer: Tokenizer) -> Reading:
            view = self.models[name].view
            bounds = self._bounds(room if view.is_plain else None)
            options: dict[str, Any] = {"add_special_tokens": add_special_tokens, **bounds}
            if not locate:
                return tokenizer.encode(view.text(text), **options), None
            ids, places = tokenizer.locate(view.text(text), **options)
            shown = [None if view.negative is not None else (0, len(text))]
            return ids, places if view.is_plain else original_spans(places, shown)

        return self._by_each(read, dict.fromkeys(self.models, b""), (text,))

    def _bounds(self, room: Room | None, limited: bool = True) -> dict[str, Any]:
        """How long a prompt may be, as arguments of a tokenizer."""
        return {"room": room, "limit": self.longest_context if limited and room is None else None}

    def _by_each(
        self, read: Callable[[str, Tokenizer], Reading], leads: dict[str, bytes], texts: tuple[str, ...]
    ) -> Prompt:
        """A prompt as every member's tokenizer reads it. A refusal by length names the member."""
        ids: dict[str, list[int]] = {}
        located: dict[str, Located] = {}
        for name, model in self.models.items():
            try:
                ids[name], places = read(name, model.tokenizer)
            except PromptTooLongError as error:
                holds = f"member {name!r}, whose context holds {model.member.capacity.context}"
                raise PromptTooLongError(
                    f"For {holds}: {error.message}",
                    tokens=error.tokens,
                    limit=error.limit,
                    param=model.view.param or error.param,
                ) from error
            except InvalidRequestError as error:
                if (field := model.view.param) is None:
                    raise
                raise InvalidRequestError(
                    f"With {field}: {error.message}", param=field, code=error.code
                ) from error
            if places is not None:
                located[name] = places
        return Prompt(ids, leads, located or None, texts=texts)

    def encode_ids(
        self, ids: list[int], *, add_special_tokens: bool = True, locate: bool = False, room: Room | None = None
    ) -> Prompt:
        """A prompt given as the pivot's ids: the pivot gets them unchanged, the others the text they stand for.

        `add_special_tokens` is for those others. With `room` the pivot keeps as many of them, and the others as
        many of their own.
        """
        if room is None and len(ids) > self.longest_context:
            raise PromptTooLongError(
                f"This model's maximum context length is {self.longest_context} tokens, but the prompt has "
                f"{len(ids)} of member {self.first.pivot!r}: shorten it.",
                tokens=len(ids),
                limit=self.longest_context,
                param="prompt",
            )
        require_ids(ids, self.tokenizer.vocabulary_size, param="prompt")
        ids = self.tokenizer.shortened(ids, room)
        text = self.tokenizer.text_of(ids)
        prompt = self.encode_text(text, add_special_tokens=add_special_tokens, locate=locate, room=room)
        followers = [n for n, one in self.models.items() if self.first.follows_ids(n) and one.view.is_plain]
        prompt.ids.update({name: list(ids) for name in followers})
        if prompt.located is not None:
            places = Located.of_surfaces(self.tokenizer.written(ids))
            prompt.located.update(dict.fromkeys(followers, places))
        return prompt

    def taking_part(self, fusion: FusionParams) -> list[str]:
        """The members that run for these parameters: the pivot and all that weigh something, in order."""
        names = list(fusion.members or self.models)
        terms = terms_of(fusion, names)
        if terms is not None:
            return [name for name in names if name == self.pivot or name in terms.weights]
        return [
            name
            for name in names
            if name == self.pivot or fusion.weights is None or fusion.weights.get(name, 0.0) > 0
        ]

    def max_new_tokens(self, prompt: Prompt, members: Sequence[str], *, param: str | None = None) -> int:
        """Return the number of tokens that fit after the prompt in the contexts of all these members.

        Raises:
            InvalidRequestError: the prompt is empty, or alone fills a member's context; names the member and its
                limit, and `param`, the request's field that the prompt came from.
        """
        room = {name: self.models[name].member.capacity.context - len(prompt.ids[name]) for name in members}
        self._share_room(room, prompt, param)
        tightest = min(room, key=lambda name: room[name])
        if room[tightest] < 1:
            field, context = self.models[tightest].view.param, self.models[tightest].member.capacity.context
            raise PromptTooLongError(
                f"This model's maximum context length is {context} tokens "
                f"(of member {tightest!r}, with at least one for the answer), but the prompt has "
                f"{len(prompt.ids[tightest])}{f' with {field}' if field else ''}; shorten it.",
                tokens=len(prompt.ids[tightest]),
                limit=context - 1,
                param=field or param,
            )
        for name in members:
            if not prompt.ids[name]:
                raise InvalidRequestError(
                    f"The prompt comes to no tokens for member {name!r}; give it text (in a chat, a user's).",
                    param=param,
                )
        return room[tightest]

    def _share_room(self, room: dict[str, int], prompt: Prompt, param: str | None) -> None:
        """Lower the room [tokens] of views of one engine to what they have of it together."""
        views: dict[str, list[str]] = {}
        for name in room:
            views.setdefault(self.engine(name), []).append(name)
        for engine, names in views.items():
            if len(names) == 1:
                continue
            capacity = self.models[names[0]].member.capacity
            asked = next((one for name in names if (one := self.models[name].view.param)), None)
            field = asked.partition("[")[0] if asked else None
            views_of = f"{len(names)} views of {engine!r}{f' (of {field})' if field else ''}"
            if len(names) > capacity.sequences:
                raise InvalidRequestError(
                    f"{views_of} take more places than the {capacity.sequences} it has; take fewer of them.",
                    param=field or param,
                )
            # Each ends inside a block of its own.
            taken = sum(len(prompt.ids[name]) + capacity.block - 1 for name in names)
            each = (capacity.cache_tokens - taken) // len(names)
            if each < 1:
                raise InvalidRequestError(
                    f"The prompts of the {views_of} take {taken} tokens, with at least one for each answer, but "
                    f"its cache holds {capacity.cache_tokens}; shorten them, or take fewer.",
                    param=field or param,
                    code=CONTEXT_LENGTH_EXCEEDED,
                )
            room.update({name: min(room[name], each) for name in names})
