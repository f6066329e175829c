from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignment.errors import InvalidRequestError
from fusion.sequence.constraint import BadWords, Constraint, fill
from fusion.sequence.grammar import choice, json_object, json_schema, regex, rules
from fusion.sequence.grammar_table import GrammarTable
from fusion.sequence.structural import Tag, structural

PADDING = 7


@pytest.fixture(scope="module")
def tables(tokenizers):
    """A byte-level vocabulary, and one with byte fallback in which 95 characters have two ids."""
    made = {}
    for name in ("lingvo", "abacus"):
        tokenizer = tokenizers[name]
        made[name] = GrammarTable(
            tokenizer, width=tokenizer.vocabulary_size + PADDING, end_ids=[tokenizer.hf.eos_token_id]
        )
    return made


@pytest.fixture(params=["lingvo", "abacus"])
def table(request, tables):
    return tables[request.param]


def ids_of(table, text):
    return table._encode(text)


def walk(constraint, table, rng, *, limit=400, jump=False):
    """Text drawn uniformly from the masks (ends preferred where admitted), None where the limit cuts it off."""
    text = b""
    for _ in range(limit):
        if jump and (forced := constraint.forced()):
            for token in forced:
                assert constraint.mask()[token]
                constraint.take(token)
                text += table.surfaces[token]
            continue
        mask = constraint.mask()
        assert not mask[-PADDING:].any()
        if mask[table.end_ids[0]] and (constraint.stopped or rng.random() < 0.7):
            return text.decode() if constraint.accepting else None
        ids = np.flatnonzero(mask)
        ids = ids[~np.isin(ids, table.end_ids)]
        if not len(ids):
            return None
        closing = [i for i in ids if table.surfaces[i][:1] in b'"}],:' and len(table.surfaces[i]) == 1]
        pool = closing if closing and rng.random() < 0.6 else ids
        token = int(rng.choice(pool))
        constraint.take(token)
        text += table.surfaces[token]
    return None


def random_schema(rng, depth=0):
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "format", "pattern"]
    if depth < 3:
        kinds += ["object", "array", "anyOf", "ref"] * 2
    match rng.choice(kinds):
        case "string":
            low = rng.randint(0, 3)
            return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 5)}
        case "integer":
            low = rng.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)}
        case "number":
            return {"type": "number", "minimum": 0, "exclusiveMaximum": rng.randint(1, 90)}
        case "enum":
            return {"enum": rng.sample(["a", "b c", 3, None, True, "é", '"', "\n", 1.5], rng.randint(1, 4))}
        case "const":
            return {"const": rng.choice(["x y", 12, {"k": [1, "z"]}, [None]])}
        case "format":
            return {"type": "string", "format": rng.choice(["date", "ipv4", "uuid"])}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-f]{2,4}$", "^(yes|no)$", "^\\d{3}$"])}
        case "object":
            names = rng.sample(["a", "b", "name", "größe", 'q"'], rng.randint(0, 4))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": [name for name in names if rng.random() < 0.6],
                "additionalProperties": False,
            }
        case "array":
            low = rng.randint(0, 2)
            return {
                "type": "array",
                "items": random_schema(rng, depth + 1),
                "minItems": low,
                "maxItems": low + rng.randint(0, 2),
            }
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
        case "ref":
            return {"$ref": "#/$defs/leaf"}
        case kind:
            return {"type": kind}


LEAF = {"leaf": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"],
                 "additionalProperties": False}}  # fmt: skip


@pytest.mark.parametrize("jump", [False, True])
def test_a_random_walk_over_the_masks_of_a_random_schema_validates_whenever_it_finishes(table, jump):
    rng, finished = random.Random(7 + jump), 0
    for _ in range(80):
        schema = random_schema(rng) | {"$defs": LEAF}
        text = walk(Constraint(table, grammar=json_schema(schema)), table, rng, jump=jump)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)
            finished += 1
    assert finished >= 70


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 15, "maximum": 15.5},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 0.25},
        {"minimum": -3.5, "exclusiveMaximum": -3},
        {"minimum": -0.5, "exclusiveMaximum": 0.0},
        {"exclusiveMinimum": 15, "maximum": 17},
    ],
)
def test_numbers_keep_off_an_exclusive_bound(table, bounds):
    rng = random.Random(3)
    schema = {"type": "object", "properties": {"const": {"type": "number", **bounds}}, "required": ["const"]}
    grammar = json_schema(schema | {"additionalProperties": False})
    texts = [walk(Constraint(table, grammar=grammar), table, rng, jump=True) for _ in range(60)]
    found = [json.loads(text) for text in texts if text is not None]
    assert len(found) >= 40
    for value in found:
        jsonschema.validate(value, schema)


