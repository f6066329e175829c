"""Tools and thoughts in chat completions: requests, histories and answers, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from starlette.testclient import TestClient

from fusion.core import Delta, Token, TokenLogProb
from fusion.ensemble import View
from fusion.sequence.grammar import Grammar
from fusion.sequence.grammar_table import GrammarTable
from server.http.app import create_app
from server.http.protocol.chat import ChatRequest, Effort, Message, rendering
from server.http.tools import offer
from server.http.tools.formats import FORMATS
from server.settings import ServerSettings
from server.settings.fields import ToolFormat
from tests.support.scripted_fuser import END, ByteTokenizer, ScriptedFuser, Step, Submission, ensemble, says
from tests.support.small_requests import CHAT, CHAT_PATH, chat, error_of

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
WRITTEN = '{"name": "weather", "arguments": {"city": "Bern"}}'


@pytest.fixture
def client(fuser: ScriptedFuser) -> Iterator[TestClient]:
    """With room for tools in the prompt."""
    with TestClient(create_app({"pair": ensemble(context=2000)}, fuser, ServerSettings())) as client:
        yield client


def chunks(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    text = client.post(CHAT_PATH, json=CHAT | {"stream": True} | fields).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line)["choices"][0] for line in lines]


def shown(fuser: ScriptedFuser) -> str:
    """The prompt as the pivot was given it."""
    return bytes(fuser.last.prompt.ids["a"]).decode()


def test_a_call_is_read_out_of_the_answer(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says(*WRITTEN)
    choice = chat(client, tools=[TOOL])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Bern"}
    assert "weather" in shown(fuser)


def test_a_streamed_call_is_named_once(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says(*WRITTEN)
    told = chunks(client, tools=[TOOL])
    deltas = [choice["delta"]["tool_calls"][0] for choice in told if "tool_calls" in choice["delta"]]
    assert [delta["index"] for delta in deltas] == [0, 0]
    assert deltas[0]["function"] == {"name": "weather", "arguments": ""}
    assert deltas[1].keys() == {"index", "function"}
    assert told[-1]["finish_reason"] == "tool_calls"


OPEN, CLOSE = 257, 258


class MarkedTokenizer(ByteTokenizer):
    """Its marks of calls are control tokens, as in tokenizers of the Hermes family."""

    vocabulary_size = 259
    surfaces = (*ByteTokenizer.surfaces, None, None)
    special_ids = frozenset({END, OPEN, CLOSE})
    names: ClassVar = {OPEN: "<tool_call>", CLOSE: "</tool_call>"}

    def control_tokens(self, texts: Iterable[str]) -> dict[int, str]:
        texts = [*texts]
        return super().control_tokens(texts) | {id: text for id, text in self.names.items() if text in texts}

    def _names(self, ids: int | list[int]) -> str | list[str]:
        return self.names[ids] if ids in self.names else super()._names(ids)  # type: ignore[index]


@pytest.mark.parametrize("format", ["hermes", "coder"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_call_between_control_tokens_is_read(fuser: ScriptedFuser, format: ToolFormat, closed: bool) -> None:
    """They stand for no text."""
    whole = ensemble(context=5000)
    models = {name: replace(model, tokenizer=MarkedTokenizer()) for name, model in whole.models.items()}  # type: ignore[arg-type]
    for model in models.values():
        model.member.vocabulary_size = 259  # type: ignore[misc]
    whole = replace(whole, models=models, views={"a": View(models, "a", {})})
    inside = FORMATS[format].write("weather", {"city": "Bern"})
    inside = inside.removeprefix("<tool_call>").removesuffix("</tool_call>").replace('": "', '":"')
    inside = inside.replace('"name":"', '"name": "')

    def mark(id: int) -> Delta:
        return Delta("", (Token(TokenLogProb(id, b"", -0.1), ()),))

    ids = [OPEN, *inside.encode(), CLOSE, END]

    def script(submission: Submission) -> list[Step]:
        assert submission.prompt.constraints["a"].copy().fits(ids) == len(ids)  # type: ignore[attr-defined]
        return [*says("Well.")[:1], mark(OPEN), *says(inside)[:1], *([mark(CLOSE)] if closed else []), *says()]

    fuser.script = script
    settings = ServerSettings(tool_format=format)
    with TestClient(create_app({"pair": whole}, fuser, settings)) as client:  # type: ignore[arg-type]
        choice = chat(client, tools=[TOOL])["choices"][0]
        deltas = [choice["delta"] for choice in chunks(client, tools=[TOOL])]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "Well.")
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Bern"}
    assert "".join(delta.get("content") or "" for delta in deltas) == "Well."
    assert sum("tool_calls" in delta for delta in deltas) == 2


def test_a_call_after_a_line_of_text_is_read(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("Let me", " check.\n", WRITTEN[:9], WRITTEN[9:])
    choice = chat(client, tools=[TOOL])["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "Let me check.")
    assert len(choice["message"]["tool_calls"]) == 1
    told = chunks(client, tools=[TOOL])
    assert [choice["delta"]["content"] for choice in told if choice["delta"].get("content")] == [
        "Let me",
        " check.",
    ]
    assert told[-1]["finish_reason"] == "tool_calls"
    fuser.script = lambda submission: says(f"Both.\n{WRITTEN}\n{WRITTEN}")
    message = chat(client, tools=[TOOL], parallel_tool_calls=False)["choices"][0]["message"]
    assert (len(message["tool_calls"]), message["content"]) == (1, f"Both.{WRITTEN}")


def test_a_call_that_is_cut_off_is_content(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says(WRITTEN[:-5], finish="length")
    choice = chat(client, tools=[TOOL])["choices"][0]
    assert choice["message"]["content"] == WRITTEN[:-5]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    "fields", [{"tool_choice": "auto"}, {"tools": [TOOL], "tool_choice": "none"}, {"tools": []}]
)
def test_without_tools_to_call_text_is_text(client: TestClient, fuser: ScriptedFuser, fields: Any) -> None:
    fuser.script = lambda submission: says(WRITTEN)
    assert chat(client, **fields)["choices"][0]["message"]["content"] == WRITTEN
    assert "weather" not in shown(fuser)


def test_a_history_with_calls_and_results_reaches_the_prompt(client: TestClient, fuser: ScriptedFuser) -> None:
    messages = [
        *CHAT["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    ]
    chat(client, messages=messages)
    assert WRITTEN in shown(fuser)
    assert "rain" in shown(fuser)


def test_a_history_in_the_older_shape_is_that_of_calls_with_ids(client: TestClient, fuser: ScriptedFuser) -> None:
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    older = [
        *CHAT["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "And?", "function_call": None, "tool_calls": None},
    ]
    newer = [
        older[0],
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        older[3],
    ]
    prompts = []
    for messages in older, newer:
        chat(client, messages=messages)
        prompts.append(shown(fuser))
        counted = client.post("/tokenize", json={"model": "pair", "messages": messages}).json()["count"]
        assert counted == len(prompts[-1])
    assert WRITTEN in prompts[0]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "weather", "content": "rain"}, "name"),
        ({"role": "user", "content": "x", "function_call": {"name": "f", "arguments": ""}}, "function_call"),
        ({"role": "assistant", "function_call": {"arguments": ""}}, "function_call.name"),
    ],
)
def test_what_is_wrong_with_the_older_shape_is_named(client: TestClient, message: Any, param: str) -> None:
    body = CHAT | {"messages": [message]}
    assert error_of(client.post(CHAT_PATH, json=body), 400)["param"] == f"messages[0].{param}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": ["weather"]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "a"}]}, "messages[0].tool_call_id"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": [1]}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)
def test_what_cannot_be_followed_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    assert error_of(client.post(CHAT_PATH, json=CHAT | fields), 400)["param"] == param


def test_thoughts_are_split_out_under_both_names(client: TestClient, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("<th", "ink>so", "</think>", "yes")
    message = chat(client)["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("so", "so", "yes")
    deltas = [choice["delta"] for choice in chunks(client)]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "so"
    assert "".join(delta.get("content", "") for delta in deltas) == "yes"


def test_thoughts_are_counted_and_left_out_where_they_are_not_wanted(
    client: TestClient, fuser: ScriptedFuser
) -> None:
    fuser.script = lambda submission: says("<think>", "s", "o", "</think>", "yes")
    usage = chat(client)["usage"]
    assert (usage["completion_tokens"], usage["completion_tokens_details"]) == (6, {"reasoning_tokens": 2})
    assert chat(client, n=2)["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
    answer = client.post("/v1/responses", json={"input": "hi"}).json()
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    message = chat(client, include_reasoning=False)["choices"][0]["message"]
    assert (message["content"], "reasoning" in message) == ("yes", False)
    deltas = [choice["delta"] for choice in chunks(client, include_reasoning=False)]
    assert "".join(delta.get("content", "") for delta in deltas) == "yes"
    assert not any("reasoning" in delta for delta in deltas)


@pytest.mark.parametrize("effort", ["none", "low", "high"])
def test_an_effort_switches_thinking_on_or_off(effort: Effort) -> None:
    """In the words of all families: some templates think unless told not to, others the other way round."""
    hello = [Message(role="user", content="hi")]
    fields = ChatRequest(messages=hello, reasoning_effort=effort, chat_template_kwargs={"given": 1})
    kwargs = rendering(fields.messages, fields, {"enable_thinking": False, "of_the_server": 1})["template_kwargs"]
    assert kwargs["enable_thinking"] is kwargs["thinking"] is (effort != "none")
    assert (kwargs["given"], kwargs["of_the_server"]) == (1, 1)
    fields.chat_template_kwargs = {"enable_thinking": "mine"}
    assert rendering(fields.messages, fields)["template_kwargs"]["enable_thinking"] == "mine"


PARTS = [
    "plain",
    {"type": "text", "text": "text"},
    {"type": "input_text", "text": "in"},
    {"type": "output_text", "text": "out"},
    {"type": "refusal", "refusal": "no"},
]


def test_parts_of_a_message_go_by_the_names_of_all_apis(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, messages=[{"role": "user", "content": PARTS}])
    assert "plain\ntext\nin\nout\nno" in shown(fuser)


THOUGHT = {"type": "thinking", "thinking": "hm"}


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": "hm", "content": "Yes."},
        {"reasoning_content": "hm", "content": "Yes."},
        {"content": [THOUGHT, {"type": "text", "text": "Yes."}]},
    ],
)
def test_thoughts_of_the_history_reach_templates_under_both_names(fields: dict[str, Any]) -> None:
    """Each family's template reads its own."""
    body = ChatRequest.model_validate({"messages": [{"role": "assistant"} | fields]})
    (message,) = rendering(body.messages, body)["messages"]
    said = {"role": "assistant", "content": "Yes."}
    assert message == said | {"reasoning": "hm", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("role", "part", "param"),
    [
        ("user", THOUGHT, "messages[0].content[0].type"),
        ("assistant", {"type": "thinking"}, "messages[0].content[0].thinking"),
    ],
)
def test_a_part_that_is_no_thought_is_named(client: TestClient, role: str, part: Any, param: str) -> None:
    body = CHAT | {"messages": [{"role": role, "content": [part]}]}
    assert error_of(client.post(CHAT_PATH, json=body), 400)["param"] == param


