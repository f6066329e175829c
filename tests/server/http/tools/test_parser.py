from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from server.http.tools.calls import Tool, ToolCall
from server.http.tools.formats import FORMATS
from server.http.tools.parser import ToolParser

TOOLS = [
    Tool("f", "", {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}),
    Tool("g.h-1"),
]


def parse(name, pieces):
    numbers = itertools.count()
    parser = ToolParser(FORMATS[name], TOOLS, new_id=lambda: f"id{next(numbers)}")
    out = [piece for text in pieces for piece in parser.push(text)] + parser.finish()
    return "".join(p for p in out if isinstance(p, str)), [p for p in out if isinstance(p, ToolCall)]


def split(text, cuts):
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


arguments = st.dictionaries(
    st.sampled_from(["city", "n", "x"]),
    st.one_of(
        st.text('ab"\\{}[]<>\né', max_size=8), st.integers(), st.lists(st.integers(), max_size=3), st.none()
    ),
    max_size=3,
)
calls = st.lists(st.tuples(st.sampled_from(["f", "g.h-1"]), arguments), max_size=3)
fragments = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", '{"name": "f", "arguments": {"a": "}"}}',
         '\n{"name": "f", ', '"type": "function", ', '"parameters": {"a": 1}}', "\n{",
         "{", "}",
         '{"name": "f", "parameters": {}}', "[", "]", '"', "\\", "<function=f>", "</function>", "<parameter=n>",
         "3", "</parameter>", " ", "\n", ";", "hi", "f", "<|python_tag|>", "<"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"city": "a\\ud83d"}}</tool_call>'),
        ("args", '[TOOL_CALLS]f[ARGS]{"city": "a\\ud83d"}'),
    ],
)
def test_half_a_surrogate_pair_is_replaced(name, text):
    """It has no UTF-8, and many parsers of JSON refuse its escape."""
    said, [call] = parse(name, [text])
    assert (said, json.loads(call.arguments)) == ("", {"city": "a\ufffd"})


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_a_number_that_json_does_not_have_stays_a_text(value):
    text = f"<tool_call><function=f><parameter=n>{value}</parameter></function></tool_call>"
    [call] = parse("coder", [text])[1]
    assert json.loads(call.arguments) == {"n": value}


@pytest.mark.parametrize("name", FORMATS)
@given(text=fragments, cuts=st.lists(st.integers(0, 10_000), max_size=12))
@example(text='<tool_call>\n{"name": "f"}\n</tool_call', cuts=[])
@example(text='hi \n <tool_call> {"name": "no"}\n', cuts=[])
@example(text='hi \n {"name": "f", "arguments": 5}\n {"name": "f"}', cuts=[])
def test_any_cut_of_any_text_gives_the_same(name, text, cuts):
    said, found = parse(name, [text])
    assert parse(name, split(text, cuts)) == (said, found) == parse(name, list(text))
    assert found or said == text


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "args", "json"])
@given(wanted=calls, cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_what_a_format_writes_is_read_back(name, wanted, cuts):
    text = "\n".join(FORMATS[name].write(*call) for call in wanted)
    content, found = parse(name, split(text, cuts))
    assert content == ""
    assert [(call.name, json.loads(call.arguments)) for call in found] == wanted
    assert [call.index for call in found] == list(range(len(wanted)))


def test_coder_parameters_have_the_types_of_the_schema():
    text = FORMATS["coder"].write("f", {"city": "7", "n": 7})
    _, (call,) = parse("coder", [text])
    assert json.loads(call.arguments) == {"city": "7", "n": 7}


REF = {"$defs": {"Kind": {"enum": ["a", "b"]}}}


@pytest.mark.parametrize(
    ("schema", "value", "read"),
    [
        ({"type": "string"}, "12345", "12345"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "12345", "12345"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"type": ["string", "null"]}, "true", "true"),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": "integer"}, "7", 7),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"$ref": "#/$defs/Kind"}, "5", "5"),
        ({"$ref": "#/$defs/none"}, "5", 5),
        ({"oneOf": 7, "type": {}, "enum": "a", "$ref": "#/$defs"}, "5", 5),
        ({}, "5", 5),
        (None, "x", "x"),
    ],
)
def test_what_may_be_a_string_is_one(schema, value, read):
    tools = [Tool("f", "", {"type": "object", "properties": {"x": schema}} | REF)]
    text = f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n</function>\n</tool_call>"
    [call] = ToolParser(FORMATS["coder"], tools).push(text)
    assert json.loads(call.arguments) == {"x": read}