@pytest.mark.parametrize("other", [None, "x", [1]])
def test_a_bound_that_is_no_number_is_refused(table, other):
    grammar = json_schema({"type": "number", "exclusiveMinimum": 0, "minimum": other})
    with pytest.raises(InvalidRequestError):
        Constraint(table, grammar=grammar)


def test_data_in_a_schema_is_no_schema(table):
    wanted = {"exclusiveMinimum": 15}
    text = walk(Constraint(table, grammar=json_schema({"const": wanted})), table, random.Random(0), jump=True)
    assert text is not None
    assert json.loads(text) == wanted


def test_json_object_gives_an_object_and_an_empty_schema_too(table):
    rng = random.Random(3)
    for grammar in (json_object(), json_schema({}), json_schema({"type": "object"})):
        texts = [walk(Constraint(table, grammar=grammar), table, rng) for _ in range(10)]
        assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)
        assert any(text is not None for text in texts)


def test_regex_choice_and_both_notations_of_grammars_are_followed(table):
    rng = random.Random(1)
    same = [choice(["yes", "no"]), regex("yes|no"), rules('start: "yes" | "no"'), rules('root ::= "yes" | "no"')]
    for grammar in same:
        texts = {walk(Constraint(table, grammar=grammar), table, rng) for _ in range(20)}
        assert texts == {"yes", "no"}


def test_end_tokens_come_only_where_the_grammar_may_end(table):
    constraint, end = Constraint(table, grammar=regex("[0-9]{2,3}")), table.end_ids[0]
    for digit, may_end in (("1", False), ("2", True), ("3", True)):
        (token,) = ids_of(table, digit)
        constraint.take(token)
        assert (bool(constraint.mask()[end]), constraint.accepting) == (may_end, may_end)
    assert constraint.stopped
    assert np.flatnonzero(constraint.mask()).tolist() == [end]
    constraint.take(end)
    constraint.back(2)
    assert constraint.accepting
    assert not constraint.stopped
    with pytest.raises(ValueError, match="not admitted"):
        constraint.take(ids_of(table, "x")[0])


def test_going_back_gives_the_earlier_masks_and_a_copy_moves_alone(table):
    grammar = json_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    constraint = Constraint(table, grammar=grammar)
    ids = ids_of(table, '{"a":12}')
    masks = []
    for token in ids:
        masks.append(constraint.mask().copy())
        constraint.take(token)
    fork = constraint.copy()
    for count in range(1, len(ids) + 1):
        constraint.back(1)
        np.testing.assert_array_equal(constraint.mask(), masks[-count])
    assert fork.accepting
    assert not constraint.accepting


def test_fits_counts_the_draft_up_to_its_first_wrong_token_and_an_end_token_only_at_an_end(table):
    end = table.end_ids[0]
    constraint = Constraint(table, grammar=regex("abc[0-9]+"))
    right = ids_of(table, "abc") + ids_of(table, "4")
    before = constraint.mask().copy()
    assert constraint.fits([*right, end]) == len(right) + 1
    assert constraint.fits([*right, end, *right]) == len(right) + 1
    assert constraint.fits([*right, *ids_of(table, "z")]) == len(right)
    assert constraint.fits([right[0], end]) == 1
    np.testing.assert_array_equal(constraint.mask(), before)


def test_what_must_come_is_forced(table):
    constraint = Constraint(table, grammar=regex("The answer is: [0-9]+"))
    text = b"".join(table.surfaces[token] for token in constraint.forced())
    assert text
    assert b"The answer is: ".startswith(text)