def fits(fuser: ScriptedFuser, text: str) -> bool:
    """Whether the last request lets the pivot write this and end."""
    ids = [*text.encode(), 256]
    return fuser.last.prompt.constraints["a"].copy().fits(ids) == len(ids)  # type: ignore[attr-defined]


def test_a_call_that_is_begun_must_be_one_of_the_tools(client: TestClient, fuser: ScriptedFuser) -> None:
    chat(client, tools=[TOOL])
    assert fits(fuser, "No call.")
    assert fits(fuser, '{"a": "JSON that is no call"}')
    assert fits(fuser, '{"name": "weather", "arguments": {"city":"Bern"}}')
    assert not fits(fuser, '{"name": "thunder", "arguments": {"city":"Bern"}}')
    assert not fits(fuser, '{"name": "weather", "arguments": {"city":3}}')


def test_beside_a_schema_a_call_stays_possible(client: TestClient, fuser: ScriptedFuser) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, 2]}}}
    chat(client, tools=[TOOL], response_format=format)
    assert fits(fuser, "2")
    assert not fits(fuser, "Two.")
    assert fits(fuser, '{"name": "weather", "arguments": {"city":"Bern"}}')
    chat(client, tools=[TOOL], response_format=format, tool_choice="required")
    assert not fits(fuser, "2")