@pytest.mark.parametrize("value", ["a", "</function>", "</function> x", "</function>\n</tool", "</func"])
def test_an_xml_call_ends_at_its_end_however_it_is_cut(value):
    tools = [Tool("f", "", {"type": "object", "properties": {"x": {"type": "string"}}})]
    text = f"<tool_call><function=f><parameter=x>{value}</parameter></function>\n \n</tool_call>!"
    for size in 1, 2, 3, 7:
        parser = ToolParser(FORMATS["coder"], tools)
        found = [piece for at in range(0, len(text), size) for piece in parser.push(text[at : at + size])]
        [call] = parser.calls
        assert json.loads(call.arguments) == {"x": value}
        assert "".join(piece for piece in found if isinstance(piece, str)) == "!"


texts = st.lists(
    st.sampled_from(
        ["</parameter>", "</function>", "</tool_call>", "<parameter=n>", "<function=f>", "<tool_call>",
         "\n", " ", "a"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@given(
    wanted=st.lists(st.dictionaries(st.sampled_from(["city", "other"]), texts, max_size=2), max_size=3),
    cuts=st.lists(st.integers(0, 10_000), max_size=8),
)
@example(wanted=[{"city": "a</parameter>b"}], cuts=[])
@example(wanted=[{"city": "</function></tool_call>"}, {"city": "\n</function>\n</tool_call>\n"}], cuts=[20])
@example(wanted=[{"city": "\n</parameter> and\n<parameter=n>\n5", "other": "</parameter>\n"}], cuts=[])
def test_the_text_of_a_field_may_hold_any_tag_within_a_line(wanted, cuts):
    """As the grammar has it: a field ends with the first line that closes it."""
    assume(not any("\n</parameter>\n" in f"{text}\n" for fields in wanted for text in fields.values()))
    properties = {"city": {"type": "string"}, "other": {"type": "string"}}
    parser = ToolParser(FORMATS["coder"], [Tool("f", "", {"type": "object", "properties": properties})])
    text = "\n".join(FORMATS["coder"].write("f", fields) for fields in wanted)
    out = [piece for part in split(text, cuts) for piece in parser.push(part)] + parser.finish()
    assert [json.loads(call.arguments) for call in parser.calls] == wanted
    assert not [piece for piece in out if isinstance(piece, str)]


@pytest.mark.parametrize(
    "text",
    [
        "<function=f><parameter=city>Rome</parameter><parameter=n>7</parameter></function>",
        "\n<function=f>\n<parameter=city>\nRome</parameter>\n<parameter=n>7</parameter>\n</function>",
        "\n<function=f>\n<parameter=city>Rome\n</parameter><parameter=n>\n7\n</parameter></function>",
        "<function=f> <parameter=city>Rome</parameter> and <parameter=n>7</parameter>\n\n</function>\n",
    ],
)  # fmt: skip
def test_a_call_in_other_lines_than_the_grammar_has_is_read_all_the_same(text):
    text = f"<tool_call>{text}</tool_call>"
    for pieces in ([text], [*text], [text[:50], text[50:]]):
        content, [call] = parse("coder", pieces)
        assert (content, json.loads(call.arguments)) == ("", {"city": "Rome", "n": 7})


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("json", "x" + "\n" * 50_000),
        ("json", "x" + "\n{" * 30_000),
        ("json", "x" + '\n{"name": "f", "arguments": 5}' * 3000),
        ("json", "x" + '\n{"name": "f", "arguments": {' * 3000),
        ("json", 'x\n{"name": "' + "f" * 50_000),
        ("json", "x\n" + " " * 50_000 + "{"),
        ("coder", "<tool_call>\n<function=f>\n<parameter=city>\n" + "</parameter> </function> " * 4000),
        ("coder", "<tool_call>\n<function=f>\n" + "<parameter=city>\n\n</parameter>\n" * 3000 + "x"),
        ("coder", "<tool_call><function=f>" + "<parameter=city>" * 6000 + "</function></tool_call>"),
        ("coder", "<tool_call><function=f>" + "<parameter=" * 9000 + "</function></tool_call>"),
        ("coder", "<tool_call><function=f>" + "<parameter=\n" * 8000 + ">" + "</function></tool_call>"),
        ("coder", "<tool_call>\n<function=" + "f" * 100_000),
        ("coder", "<tool_call>\n<function=f>\n</function>" + " " * 100_000),
        ("coder", "<tool_call>\n<function=f>\n<parameter=a>\n</function></tool_call>" * 1500),
    ],
)  # fmt: skip
def test_no_text_takes_the_time_of_its_square(name, text):
    begun = time.perf_counter()
    for pieces in ([text], [text[at : at + 7] for at in range(0, len(text), 7)]):
        parse(name, pieces)
    assert time.perf_counter() - begun < 3


def test_a_schema_that_names_itself_is_read_once():
    node = {"anyOf": [{"$ref": "#/$defs/N"}] * 50 + [{"type": "string"}]}
    tools = [Tool("f", "", {"type": "object", "properties": {"x": {"$ref": "#/$defs/N"}}, "$defs": {"N": node}})]
    text = "<tool_call><function=f><parameter=x>7</parameter></function></tool_call>"
    [call] = ToolParser(FORMATS["coder"], tools).push(text)
    assert json.loads(call.arguments) == {"x": "7"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_cut_off_is_text(name):
    whole = FORMATS[name].write("f", {"city": "Rome"})
    for size in range(1, len(whole.removesuffix("\n</tool_call>"))):
        content, found = parse(name, [whole[:size]])
        assert (content, found) == (whole[:size], [])


@pytest.mark.parametrize("name", ["hermes", "coder"])
@pytest.mark.parametrize("before", ["", "Well.\n", "two"])
def test_a_call_that_lacks_no_more_than_its_closing_mark_is_one(name, before):
    """A stop string or the limit may have taken the mark, or it stands for no text."""
    call = FORMATS[name].write("f", {"city": "Rome"})
    before = f"{call}\n" if before == "two" else before
    for size in range(len(call.removesuffix("</tool_call>")) - 1, len(call)):
        for pieces in ([before + call[:size]], [*(before + call[:size])]):
            content, found = parse(name, pieces)
            assert content == ("" if call in before else before.strip())
            assert [(one.name, one.arguments) for one in found] == [("f", '{"city": "Rome"}')] * len(found)
            assert len(found) == (2 if call in before else 1)


def test_text_around_calls_is_content_without_the_white_space_beside_them():
    call = FORMATS["hermes"].write("f", {})
    content, found = parse("hermes", [f"Let me see.\n\n{call}\n{call}\n"])
    assert content == "Let me see."
    assert [(call.name, call.arguments) for call in found] == [("f", "{}")] * 2


@pytest.mark.parametrize("text", ["x < y", "{a}", '{"name": "unknown", "arguments": {}}', "1 [TOOL 2", "   "])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_call_stays_as_it_was(name, text):
    assert parse(name, list(text)) == (text, [])


LATER = '{"name": "f", "parameters": {"city": "Rome"}}'


@pytest.mark.parametrize("name", ["llama", "json"])
@pytest.mark.parametrize("call", [LATER, LATER.replace('{"name"', '{"type": "function", "name"', 1)])
def test_a_call_that_nothing_marks_may_begin_a_later_line(name, call):
    for text in (f"Let me check.\n{call}", f"Let me check.\n\n  {call}\n", f"{{a}}\n{call}"):
        for pieces in ([text], [*text]):
            content, found = parse(name, pieces)
            assert content == text[: text.index("\n")]
            assert [(one.name, one.arguments) for one in found] == [("f", '{"city": "Rome"}')]
    content, found = parse(name, [*f"One.\n{call}; {call}\n\nTwo.\n{call}\nThree.\n"])
    assert (content, len(found)) == ("One.Two.Three.", 3)


@pytest.mark.parametrize("name", ["llama", "json"])
@pytest.mark.parametrize(
    "line",
    [
        '{"name": "unknown", "parameters": {}}',
        '{"name": "f", "parameters": 5}',
        '{"name": "f", "parameters": {}',
        '{"city": "Rome", "name": "f", "parameters": {}}',
        '{"name" "f"}',
        '{"name": ["f"]}',
        'A call: {"name": "f", "parameters": {}}',
        '[{"name": "f", "parameters": {}}]',
        '{"name":' + " " * 300 + '"f", "parameters": {}}',
        "{",
    ],
)
def test_what_is_no_call_on_a_later_line_stays_as_it_was(name, line):
    for text in (f"Look:\n\n  {line}\nSo.\n", f"Look:\n{line}", f"\n\n{{a}}\n {line}\n"):
        for pieces in ([text], [*text]):
            assert parse(name, pieces) == (text, [])


def test_no_more_is_held_back_than_may_begin_a_call():
    parser = ToolParser(FORMATS["json"], TOOLS)
    assert parser.push("Look: ") == ["Look:"]
    assert parser.push("{a}\n{") == [" {a}"]
    assert parser.push('"n') == []
    assert parser.push("o") == ['\n{"no']
    assert parser.push('\n{"name": "f') == []
    assert parser.push("g") == ['\n{"name": "fg']
    assert parser.push('\n{"name": "f", "arg') == []
    assert len(parser.push('uments": {}}')) == 1
    assert parser.finish() == []


def test_calls_on_later_lines_are_one_where_one_is_wanted():
    parser = ToolParser(FORMATS["json"], TOOLS, parallel=False)
    out = parser.push(f"One.\n{LATER}\n{LATER}\nTwo.\n{LATER}") + parser.finish()
    assert out == ["One.", *parser.calls, f"{LATER}\nTwo.\n{LATER}"]
    assert len(parser.calls) == 1


def test_no_arguments_are_an_empty_object():
    for text in ('{"name": "f"}', '{"name": "f", "parameters": null}', '{"name": "f", "parameters": ""}'):
        _, (call,) = parse("llama", [text])
        assert call.arguments == "{}"


def test_the_deltas_name_a_call_once():
    opening, rest = ToolCall(1, "id", "f", '{"a":1}').deltas()
    assert opening == [{"index": 1, "id": "id", "type": "function", "function": {"name": "f", "arguments": ""}}]
    assert rest == [{"index": 1, "function": {"arguments": '{"a":1}'}}]


def test_mistral_ids_have_nine_letters_or_digits():
    for _ in range(20):
        id = FORMATS["mistral"].new_id()
        assert len(id) == 9
        assert id.isalnum()


@pytest.mark.alone
def test_a_long_call_in_small_pieces_takes_time_in_proportion():
    def seconds(length):
        text = FORMATS["hermes"].write("f", {"city": '"' * length})
        pieces = split(text, range(0, len(text), 3))
        began = time.thread_time()
        _, found = parse("hermes", pieces)
        taken = time.thread_time() - began
        assert len(found) == 1
        return taken

    # What else runs on the machine only adds. Were all read anew with every piece, it would be 16 times as long.
    short, long = (min(seconds(length) for _ in range(3)) for length in (12_500, 50_000))
    assert long < 9 * short