def test_every_id_with_an_admitted_surface_is_admitted(tables):
    table = tables["abacus"]
    constraint = Constraint(table, grammar=regex("a"))
    twins = [id for id, surface in enumerate(table.surfaces) if surface == b"a"]
    assert len(twins) == 2
    assert np.flatnonzero(constraint.mask()).tolist() == twins
    for twin in twins:
        fork = constraint.copy()
        fork.take(twin)
        assert fork.stopped


def test_special_tokens_stay_out_of_free_text_and_come_where_a_tag_names_them(tables):
    table = tables["lingvo"]
    opener = table.special("<|im_start|>")
    free = Constraint(table, grammar=regex("(.|\n)*"))
    assert not free.mask()[opener]
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    tag = Tag("<|im_start|>", "f<|im_start|>", schema, "")
    constraint = Constraint(table, grammar=structural([tag], table))
    assert constraint.mask()[opener]
    constraint.take(opener)
    assert not constraint.accepting
    for token in [*ids_of(table, "f"), opener, *ids_of(table, "{}")]:
        constraint.take(token)
    assert constraint.accepting
    literal = Constraint(table, grammar=choice(["<|im_start|>"]))
    assert not literal.mask()[opener]
    assert literal.mask().any()


def test_a_trigger_in_free_text_must_be_completed_with_its_schema(table):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    tags = [Tag("<call>", f'{{"name": "{name}", "arguments": ', schema, "}</call>") for name in ("f", "g")]
    grammar = structural(tags, table)
    whole = 'Well: <call>{"name": "g", "arguments": {"city":"Rome"}}</call> done'
    ids = ids_of(table, whole)
    assert Constraint(table, grammar=grammar).fits(ids) == len(ids)
    half = Constraint(table, grammar=grammar)
    for token in ids_of(table, "Well: <call>"):
        half.take(token)
    assert not half.accepting
    wrong = ids_of(table, 'Well: <call>{"name": "h"')
    assert Constraint(table, grammar=grammar).fits(wrong) < len(wrong)
    required = Constraint(table, grammar=structural(tags, table, required=True))
    assert not required.accepting
    assert required.fits(ids_of(table, "Well")) == 0


def test_allowed_ids_and_bad_words_narrow_a_grammar(table):
    a, b, c = (ids_of(table, letter)[0] for letter in "abc")
    end = table.end_ids[0]
    both = Constraint(table, grammar=regex("[ab]{2}"), allowed_ids=[a, c])
    assert np.flatnonzero(both.mask()).tolist() == [a]
    both.take(a)
    both.take(a)
    assert both.mask()[end]
    only = Constraint(table, allowed_ids=[a, b])
    assert np.flatnonzero(only.mask()).tolist() == sorted([a, b])
    stuck = Constraint(table, grammar=regex("c"), allowed_ids=[a])
    assert np.flatnonzero(stuck.mask()).tolist() == [end]


def test_bad_words_never_occur_however_they_are_cut(table):
    words = ["ab", "bca", "é"]
    bad = BadWords(words, table)
    rng = random.Random(5)
    drawn = [Constraint(table, grammar=regex("[abcé]{8,12}"), bad_words=bad) for _ in range(60)]
    texts = [text for one in drawn if (text := walk(one, table, rng, limit=40))]
    assert not [text for text in texts if any(word in text for word in words)]
    assert len(texts) >= 10, "the rest began an é, and could not go on"
    free = Constraint(table, bad_words=bad)
    free.take(ids_of(table, "a")[0])
    refused = np.flatnonzero(~free.mask() & table.text_ids)
    expected = [
        id
        for id, surface in enumerate(table.surfaces)
        if surface and any(word.encode() in b"a" + surface for word in words)
    ]
    assert refused.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.text("ab é", min_size=1, max_size=12), min_size=1, max_size=6),
    tail=st.text("ab é", max_size=12),
)
def test_words_are_completed_by_what_goes_on_from_their_beginnings(tables, words, tail):
    assume(not any(word in tail for word in words))  # as they are kept out of it
    table, bad = tables["lingvo"], BadWords(words, tables["lingvo"])
    expected = {
        id for id, surface in enumerate(table.surfaces) if surface and breaks(words, tail.encode(), surface)
    }
    assert set(bad.after(tail.encode()).tolist()) == expected
    some = random.Random(1).sample(range(len(table.surfaces)), 50)
    assert all(bad.broken_by(tail.encode(), table.surfaces[id]) == (id in expected) for id in some)


