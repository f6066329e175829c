"""Template: a checkpoint's chat template; conversations that it does not accept are repaired before rendering.

Templates differ in which conversations they render. Some loop over the parts of a content and drop a plain
string; some know no system role, or none but the first; some insist that users and assistants alternate. Which
of this holds is found by rendering probes, and conversations are changed for the templates that need it alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from typing import Any

from alignment.errors import InvalidRequestError, one_line

Messages = list[dict[str, Any]]
_SYSTEM = ("system", "developer")
_PROBES = ("Tutti", "Ripieno", "Concertino", "Cadenza")


class Template:
    """The chat template of a transformers tokenizer, which has one."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text; InvalidRequestError where the template refuses it however it is repaired."""
        reserved = sorted(set(template_kwargs or ()) & (reserved_arguments() - {"tools"}))
        if reserved:
            raise InvalidRequestError(
                f"The template argument {reserved[0]} is set by the server: leave it out.",
                param="chat_template_kwargs",
            )
        refusal: Exception | None = None
        # After an empty message the library would take white space away that belongs to the template, so a word
        # stands in its place. Spaces before it are the answer's to spell.
        said = messages[-1].get("content") if messages and continue_final_message else None
        probe = _PROBES[0] if isinstance(said, str) and not said.strip() else ""
        if probe:
            messages = [*messages[:-1], messages[-1] | {"content": probe}]
        for form in self._forms(messages, continued=continue_final_message):
            try:
                text: str = self._hf.apply_chat_template(
                    _handed(form, self.takes_parts),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **(template_kwargs or {}),
                )
                return text.removesuffix(probe).rstrip(" ") if probe else text
            except Exception as error:  # a template is a program: it raises what it likes
                refusal = refusal or error
        reason = one_line(str(refusal), 300)
        raise InvalidRequestError(
            f"The chat template refuses this conversation: {reason}", param="messages"
        ) from refusal

    def _forms(self, messages: Messages, *, continued: bool) -> Iterator[Messages]:
        """The conversation in the form that this template accepts, then more repaired forms in case it refuses."""
        form = messages
        if self._wants_a_system:
            form = _system_first(form)
        if not self._takes_late_systems:
            form = _systems_merged(form)
        if not (self._takes_a_system if len(form) > 1 else self._takes_a_lone_system):
            form = _system_in_user(form)
        if not self._takes_repeats:
            form = _neighbours_joined(form)
        yield form
        tried = [form]
        repairs = (_systems_merged, _neighbours_joined, _user_first, _system_in_user, _neighbours_joined)
        for repair in repairs if continued else (*repairs, _user_last):
            form = repair(form)
            if form not in tried:
                tried.append(form)
                yield form

    @cached_property
    def takes_parts(self) -> frozenset[str]:
        """The roles whose contents the template reads as lists of parts, and loses as plain strings."""
        found: frozenset[str] = frozenset()
        for roles in (("user",), ("user", "assistant"), ("system", "user")):
            messages = _conversation(*roles)
            tried = (found, *(found | {role} for role in roles), found | set(roles))
            shown = (some for some in tried if self._shows(_handed(messages, some)))
            found = next(shown, found)
        return found

    @cached_property
    def _takes_a_system(self) -> bool:
        return self._bears("system", "user") or not self._bears("user")

    @cached_property
    def _wants_a_system(self) -> bool:
        return self._bears("system", "user") and not self._bears("user")

    @cached_property
    def _takes_a_lone_system(self) -> bool:
        return self._bears("system")

    @cached_property
    def _takes_late_systems(self) -> bool:
        if not self._bears("system", "user"):
            return not self._bears("user")
        return self._bears("system", "system", "user") and self._bears("user", "assistant", "system", "user")

    @cached_property
    def _takes_repeats(self) -> bool:
        if not self._bears("user", "assistant", "user"):
            return True
        return self._bears("user", "user") and self._bears("user", "assistant", "assistant", "user")

    @cached_property
    def fault(self) -> str | None:
        """Why not even a plain conversation is rendered with its text; None where one is."""
        if self._bears("user") or self._bears("system", "user"):
            return None
        try:
            self.render(_conversation("user"), add_generation_prompt=True)
        except InvalidRequestError as error:
            return one_line(error.__cause__ or error)
        return "it leaves out what the messages say"

    def _bears(self, *roles: str) -> bool:
        """Return whether a conversation of these roles is rendered with all its contents."""
        return self._shows(_handed(_conversation(*roles), self.takes_parts))

    def _shows(self, messages: Messages) -> bool:
        try:
            text: str = self._hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # whatever it raises, it refuses
            return False
        in_parts = "'text':" in text  # of a list that is written out as it is
        return not in_parts and all(probe in text for probe in _PROBES[: len(messages)])

    def findings(self) -> list[str]:
        """The repairs that this template needs, in sentences."""
        if self.fault is not None:
            return [
                f"The chat template renders no plain conversation ({self.fault}): chats fail, or lose their text."
            ]
        repairs = (
            (bool(self.takes_parts), "The chat template drops plain texts: contents are handed to it in parts."),
            (
                not self._takes_a_system,
                "The chat template knows no system role: it goes into the first user message.",
            ),
            (
                self._takes_a_system and not self._takes_late_systems,
                "The chat template takes one system message, at the beginning: several are merged into it.",
            ),
            (
                self._wants_a_system,
                "The chat template wants a system message: an empty one is put where there is none.",
            ),
            (not self._takes_repeats, "The chat template wants roles to alternate: neighbours of one are joined."),
        )
        return [sentence for needed, sentence in repairs if needed]

    def frames(self) -> list[str]:
        """Rendered probes, which hold what the template writes around messages."""
        frames = []
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant")):
            for answers in (True, False):
                try:
                    frames.append(self.render(_conversation(*roles), add_generation_prompt=answers))
                except InvalidRequestError:
                    continue
        return frames

    @cached_property
    def lead(self) -> bytes:
        """The white space between the generation prompt and the content of the answer, found by rendering both."""
        question = _conversation("user")
        answer = _conversation("user", "assistant")
        try:
            prompt = self.render(question, add_generation_prompt=True)
            whole = self.render(answer)
        except InvalidRequestError:  # a template that refuses so plain a conversation has no known lead
            return b""
        between, probe, _ = whole[len(prompt) :].partition(_PROBES[1])
        return between.encode() if probe and whole.startswith(prompt) and not between.strip() else b""

    @cached_property
    def literals(self) -> frozenset[str]:
        """The texts that the template's source quotes: what it may look for in messages."""
        return frozenset(text for kind, text in self._lexed if kind == "string")

    @cached_property
    def texts(self) -> frozenset[str]:
        """All texts of the template's source: what it may write around messages, in tool calls say."""
        return frozenset(text for _, text in self._lexed)

    @cached_property
    def _lexed(self) -> list[tuple[str, str]]:
        from jinja2 import Environment, TemplateError

        source = self._hf.chat_template
        sources: Sequence[Any] = list(source.values()) if isinstance(source, Mapping) else [source]
        found = []
        for text in sources:
            try:
                lexed = [(kind, value) for _, kind, value in Environment().lex(str(text))]
            except TemplateError:
                continue
            for kind, value in lexed:
                if kind == "data":
                    found.append((kind, value))
                elif kind == "string":
                    with suppress(UnicodeError):  # as Jinja reads it, line breaks and all
                        found.append(
                            (kind, value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape"))
                        )
        return found


def _conversation(*roles: str) -> Messages:
    return [{"role": role, "content": probe} for role, probe in zip(roles, _PROBES, strict=False)]


def _handed(messages: Messages, roles: Collection[str]) -> Messages:
    """Messages with the contents of `roles` in parts; a role that is not probed goes with the users."""

    def takes_parts(message: dict[str, Any]) -> bool:
        role = message.get("role")
        return (role if role in ("system", "assistant") else "user") in roles

    return [_in_parts(message) if takes_parts(message) else message for message in messages]


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return message | {"content": [{"type": "text", "text": content}]}


def _text(message: Mapping[str, Any]) -> str | None:
    """A message's content where it is nothing but text."""
    content = message.get("content")
    return content if isinstance(content, str) and not message.get("tool_calls") else None


def _joined(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first message with the texts of all."""
    return messages[0] | {"content": "\n\n".join(text for message in messages if (text := _text(message)))}


def _systems_merged(messages: Messages) -> Messages:
    """All system messages as one, in order, at the beginning."""
    systems = [m for m in messages if m.get("role") in _SYSTEM and _text(m) is not None]
    if not systems or (len(systems) == 1 and messages[0] is systems[0] and systems[0]["role"] == "system"):
        return messages
    merged = _joined(systems) | {"role": "system"}
    taken = set(map(id, systems))
    return [merged, *(m for m in messages if id(m) not in taken)]


def _system_in_user(messages: Messages) -> Messages:
    """A system message at the beginning as the first paragraph of the user message after it, or as one itself."""
    if not messages or messages[0].get("role") not in _SYSTEM or _text(messages[0]) is None:
        return messages
    system, *others = messages
    if others and others[0].get("role") == "user" and _text(others[0]) is not None:
        joined = _joined([system, others[0]])
        return [others[0] | {"content": joined["content"]}, *others[1:]]
    return [system | {"role": "user"}, *others]


def _user_first(messages: Messages) -> Messages:
    """An empty user message before an assistant that greets."""
    begin = next((i for i, message in enumerate(messages) if message.get("role") not in _SYSTEM), len(messages))
    if begin == len(messages) or messages[begin].get("role") != "assistant":
        return messages
    return [*messages[:begin], {"role": "user", "content": ""}, *messages[begin:]]


def _user_last(messages: Messages) -> Messages:
    """An empty user message after an assistant whose turn is over."""
    if not messages or messages[-1].get("role") != "assistant":
        return messages
    return [*messages, {"role": "user", "content": ""}]


def _system_first(messages: Messages) -> Messages:
    """An empty system message at the beginning of a conversation without any."""
    if any(message.get("role") in _SYSTEM for message in messages):
        return messages
    return [{"role": "system", "content": ""}, *messages]


def _neighbours_joined(messages: Messages) -> Messages:
    """Neighbours of one role as one message, which is what strict alternation asks for."""
    groups: list[Messages] = []
    for message in messages:
        last = groups[-1][-1] if groups else {}
        if (
            message.get("role") in ("user", "assistant")
            and last.get("role") == message["role"]
            and _text(last) is not None
            and _text(message) is not None
        ):
            groups[-1].append(message)
        else:
            groups.append([message])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


@cache
def reserved_arguments() -> frozenset[str]:
    """Names of template arguments that neither a file nor a request may give: a template is called with them."""
    from transformers import PreTrainedTokenizerBase

    called_with = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*called_with, "load_audio_from_video", "messages", "processor_kwargs"})
