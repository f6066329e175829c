from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer
from fusion.sequence.constraint import Constraint
from fusion.sequence.grammar_table import GrammarTable
from server.http.tools.calls import MOST_TOOLS, Tool, declared
from server.http.tools.formats import FORMATS, named_tool
from server.http.tools.parser import ToolParser
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


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "additionalProperties": False}
DEFS = {"Kind": {"enum": ["a", "b"]}, "Node": NODE, "Kinds": {"type": "array", "items": {"$ref": "#/$defs/Kind"}}}


def field_call(name, *texts):
    fields = "".join(f"<parameter={name}>\n{text}\n</parameter>\n" for text in texts)
    return f"<tool_call>\n<function=f>\n{fields}</function>\n</tool_call>"


def one_field(schema, *, strict=False):
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    return Tool("f", "", parameters | {"$defs": DEFS}, strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 3}, ["3", "40"], ["2", "abc", '"3"', "3.5"]),
        ({"type": "boolean", "description": "Whether."}, ["true"], ["True", "1"]),
        ({"enum": ["a", "a b", ""]}, ["a", "a b", ""], ["b", '"a"', "a "]),
        ({"type": "string", "const": "null"}, ["null"], ["nul"]),
        ({"enum": ["a", 1, None, {"k": "v"}]}, ["a", "1", "null", '{"k":"v"}'], ["2", '"a"']),
        ({"type": "integer", "enum": ["a", 1, 2.0, True, None]}, ["1", "2"], ["a", "true", "null"]),
        ({"type": "array", "items": {"enum": ["p", "q"]}}, ["[]", '["p","q"]'], ["p", '["r"]']),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["7", "null"], ["x"]),
        ({"anyOf": [{"$ref": "#/$defs/Kind"}, {"type": "null"}], "default": None}, ["a", "null"], ["c"]),
        ({"oneOf": [{"const": "a"}, {"type": "integer"}]}, ["a", "5"], ["b"]),
        ({"allOf": [{"$ref": "#/$defs/Kind"}], "title": "K"}, ["b"], ["c"]),
        ({"allOf": [{"type": "integer"}, {"minimum": 4}]}, ["4"], ["3", "x"]),
        ({"$ref": "#/$defs/Node"}, ["{}", '{"next":{"next":{}}}'], ['{"next":1}', "x"]),
        ({"$ref": "#/$defs/Kinds"}, ['["a"]'], ['["c"]', "a"]),
        ({"type": "string"}, ["", "a\nb", "7", "<b>"], []),
        ({"type": ["string", "null"]}, ["null", "x"], []),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["x", "7"], []),
        ({}, ["x", "7"], []),
    ],
)
def test_the_values_of_a_coder_call_follow_their_schemas(table, schema, good, bad, strict):
    tool = one_field(schema, strict=strict)
    grammar = FORMATS["coder"].grammar([tool], table, choice="required")
    for text in good:
        assert accepts(table, grammar, field_call("x", text)), text
        parser = ToolParser(FORMATS["coder"], [tool])
        parser.push(field_call("x", text))
        [call] = parser.calls
        jsonschema.validate(json.loads(call.arguments), tool.parameters)
    for text in bad:
        assert not accepts(table, grammar, field_call("x", text)), text
    assert not accepts(table, grammar, field_call("x")), "it is required"


