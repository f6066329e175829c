"""POST /v1/chat/completions: the request, and the conversation as chat templates know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from alignment.errors import InvalidRequestError, field_error
from alignment.text.template import reserved_arguments
from server.http.errors import unknown_type
from server.http.protocol.common import Listed, RequestModel, expected, few
from server.http.protocol.fusion import FusionFields
from server.http.protocol.sampling import SamplingFields
from server.http.tools.history import checked


class Part(RequestModel):
    """A piece of a message's content: text, under the names that the APIs have for it, or what was thought."""

    type: str
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None


Content = Annotated[
    str | Listed[str | Part], expected('a string or a list of parts like {"type": "text", "text": "..."}')
]


class FunctionCall(RequestModel):
    """A call in OpenAI's older shape, which has no id."""

    name: str
    arguments: str


class Message(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


def _with_ids(messages: list[Message]) -> list[Message]:
    """The messages with calls and results of the older shape in today's. A result is of its name's last call."""
    called: dict[str | None, str] = {}
    out = []
    for index, message in enumerate(messages):
        if (call := message.function_call) is not None and not message.tool_calls:
            if message.role != "assistant":
                raise field_error(f"messages[{index}].function_call", "is for an assistant alone.")
            id = called[call.name] = f"call_{index}"
            function = {"name": call.name, "arguments": call.arguments}
            message = message.model_copy(
                update={"tool_calls": [{"id": id, "type": "function", "function": function}]}
            )
        elif message.role == "function":
            if message.name not in called:
                raise field_error(f"messages[{index}].name", "names no function that was called before it.")
            message = message.model_copy(update={"role": "tool", "tool_call_id": called[message.name]})
        out.append(message)
    return out


Messages = Annotated[Listed[Message], Field(min_length=1), few, AfterValidator(_with_ids)]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ToolChoice = Annotated[
    str | dict[str, Any], expected('"auto", "none", "required" or an object that names a function')
]


class RenderingFields(RequestModel):
    """Options of rendering messages, which chat completions and `/tokenize` share."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None


class ChatRequest(SamplingFields, RenderingFields):
    """The body of a chat completion. `max_completion_tokens` wins over its older name, `max_tokens`."""

    model: str | None = None
    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    fusion: FusionFields | None = None
    tools: list[Any] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    return_prompt_text: bool | None = None
    include_reasoning: bool | None = None

    @property
    def limit(self) -> tuple[str, int | None]:
        """The newer name of the two that was used."""
        if self.max_completion_tokens is None:
            return "max_tokens", self.max_tokens
        return "max_completion_tokens", self.max_completion_tokens

    @property
    def alternatives(self) -> tuple[str, int | None]:
        """None unless `logprobs` is true.

        Raises:
            InvalidRequestError: alternatives without log-probabilities.
        """
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "is allowed only with logprobs: true.")
        return "top_logprobs", (self.top_logprobs or 0) if self.logprobs else None


def rendering(
    messages: list[Message], fields: RenderingFields, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A conversation as keyword arguments of `encode_chat`; `defaults` are arguments of the template.

    Raises:
        InvalidRequestError: a part that is no text, a message without content, a call that is none, a result
            without its call, or contradictory fields.
    """
    continued = bool(fields.continue_final_message)
    if continued and fields.add_generation_prompt:
        raise field_error(
            "continue_final_message", "and add_generation_prompt exclude each other; set one of them."
        )
    if continued and messages[-1].role != "assistant":
        raise field_error("continue_final_message", "needs a last message of role assistant.")
    kwargs = fields.chat_template_kwargs or {}
    for name in kwargs:
        if name in reserved_arguments():
            raise InvalidRequestError(
                f"chat_template_kwargs must not set {name}.", param=f"chat_template_kwargs.{name}"
            )
    return {
        "messages": checked([_plain(message, index) for index, message in enumerate(messages)]),
        "add_generation_prompt": not continued and fields.add_generation_prompt is not False,
        "continue_final_message": continued,
        "template_kwargs": {**(defaults or {}), **_thinking(fields.reasoning_effort), **kwargs},
    }


def _thinking(effort: Effort | None) -> dict[str, Any]:
    """Template arguments for an effort; the families' templates have different names for the switch."""
    match effort:
        case None:
            return {}
        case "none":
            return {"enable_thinking": False, "thinking": False}
        case _:
            return {"reasoning_effort": effort, "enable_thinking": True, "thinking": True}


def _plain(message: Message, index: int) -> dict[str, Any]:
    """The message as chat templates know it: content is a string, and `developer` is today's `system`."""
    where = f"messages[{index}]"
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message, f"{where}.content"),
    }
    if message.tool_calls:
        plain["tool_calls"] = message.tool_calls
    if thoughts := message.reasoning_content or message.reasoning or _thoughts(message, f"{where}.content"):
        plain |= {"reasoning": thoughts, "reasoning_content": thoughts}  # templates read one or the other
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _text(message: Message, where: str) -> str:
    """The content as one string, its parts on lines of their own."""
    match message.content:
        case str(text):
            return text
        case None if message.role == "assistant":  # clients send back an answer that was empty
            return ""
        case None:
            raise field_error(where, "is missing.")
        case parts:
            texts = []
            for index, part in enumerate(parts):
                if isinstance(part, str):
                    texts.append(part)
                    continue
                if part.type == "thinking" and message.role == "assistant":
                    continue
                if part.type not in ("text", "input_text", "output_text", "refusal"):
                    raise unknown_type(f"{where}[{index}]", part.type, "but only text is understood.")
                texts.append(_given(part, "refusal" if part.type == "refusal" else "text", f"{where}[{index}]"))
            return "\n".join(texts)


def _thoughts(message: Message, where: str) -> str:
    """The thoughts among the parts of an assistant's content."""
    if message.role != "assistant" or isinstance(message.content, str):
        return ""
    parts = enumerate(message.content or ())
    return "\n".join(
        _given(part, "thinking", f"{where}[{index}]")
        for index, part in parts
        if isinstance(part, Part) and part.type == "thinking"
    )


def _given(part: Part, field: str, where: str) -> str:
    if (text := getattr(part, field)) is None:
        raise field_error(f"{where}.{field}", "is missing.")
    return str(text)