def test_schemas_that_cannot_be_enforced_are_served_unless_they_are_strict(
    client: TestClient, fuser: ScriptedFuser
) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}, "p": {"type": "integer"}}}
    tool = {"name": "weather", "parameters": odd}
    chat(client, tools=[{"type": "function", "function": tool}])
    assert fits(fuser, '{"name": "weather", "arguments": {"a":[1,1],"p":2}}')
    assert not fits(fuser, '{"name": "weather", "arguments": {"p":"x"}}')
    hopeless = {"name": "weather", "parameters": {"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}}
    chat(client, tools=[{"type": "function", "function": hopeless}])
    assert fits(fuser, '{"name": "weather", "arguments": {"a":5}}')
    for fields in (tool | {"strict": True}, hopeless | {"strict": True}):
        body = CHAT | {"tools": [{"type": "function", "function": fields}]}
        assert error_of(client.post(CHAT_PATH, json=body), 400)["param"] == "tools[0].function.parameters"


EMAIL = {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)[a-z.]+@[a-z.]+$"}
HOPELESS = {"$ref": "http://x/y"}


def function(name: str, properties: dict[str, Any], **fields: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema} | fields}


NUMBER = {"n": {"type": "integer"}}
NAMED = {"type": "function", "function": {"name": "mail"}}


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
@pytest.mark.parametrize("strict", [True, False])
def test_a_pattern_that_cannot_be_enforced_costs_no_other_part_of_the_schemas(
    client: TestClient, fuser: ScriptedFuser, choice: Any, strict: bool
) -> None:
    """zod writes addresses with lookaround."""
    tools = [function("count", NUMBER, strict=strict), function("mail", {"to": EMAIL} | NUMBER)]
    chat(client, tools=tools, tool_choice=choice)
    assert fits(fuser, '{"name": "mail", "arguments": {"to":"a@b.de","n":1}}')
    assert not fits(fuser, '{"name": "mail", "arguments": {"to":"a","n":1}}')
    assert not fits(fuser, '{"name": "mail", "arguments": {"to":"a@b.de","n":"1"}}')
    if choice != NAMED:
        assert fits(fuser, '{"name": "count", "arguments": {"n":1}}')
        assert not fits(fuser, '{"name": "count", "arguments": {"n":"1"}}')


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("format", [None, {"type": "json_schema", "json_schema": {"schema": {"enum": [1]}}}])
def test_only_the_tool_whose_schema_cannot_be_enforced_goes_without(
    client: TestClient, fuser: ScriptedFuser, choice: str, strict: bool, format: Any
) -> None:
    good = [function(f"count{number}", NUMBER, strict=strict and number == 3) for number in range(6)]
    tools = [*good[:4], function("odd", {"a": HOPELESS}), *good[4:]]
    chat(client, tools=tools, tool_choice=choice, response_format=format)
    assert fits(fuser, '{"name": "odd", "arguments": {"a":5}}')
    assert not fits(fuser, '{"name": "odd", "arguments": 5}')
    for number in range(6):
        assert fits(fuser, f'{{"name": "count{number}", "arguments": {{"n":1}}}}')
        assert not fits(fuser, f'{{"name": "count{number}", "arguments": {{"n":"1"}}}}')
    assert fits(fuser, "1") == (choice == "auto")
    assert fits(fuser, "2") == (choice == "auto" and format is None)


def test_a_strict_tool_among_others_is_refused_by_its_place(client: TestClient) -> None:
    tools = [function("a", NUMBER), function("b", {"a": HOPELESS}), function("c", {"to": EMAIL}, strict=True)]
    for choice in ("auto", "required", {"type": "function", "function": {"name": "c"}}):
        error = error_of(client.post(CHAT_PATH, json=CHAT | {"tools": tools, "tool_choice": choice}), 400)
        assert error["param"] == "tools[2].function.parameters"
        assert "look-around" in error["message"]
    chat(client, tools=tools, tool_choice={"type": "function", "function": {"name": "b"}})
    body = CHAT | {"tools": tools[:2], "response_format": {"type": "json_schema", "json_schema": {
        "strict": True, "schema": {"type": "array", "uniqueItems": True}}}}  # fmt: skip
    assert error_of(client.post(CHAT_PATH, json=body), 400)["param"] == "response_format"


def test_values_of_calls_in_xml_follow_their_schemas(fuser: ScriptedFuser) -> None:
    call = "<tool_call>\n<function=f>\n<parameter=n>\n{}\n</parameter>\n</function>\n</tool_call>"
    settings = ServerSettings(tool_format="coder")
    with TestClient(create_app({"pair": ensemble(context=5000)}, fuser, settings)) as client:
        chat(client, tools=[function("f", NUMBER), function("g", {"to": EMAIL})])
        assert fits(fuser, call.format(5))
        assert not fits(fuser, call.format("abc"))
        told = {"text": {"type": "string", "pattern": "^a"}}
        body = CHAT | {"tools": [function("f", NUMBER, strict=True), function("g", told, strict=True)]}
        error = error_of(client.post(CHAT_PATH, json=body), 400)
    assert error["param"] == "tools[1].function.parameters"
    assert error["message"].startswith("tools[1].function.parameters.properties.text: pattern cannot be enforced")


def test_tools_whose_schemas_are_too_large_together_go_without(client: TestClient, fuser: ScriptedFuser) -> None:
    tools = [function(f"f{tool}", {f"{tool}p{number}": {} for number in range(400)}) for tool in range(60)]
    with TestClient(create_app({"pair": ensemble(context=1_000_000)}, fuser, ServerSettings())) as roomy:
        chat(roomy, tools=[*tools, function("count", NUMBER, strict=True)], tool_choice="required")
    assert fits(fuser, '{"name": "f3", "arguments": {"a":5}}')
    assert fits(fuser, '{"name": "count", "arguments": {"n":5}}')
    assert not fits(fuser, '{"name": "count", "arguments": {"a":5}}')


def test_looking_for_schemas_that_cannot_be_enforced_has_an_end(
    client: TestClient, fuser: ScriptedFuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that there is no work left for are left out; a strict one is enforced all the same."""
    checked = []
    check = GrammarTable.check

    def counted(table: GrammarTable, grammar: Grammar) -> None:
        checked.append(grammar)
        check(table, grammar)

    monkeypatch.setattr(GrammarTable, "check", counted)
    tools = [function(f"odd{number}", {"a": HOPELESS}) for number in range(50)]
    tools = [*tools, *(function(f"count{number}", NUMBER, strict=number == 1) for number in range(2))]
    monkeypatch.setattr(offer, "SCHEMA_WORK", 4000)
    with TestClient(create_app({"pair": ensemble(context=100_000)}, fuser, ServerSettings())) as roomy:
        chat(roomy, tools=tools)
    assert 0 < len(checked) < 50
    for number in (0, 20, 49):
        assert fits(fuser, f'{{"name": "odd{number}", "arguments": {{"a":5}}}}')
    assert fits(fuser, '{"name": "count0", "arguments": {"n":"1"}}')
    assert not fits(fuser, '{"name": "count1", "arguments": {"n":"1"}}')


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_called_and_all_are_shown(client: TestClient, fuser: ScriptedFuser, mode: str) -> None:
    """That is what they are for: the prompt, and what is cached of it, stays the same."""
    tools = [function(name, NUMBER) for name in ("first", "second", "third")]
    chat(client, tools=tools)
    prompt = shown(fuser)
    chat(client, tools=tools, tool_choice=allowed(mode, "third", "first"))
    assert shown(fuser) == prompt
    assert fits(fuser, "Text.") == (mode == "auto")
    for name in ("first", "second", "third"):
        assert fits(fuser, f'{{"name": "{name}", "arguments": {{"n":1}}}}') == (name != "second")
    line = '{"name": "second", "arguments": {"n":1}}'
    fuser.script = lambda submission: says(f"Look:\n{line}")
    assert chat(client, tools=tools, tool_choice=allowed(mode, "first"))["choices"][0]["finish_reason"] == "stop"
    responses = {
        "type": "allowed_tools",
        "mode": mode,
        "tools": [{"type": "function", "name": "second"}, {"type": "mcp", "server_label": "x"}],
    }
    flat = [{"type": "function", **tool["function"]} for tool in tools]
    answer = client.post("/v1/responses", json={"input": "hi", "tools": flat, "tool_choice": responses})
    assert answer.json()["tool_choice"] == responses
    assert fits(fuser, "Text.") == (mode == "auto")
    assert fits(fuser, line)
    assert not fits(fuser, line.replace("second", "first"))


def test_of_tools_that_are_not_allowed_no_schema_is_enforced(client: TestClient) -> None:
    tools = [function("count", NUMBER), function("odd", {"a": HOPELESS}, strict=True)]
    chat(client, tools=tools, tool_choice=allowed("required", "count"))
    body = CHAT | {"tools": tools, "tool_choice": allowed("auto", "count", "odd")}
    assert error_of(client.post(CHAT_PATH, json=body), 400)["param"] == "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (allowed("none", "weather"), "mode"),
        ({"type": "allowed_tools"}, "mode"),
        (allowed("auto"), "tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": "weather"}}, "tools"),
        (allowed("auto", "weather", "no"), "tools[1]"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["weather"]}}, "tools[0]"),
    ],
)
def test_allowed_tools_that_cannot_be_followed_are_named(
    client: TestClient, choice: dict[str, Any], param: str
) -> None:
    body = CHAT | {"tools": [TOOL], "tool_choice": choice}
    assert error_of(client.post(CHAT_PATH, json=body), 400)["param"] == f"tool_choice.allowed_tools.{param}"
    flat = {"type": "allowed_tools"} | choice.get("allowed_tools", {})
    if isinstance(flat.get("tools"), list):
        flat["tools"] = [one if isinstance(one, str) else {"type": "function"} | one["function"]
                         for one in flat["tools"]]  # fmt: skip
    body = {"input": "hi", "tools": [{"type": "function", **TOOL["function"]}], "tool_choice": flat}
    error = error_of(client.post("/v1/responses", json=body), 400)
    assert error["param"] == f"tool_choice.{param}"
    assert error["message"].startswith(f"tool_choice.{param} ")


def test_a_choice_of_another_kind_says_what_choices_there_are(client: TestClient) -> None:
    body = CHAT | {"tools": [TOOL], "tool_choice": {"type": "mcp"}}
    assert "allowed_tools" in error_of(client.post(CHAT_PATH, json=body), 400)["message"]


def test_128_tools_are_offered(client: TestClient, fuser: ScriptedFuser) -> None:
    names = [f"tool_{number}" for number in range(128)]
    tools = [{"type": "function", "function": TOOL["function"] | {"name": name}} for name in names]  # type: ignore[operator]
    with TestClient(create_app({"pair": ensemble(context=100_000)}, fuser, ServerSettings())) as roomy:
        chat(roomy, tools=tools)
        assert fits(fuser, '{"name": "tool_127", "arguments": {"city":"Bern"}}')


RESULT_OF_NOTHING = {"type": "tool_result", "tool_use_id": "x"}
USE_OF_A_LIST = {"type": "tool_use", "id": "x", "name": "f", "input": [1]}


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/messages", {"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ("/v1/messages", {"tools": [{"name": "f", "input_schema": []}]}, "tools[0].input_schema"),
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
         "output_config.format.schema"),
        ("/v1/messages", {"messages": [{"role": "user", "content": [RESULT_OF_NOTHING]}]},
         "messages[0].content[0].tool_use_id"),
        ("/v1/messages", {"messages": [{"role": "assistant", "content": [USE_OF_A_LIST]}]},
         "messages[0].content[0].input"),
        ("/v1/responses", {"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x", "strict": True,
                                              "schema": {"not": {}}}}},
         "text.format.schema"),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "x", "output": "a"}]},
         "input[0].call_id"),
        ("/v1/responses", {"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": {}}]},
         "input[0].arguments"),
        (CHAT_PATH, {"messages": [{"role": "assistant", "tool_calls": [CALL]},
                                  {"role": "tool", "tool_call_id": "call_2", "content": "a"}]},
         "messages[1].tool_call_id"),
        (CHAT_PATH, {"response_format": {"type": "json_schema",
                                         "json_schema": {"strict": True, "schema": {"not": {}}}}},
         "response_format"),
        (CHAT_PATH, {"response_format": {"type": "json_object", "schema": []}}, "response_format.schema"),
    ],
)  # fmt: skip
def test_each_api_names_its_own_field(client: TestClient, path: str, fields: dict[str, Any], named: str) -> None:
    body: dict[str, Any] = {"model": "pair", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    if path == "/v1/responses":
        body = {"model": "pair", "input": "hi"}
    answer = client.post(path, json=body | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert named in error["message"]
    if path != "/v1/messages":
        assert error["param"] == named


@pytest.mark.parametrize(
    ("pivot", "thoughts", "content"), [("a", None, "I see.</think>Yes"), ("b", "I see.", "Yes")]
)
def test_thoughts_are_those_that_the_prompt_of_the_chosen_pivot_opens(
    fuser: ScriptedFuser, pivot: str, thoughts: str | None, content: str
) -> None:
    """Of two members that a prompt chooses between, one begins to think in its template."""
    tokenizers = {"a": ByteTokenizer(), "b": ByteTokenizer("thinks")}
    plain = tokenizers["b"].encode_chat
    tokenizers["b"].encode_chat = lambda messages, **options: [*plain(messages, **options), *b"<think>\n"]
    pair = ensemble()
    models = {name: replace(model, tokenizer=tokenizers[name]) for name, model in pair.models.items()}
    views = {name: View(models, name, {}) for name in models}
    fuser.script = lambda submission: [
        replace(update, pivot=pivot) for update in says("I see.", "</think>", "Yes")
    ]
    both = replace(pair, models=models, views=views)
    settings = ServerSettings(reasoning_tags=("<think>", "</think>"))
    with TestClient(create_app({"pair": both}, fuser, settings)) as client:
        message = chat(client)["choices"][0]["message"]
    assert (message.get("reasoning"), message["content"]) == (thoughts, content)