def test_what_a_coder_call_may_be_satisfies_its_schema(table):
    """Texts drawn from the masks."""
    properties = {
        "n": {"type": "integer", "minimum": -9, "maximum": 99},
        "kind": {"enum": ["a b", "</parameter>", 3, None]},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "point": {"anyOf": [{"$ref": "#/$defs/Kind"}, {"type": "null"}, {"type": "number", "maximum": 1}]},
        "other": {"const": "x"},
    }
    required = ["n", "flags", "other"]
    schema = {"type": "object", "properties": properties, "required": required, "$defs": DEFS}
    tool = Tool("f", "", schema)
    grammar = FORMATS["coder"].grammar([tool], table, choice="required", parallel=False)
    seen = set()
    for seed in range(60):
        constraint, rng, text = Constraint(table, grammar=grammar), random.Random(seed), b""
        while not constraint.stopped and len(text) < 2000:
            token = rng.choice(np.flatnonzero(constraint.mask()))
            constraint.take(int(token))
            text += table.surfaces[token]
        parser = ToolParser(FORMATS["coder"], [tool])
        assert [*parser.push(text.decode()), *parser.finish()] == parser.calls
        arguments = json.loads(parser.calls[0].arguments)
        jsonschema.validate(arguments, tool.parameters)
        seen |= {(name, type(value)) for name, value in arguments.items()}
    assert {("kind", str), ("kind", int), ("kind", type(None)), ("flags", list), ("n", int)} <= seen
    assert len({kind for name, kind in seen if name == "point"}) > 1


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"properties": {"x": {"type": "string", "pattern": "^a"}}}, "properties.x: pattern"),
        ({"properties": {"x": {"type": ["string", "null"], "maxLength": 3}}}, "properties.x: maxLength"),
        ({"properties": {"x": {"oneOf": [{"type": "string"}, {"const": "a"}]}}}, "properties.x: oneOf"),
        ({"properties": {"x": {"enum": ["a"], "pattern": "b"}}}, "properties.x: pattern"),
        ({"properties": {"x": {"minimum": 3}}}, "properties.x: minimum"),
        ({"properties": {"x": {"type": "array", "items": {"$ref": "#"}}}}, "properties.x: $ref"),
        ({"properties": {"x": {"$ref": "#/$defs/None"}}}, "properties.x: $ref"),
        ({"properties": {"a>b": {"type": "integer"}}}, "properties.a>b: such a name"),
        ({"properties": {"x": {"type": "integer"}}, "anyOf": [{"required": ["x"]}]}, "anyOf"),
        ({"additionalProperties": {"type": "string", "format": "date"}}, "additionalProperties: format"),
    ],
)
def test_what_a_strict_coder_tool_cannot_be_held_to_is_refused(table, parameters, told):
    tool = Tool("f", "", {"type": "object"} | parameters, strict=True)
    with pytest.raises(InvalidRequestError, match=re.escape(told)) as refused:
        FORMATS["coder"].grammar([tool], table, choice="required", param="here")
    assert refused.value.message.startswith("here")
    lenient = FORMATS["coder"].grammar([replace(tool, strict=False)], table, choice="required")
    assert accepts(table, lenient, "<tool_call>\n<function=f>\n</function>\n</tool_call>")


def test_definitions_that_many_fields_refer_to_do_not_cost_the_tool_its_names(table):
    """They stand with each field; where there is no room left for them any text is admitted."""
    texts = {"enum": [{"k": "x" * 1000}] * 10}
    items = {"type": "array", "items": {"$ref": "#/$defs/Long"}}
    properties = {f"p{number}": items | {"maxItems": number} for number in range(50)}
    tool = Tool("f", "", {"type": "object", "properties": properties, "$defs": {"Long": texts}})
    grammar = FORMATS["coder"].grammar([tool], table, choice="required")
    assert not accepts(table, grammar, field_call("p0", "x"))
    assert accepts(table, grammar, field_call("p49", "x"))
    assert not accepts(table, grammar, field_call("other", "x"))


def test_fields_that_no_schema_names_have_the_type_of_others(table):
    tool = Tool("f", "", {"type": "object", "additionalProperties": {"type": "integer"}})
    grammar = FORMATS["coder"].grammar([tool], table, choice="required")
    assert accepts(table, grammar, field_call("any", "5", "6"))
    assert not accepts(table, grammar, field_call("any", "x"))
    texts = ToolParser(FORMATS["coder"], [replace(tool, parameters={"additionalProperties": {"type": "string"}})])
    texts.push(field_call("any", "5"))
    assert json.loads(texts.calls[0].arguments) == {"any": "5"}


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