def breaks(words, tail, surface):
    """Whether a word ends in the surface."""
    text = tail + surface
    ends = (at + len(word.encode()) for word in words for at in places(text, word.encode()))
    return any(end > len(tail) for end in ends)


def places(text, word):
    return (at for at in range(len(text)) if text.startswith(word, at))


def test_long_words_cost_a_round_no_more_than_a_look_at_each_end_of_the_text(tables):
    """A round is everybody's: however many and long the words are, they are not gone through again."""

    class Counted(bytes):
        looks = 0

        def __getitem__(self, key):
            Counted.looks += 1
            return super().__getitem__(key)

        def endswith(self, *args):
            Counted.looks += 1
            return super().endswith(*args)

    words = [f"{'ab' * 120} {number}" for number in range(128)]
    bad, tail = BadWords(words, tables["lingvo"]), Counted(words[0][:-1].encode())
    expected = {id for id, one in enumerate(tables["lingvo"].surfaces) if breaks(words, bytes(tail), one)}
    assert set(bad.after(tail).tolist()) == expected
    assert expected
    assert Counted.looks <= len(tail)


def test_masks_of_a_batch_are_those_of_each(table):
    grammars = [regex("[0-9]+"), json_object(), None, choice(["x"])]
    some = [Constraint(table, grammar=grammar) for grammar in grammars]
    same = [Constraint(table, grammar=grammar) for grammar in grammars]
    fill(some)
    for each, alone in zip(some, same, strict=True):
        np.testing.assert_array_equal(each.bits(), alone.bits())
        np.testing.assert_array_equal(each.mask(), alone.mask())


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {}}, "not"),
        ({"type": "string", "format": "path"}, "path"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "stringy"}, "stringy"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}, "properties"),
        ({"type": "integer", "multipleOf": 999983}, "multipleOf"),
        ({"$ref": "#"}, "no text"),
        ({"enum": ["v" * 70_000]}, "bytes"),
        ({"type": "string", "x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"enum": list(range(20_000))}, "parts"),
        ({"type": "array", "minItems": 10**9}, "minItems should be at most"),
        ({"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 1e9}]}, "maxItems should be at most"),
        ({"type": "number", "exclusiveMaximum": 10**400}, "number out of range"),
        (False, "JSON object"),
        ([1], "JSON object"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_naming_why(tables, schema, said):
    with pytest.raises(InvalidRequestError, match=said) as refused:
        tables["lingvo"].compile(json_schema(schema))
    assert refused.value.param == "response_format"
    assert "\n" not in refused.value.message


def test_deep_schemas_and_broken_grammars_are_refused(tables):
    deep: dict = {}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidRequestError, match="deep"):
        json_schema(deep)
    for broken in (regex("("), rules("start: foo")):
        with pytest.raises(InvalidRequestError):
            tables["lingvo"].compile(broken)
    for wrong in (lambda: rules("root ::= ("), lambda: choice([]), lambda: regex("")):
        with pytest.raises(InvalidRequestError):
            wrong()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('start: "a" %json {"type": "array", "minItems": 1000000000}', "minItems"),
        ('start: %json {"type": "array", "min\\u0049tems": 1000000000}', "minItems"),
        ('{"grammars": [{"json_schema": {"type": "array", "minItems": 1000000000}}]}', "not JSON"),
        ("start: %json schema", "%json"),
    ],
)
def test_a_schema_inside_a_grammar_is_held_to_the_same_limits(text, said):
    with pytest.raises(InvalidRequestError, match=said):
        rules(text)


def test_a_grammar_may_hold_a_schema(table):
    constraint = Constraint(table, grammar=rules('start: "n=" %json {"type": "integer", "minimum": 0}'))
    text = b"".join(table.surfaces[token] for token in constraint.forced())
    assert text
    assert b"n=".startswith(text)
