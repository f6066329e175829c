"""Schemas that are enforced as far as they can be, and what is said of those that cannot."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer
from fusion.sequence import lenience
from fusion.sequence.constraint import Constraint
from fusion.sequence.grammar import json_rule, json_schema, rules
from fusion.sequence.grammar_table import GrammarTable
from tests.support.toy_fuser import DEMO

EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"


@pytest.fixture(scope="module")
def table():
    tokenizer = Tokenizer.load(str(DEMO / "lingvo"))
    return GrammarTable(tokenizer, width=tokenizer.vocabulary_size, end_ids=[tokenizer.hf.eos_token_id])


def admits(table, schema, value):
    ids = [*table._encode(json.dumps(value, separators=(",", ":"))), table.end_ids[0]]
    return Constraint(table, grammar=json_schema(schema, lenient=True)).fits(ids) == len(ids)


@pytest.mark.parametrize(
    ("keywords", "good", "bad"),
    [
        ({"type": "string", "format": "email", "pattern": EMAIL}, "a@b.de", "ab"),
        ({"type": "string", "pattern": "^(?=a)b", "maxLength": 2}, "bb", "bbb"),
        ({"type": ["string", "null"], "pattern": r"(a)\1"}, None, 5),
        ({"type": "array", "uniqueItems": True, "maxItems": 2}, [1, 1], [1, 1, 1]),
        ({"type": "array", "minItems": 10**9, "items": {"type": "null"}}, [None], [1]),
        ({"type": "integer", "multipleOf": 0.00001, "minimum": 3}, 3, 2),
        ({"type": "string", "format": "path", "minLength": 2}, "ab", "a"),
        ({"oneOf": [{"type": "string", "maxLength": 3}, {"type": "string"}]}, "ab", 5),
        ({"enum": ["a", "(?!b)"], "pattern": "(?!b)"}, "(?!b)", "b"),
        ({"$ref": "#/$defs/bad"}, "x", 1),
        (
            {"type": "object", "patternProperties": {"^(?!a)": {"type": "null"}, "^z": {"type": "integer"}},
             "additionalProperties": False},
            {"b": None, "z": 1},
            {"z": "1"},
        ),
    ],
)  # fmt: skip
def test_a_lenient_schema_goes_without_the_keywords_that_cannot_be_enforced(table, keywords, good, bad):
    schema = {
        "type": "object",
        "properties": {"a": keywords, "n": {"type": "integer"}},
        "required": ["a", "n"],
        "$defs": {"bad": {"type": "string", "pattern": "(?<=x)y"}},
    }
    assert admits(table, schema, {"a": good, "n": 1})
    assert not admits(table, schema, {"a": bad, "n": 1})
    assert not admits(table, schema, {"a": good, "n": "1"}), "the rest is enforced"
    with pytest.raises(InvalidRequestError):
        table.compile(json_schema(schema))


def test_a_pattern_that_is_a_name_or_data_stays(table):
    schema = {"properties": {"pattern": {"const": {"pattern": "(?!x)"}}}, "required": ["pattern"]}
    assert admits(table, schema, {"pattern": {"pattern": "(?!x)"}})
    assert not admits(table, schema, {"pattern": {}})


def test_patterns_that_there_is_no_work_left_for_are_left_out(monkeypatch):
    many = [{"anyOf": [{"pattern": f"{kind}{number % 300}"} for number in range(600)]} for kind in ("a", "(?!b")]

    def left(schema):
        return sum("pattern" in one for one in schema["anyOf"])

    assert [*map(left, lenience.enforceable(many))] == [600, 0]
    tried = []
    refusal = lenience._refusal
    monkeypatch.setattr(lenience, "_refusal", lambda patterns: tried.extend(patterns) or refusal(patterns))
    monkeypatch.setattr(lenience, "PATTERN_WORK", 10_000)
    good, bad = lenience.enforceable(many)
    assert 0 < left(good) < 600
    assert left(bad) == 0
    assert sum(len(pattern) + 50 for pattern in tried) <= lenience.PATTERN_WORK


@given(st.sets(st.integers(0, 40)), st.integers(0, 500))
@example({3, 17}, 500)
def test_those_that_are_refused_are_found(wrong, work):
    looked = []

    def refusal(group):
        looked.extend(group)
        return min(wrong & set(group), default=None)

    found = dict(lenience.refused_among(range(40), refusal, cost=lambda item: 1, work=work))
    assert len(looked) <= work
    assert {item for item, error in found.items() if error is not None} <= wrong & set(range(40)) <= found.keys()
    if work == 500:
        assert all(item == error for item, error in found.items())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(?!limit)"},
        {"type": "object", "properties": {"limit": {"not": {}}}},
        {"$ref": "#/$defs/limit", "$defs": {"limit": {"not": {}}}},
    ],
)
def test_a_name_in_a_schema_is_not_taken_for_what_is_wrong_with_it(table, schema):
    for grammar in (json_schema(schema), rules(f"start: {json_rule(schema)}")):
        with pytest.raises(InvalidRequestError, match=r"look-around|not") as refused:
            table.compile(grammar)
        assert "large" not in refused.value.message
