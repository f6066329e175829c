"""A budget of thoughts in one constraint: counted in tokens, closed in time, whatever cut the text comes in."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import UnsupportedError
from alignment.text.tokenizer import Tokenizer
from fusion.sequence.constraint import BadWords, Constraint
from fusion.sequence.grammar import regex
from fusion.sequence.grammar_table import GrammarTable
from fusion.sequence.structural import after_thoughts
from fusion.sequence.thoughts import Budget
from tests.support.small_tokenizers import byte_level
from tests.support.toy_fuser import DEMO

TEXT = ("<think>", "</think>")
# The pivot has the tags as several tokens, as one token of text, or as one special token.
KINDS = {
    "bytes": ("lingvo", TEXT),
    "fallback": ("abacus", TEXT),
    "added": ("added", TEXT),
    "special": ("almanac", ("<|user|>", "<|assistant|>")),
    "half special": ("almanac", ("<think>", "<|assistant|>")),
    "characters": ("lingvo", ("◁denken▷", "◁/denken▷")),
}


@cache
def table_of(name: str) -> GrammarTable:
    tokenizer = byte_level(*TEXT) if name == "added" else Tokenizer.load(str(DEMO / name))
    return GrammarTable(tokenizer, width=tokenizer.vocabulary_size, end_ids=[tokenizer.hf.eos_token_id])


def constraint_of(kind, tokens, *, begun=None, grammar=None, **options):
    name, tags = KINDS[kind]
    table = table_of(name)
    ids = [id for id in map(table.special, tags) if id is not None]
    thoughts = Budget(tags, tokens, begun).of(table)
    made = None if grammar is None else after_thoughts(grammar, table, tags, opened=begun is not None)
    return Constraint(table, grammar=made, thoughts=thoughts, marks=ids, **options), thoughts


def spent(thoughts, ids, opened):
    """How many tokens stand between the tags, by a naive look at the text after each; None while none is open."""
    text, began, count = b"", 0 if opened else None, 0
    for at, token in enumerate(ids, 1):
        text += thoughts.surface(token)
        if began is None:
            if text.lstrip().startswith(thoughts.opening):
                began, text = at, text.lstrip().removeprefix(thoughts.opening)
        elif thoughts.closing in text:
            return count, True
        else:
            count = at - began
    return (None if began is None else count), thoughts.closing in text and began is not None


def walk(constraint, rng, limit, *, jump=False):
    """Tokens drawn uniformly from the masks, or forced; those that end the answer are left out."""
    ids = []
    while len(ids) < limit:
        forced = constraint.forced() if jump else []
        mask = constraint.mask()
        mask[list(constraint._table.end_ids)] = False
        for token in forced or [int(rng.choice(np.flatnonzero(mask)))]:
            assert constraint.admits(token)
            constraint.take(token)
            ids.append(token)
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jump", [True, False])
@settings(max_examples=15, deadline=None)
@given(budget=st.integers(0, 9), opened=st.booleans(), seed=st.integers(0, 999))
def test_thoughts_take_no_more_tokens_than_they_may(kind, jump, budget, opened, seed):
    constraint, thoughts = constraint_of(kind, budget, begun="" if opened else None)
    rng = random.Random(seed)
    begin = [] if opened else constraint._table.tokens_of(thoughts.opening.decode())
    for token in begin:
        constraint.take(token)
    ids = [*begin, *walk(constraint, rng, 40, jump=jump)]
    count, closed = spent(thoughts, ids, opened)
    assert closed
    text = b"".join(map(thoughts.surface, ids))
    tag = constraint._table.tokens_of(thoughts.closing.decode())
    assert count is not None
    # At the most as many as it may, the rest of a character, and the tokens of the tag but the last, which
    # completes it.
    assert count <= budget + 3 + len(tag) - 1
    assert text.index(thoughts.closing) >= 0
    free = constraint.mask()
    assert free.sum() > 100, "after the tag everything may come"


@pytest.mark.parametrize("kind", KINDS)
def test_the_tag_comes_once_the_budget_is_spent(kind):
    constraint, thoughts = constraint_of(kind, 3, begun="")
    tag = constraint._table.tokens_of(thoughts.closing.decode())
    word = constraint._table.tokens_of("a")
    for _ in range(3):
        assert constraint.forced() == []
        assert not constraint.stopped
        constraint.take(word[0])
    assert constraint.forced() == tag
    assert constraint.fallback() == tag[0]
    assert np.flatnonzero(constraint.mask()).tolist() == tag[:1]
    assert not constraint.accepting
    with pytest.raises(ValueError, match="not admitted"):
        constraint.take(word[0])
    with pytest.raises(ValueError, match="must go on"):
        constraint.take(constraint._table.end_ids[0])
    for number, token in enumerate(tag):
        assert constraint.forced() == tag[number:]
        constraint.take(token)
    assert constraint.forced() == []
    assert constraint.admits(word[0])
    assert constraint.accepting


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_is_not_cut_in_two(kind):
    """Its bytes are waited for, but not for ever where others come."""
    table = table_of(KINDS[kind][0])
    tag = table.tokens_of(KINDS[kind][1][1])
    character = table.tokens_of("🎉")[-4:]
    assert b"".join(table.surfaces[token] for token in character) == "🎉".encode(), "in one token a byte"
    for budget in range(1, 4):
        constraint, _ = constraint_of(kind, budget, begun="")
        for token in character:
            assert constraint.forced() == []
            constraint.take(token)
        assert constraint.forced() == tag
    constraint, _ = constraint_of(kind, 1, begun="")
    for _ in range(4):
        assert constraint.forced() == []
        constraint.take(character[0])
    assert constraint.forced() == tag


def test_a_tag_that_is_begun_when_the_budget_ends_is_completed():
    constraint, _ = constraint_of("bytes", 3, begun="")
    table = constraint._table
    for token in (table.tokens_of("a")[0], *table.tokens_of("</")[:2]):
        constraint.take(token)
    rest = b"".join(table.surfaces[token] for token in constraint.forced())
    assert b"</" + rest == b"</think>"


def test_an_answer_that_does_not_begin_with_thoughts_has_no_budget():
    for text in ("Hi <think>", "<thin", "a", " <|user|>"):
        constraint, _ = constraint_of("bytes", 0)
        for token in constraint._table.tokens_of(text):
            constraint.take(token)
        for _ in range(5):
            assert constraint.forced() == []
            constraint.take(constraint._table.tokens_of("a")[0])


def test_thoughts_in_the_prompt_count():
    begun = " one two three "
    for budget, left in ((2, 0), (None, 2)):
        count = len(table_of("lingvo").tokens_of(begun.strip()))
        constraint, _ = constraint_of("bytes", budget or count + left, begun=begun)
        for _ in range(left):
            assert constraint.forced() == []
            constraint.take(constraint._table.tokens_of("a")[0])
        assert constraint.forced()
    constraint, _ = constraint_of("bytes", 1, begun="\n ")
    assert constraint.forced() == [], "white space is nobody's thought"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [True, False])
def test_a_grammar_begins_after_the_tag(kind, opened):
    constraint, thoughts = constraint_of(kind, 2, begun="" if opened else None, grammar=regex("yes: [ab]"))
    table = constraint._table
    if not opened:
        for token in table.tokens_of(thoughts.opening.decode()):
            if token not in constraint.forced()[:1]:
                constraint.take(token)
            else:  # the rest of the tag is forced
                for forced in constraint.forced():
                    constraint.take(forced)
                break
    for _ in range(2):
        constraint.take(table.tokens_of("b")[0])
    ids = constraint.forced()
    text = b"".join(map(thoughts.surface, ids))
    assert text.startswith(thoughts.closing)
    for token in ids:
        constraint.take(token)
    answer = table.tokens_of("yes: a")
    assert constraint.fits(answer) == len(answer)
    assert constraint.fits(table.tokens_of("no")) == 0


def test_a_budget_of_nothing_forces_both_tags_and_the_grammar_between_its_choices():
    constraint, _ = constraint_of("bytes", 0, begun="", grammar=regex("(yes|yeah)"))
    text = b"".join(constraint._table.surfaces[token] for token in constraint.forced())
    assert text.startswith(b"</think>")


def test_a_grammar_without_room_for_the_tag_wins():
    table = table_of("lingvo")
    thoughts = Budget(TEXT, 1).of(table)
    constraint = Constraint(table, grammar=regex("<think>[a-z]{9}"), thoughts=thoughts)
    for token in table.tokens_of("<think>abc"):
        constraint.take(token)
    assert constraint.forced() == []
    assert constraint.fits(table.tokens_of("defghi")) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_lists_and_words_do_not_keep_the_tag_away(kind):
    table = table_of(KINDS[kind][0])
    word = table.tokens_of("a")
    constraint, thoughts = constraint_of(kind, 1, begun="", allowed_ids=word)
    constraint.take(word[0])
    assert constraint.forced() == table.tokens_of(thoughts.closing.decode())
    words = BadWords(["n", "assist", "</"], table)
    constraint, _ = constraint_of(kind, 1, begun="", bad_words=words)
    constraint.take(word[0])
    for token in constraint.forced():
        constraint.take(token)
    assert not constraint.admits(table.tokens_of("n")[0])


@given(st.lists(st.sampled_from(["take", "back", "copy", "fits"]), max_size=30), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_is_taken_back_was_never_there(steps, seed):
    rng = random.Random(seed)
    constraint, _ = constraint_of("bytes", 2, begun="" if seed % 2 else None)
    table, ids = constraint._table, []
    for step in steps:
        match step:
            case "take":
                ids.append(int(rng.choice(np.flatnonzero(constraint.mask()))))
                constraint.take(ids[-1])
                if ids[-1] in table.end_ids:
                    return
            case "back" if ids:
                count = rng.randint(1, len(ids))
                constraint.back(count)
                del ids[-count:]
            case "copy":
                constraint = constraint.copy()
            case "fits":
                constraint.fits(table.tokens_of("<think>abc</think>d"))
    again, _ = constraint_of("bytes", 2, begun="" if seed % 2 else None)
    for token in ids:
        again.take(token)
    assert again.bits().tolist() == constraint.bits().tolist()
    assert again.forced() == constraint.forced()


def test_a_tag_that_a_vocabulary_cannot_spell_is_refused():
    tokenizer = byte_level(complete=False)
    table = GrammarTable(tokenizer, width=tokenizer.vocabulary_size, end_ids=[tokenizer.hf.eos_token_id])
    with pytest.raises(UnsupportedError, match="no tokens for"):
        Budget(("<a>", "⟦ƕ⟧"), 3).of(table)
