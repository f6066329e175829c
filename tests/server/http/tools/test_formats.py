from __future__ import annotations

import json

import pytest

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer
from fusion.sequence.constraint import Constraint
from fusion.sequence.grammar_table import GrammarTable
from server.http.tools.calls import MOST_TOOLS, Tool, declared
from server.http.tools.formats import FORMATS, named_tool
from tests.support.toy_fuser import DEMO

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [Tool("f", "", SCHEMA), Tool("g", "", SCHEMA)]


def bad(**parameters):
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"} | parameters}}


@pytest.fixture(scope="module")
def table():
    tokenizer = Tokenizer.load(str(DEMO / "lingvo"))
    return GrammarTable(tokenizer, width=tokenizer.vocabulary_size, end_ids=[tokenizer.hf.eos_token_id])


def accepts(table, grammar, text):
    ids = [*table._encode(text), table.end_ids[0]]
    return Constraint(table, grammar=grammar).fits(ids) == len(ids)


def written(format, name):
    text = format.write(name, {"city": "Rome"})
    return text.replace('{"city": "Rome"}', '{"city":"Rome"}')


@pytest.mark.parametrize("name", FORMATS)
def test_the_grammar_of_a_format_admits_what_it_writes_and_demands_it_where_asked(table, name):
    format = FORMATS[name]
    auto = format.grammar(TOOLS, table)
    required = format.grammar(TOOLS, table, choice="required")
    named = format.grammar(TOOLS, table, choice={"type": "function", "function": {"name": "g"}})
    assert accepts(table, auto, "Just text.")
    assert accepts(table, auto, written(format, "f"))
    assert not accepts(table, auto, written(format, "h"))
    assert not accepts(table, required, "Just text.")
    assert accepts(table, required, written(format, "f"))
    assert accepts(table, named, written(format, "g"))
    assert not accepts(table, named, written(format, "f"))
    if format.opener:
        assert accepts(table, auto, "Well. " + written(format, "f"))


@pytest.mark.parametrize("name", ["hermes", "coder", "llama", "args", "json"])
def test_two_calls_are_admitted_unless_they_are_excluded(table, name):
    format = FORMATS[name]
    separator = {"llama": "; ", "args": ""}.get(name, "\n")
    two = separator.join([written(format, "f"), written(format, "g")])
    assert accepts(table, format.grammar(TOOLS, table, choice="required"), two)
    assert not accepts(table, format.grammar(TOOLS, table, choice="required", parallel=False), two)


@pytest.mark.parametrize("name", FORMATS)
def test_many_tools_keep_their_schemas(table, name):
    """Each has less than a schema may have, all together more."""
    texts = {"enum": ["x" * 1000, "y" * 1000]}
    many = [Tool(f"f{number}", "", SCHEMA | {"properties": {"city": texts}}) for number in range(50)]
    grammar = FORMATS[name].grammar(many, table, choice="required")
    assert accepts(table, grammar, FORMATS[name].write("f7", {"city": "x" * 1000}).replace('": "x', '":"x'))
    assert not accepts(table, grammar, written(FORMATS[name], "h"))


def test_a_tool_with_any_fields_takes_any(table):
    """Written as XML: without properties in its schema, one that does not exclude others is no empty call."""
    format = FORMATS["coder"]
    free = Tool("free", "", {"type": "object"})
    call = format.write("free", {"city": "Rome", "n": 7})
    assert accepts(table, format.grammar([free], table, choice="required"), call)
    assert accepts(table, format.grammar([free], table, choice="required"), format.write("free", {}))
    closed = Tool("free", "", {"type": "object", "additionalProperties": False})
    assert not accepts(table, format.grammar([closed], table, choice="required"), call)


def test_the_marks_of_a_format_are_all_that_may_be_control_tokens():
    assert FORMATS["args"].marks == ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    assert FORMATS["hermes"].marks == FORMATS["coder"].marks == ("<tool_call>", "</tool_call>")
    assert FORMATS["mistral"].marks == ("[TOOL_CALLS]",)
    assert FORMATS["json"].marks == ()


def test_no_tools_and_none_need_no_grammar(table):
    assert FORMATS["hermes"].grammar([], table) is None
    assert FORMATS["hermes"].grammar(TOOLS, table, choice="none") is None


@pytest.mark.parametrize(
    "choice", ["sometimes", {"function": {"name": "nope"}}, {"type": "function"}, {"function": "f"}]
)
def test_a_choice_that_cannot_be_followed_is_refused(choice):
    with pytest.raises(InvalidRequestError) as refused:
        named_tool(choice, TOOLS)
    assert refused.value.param == "tool_choice"


def test_instructions_hold_every_tool_and_the_form_of_a_call():
    text = FORMATS["hermes"].instructions(TOOLS)
    assert json.dumps(TOOLS[1].as_dict()["function"]) in text
    assert "<tool_call>" in text


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "web_search"}], "tools[0]"),
        (["f"], "tools[0]"),
        ([{"type": "function", "function": {"name": "bad name"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "x" * 129}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "f"}}] * 2, "tools[1].function.name"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], "tools[0].function.parameters"),
        ([{"type": "function", "function": {"name": f"f{i}"}} for i in range(MOST_TOOLS + 1)], "tools"),
        ([bad(properties=5)], "tools[0].function.parameters.properties"),
        ([bad(required=5)], "tools[0].function.parameters.required"),
        ([bad(required=[["a"]])], "tools[0].function.parameters.required"),
    ],
)
def test_bad_tools_are_refused_naming_the_place(tools, param):
    with pytest.raises(InvalidRequestError) as refused:
        declared(tools)
    assert refused.value.param == param


def test_many_tools_are_taken():
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(MOST_TOOLS)]
    assert len(declared(tools)) == MOST_TOOLS >= 128
