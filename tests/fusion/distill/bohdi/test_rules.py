"""Which texts are not learned from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import ConfigError
from fusion.distill.bohdi.rules import CUT_OFF, DUPLICATE, EXCLUDED, fault, known, read_excluded, repetition, same
from fusion.distill.bohdi.settings import Rules

RULES = Rules(shortest=3)


@pytest.mark.parametrize(
    ("text", "finished", "found"),
    [
        ("The cat sleeps.", True, None),
        ("Two\nlines\tand ĉ", True, None),
        ("The cat sleeps.", False, CUT_OFF),
        ("Il pèse 12\u00a0000\u202fkg.\r\n", True, None),
        ("東京\u3000大阪 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", True, None),
        ("a \ue000 b", True, "degenerate: control characters"),
        (" a ", True, "too short"),
        ("bell \x07 rings", True, "degenerate: control characters"),
        ("no no no no no no no no", True, "degenerate: repetitions"),
    ],
)
def test_faults(text, finished, found):
    assert fault(text, finished=finished, rules=RULES) == found


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_repetition_is_a_share_and_0_without_repeats(words):
    share = repetition(" ".join(words))
    groups = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    assert 0 <= share < 1
    assert (share == 0) == (len(set(groups)) == len(groups))


def test_case_and_white_space_make_no_other_question():
    asked, excluded = {same("What is a cat?")}, {same("What is a dog?")}
    assert known("what  IS a\ncat?", asked, excluded) == DUPLICATE
    assert known("WHAT is a dog?", asked, excluded) == EXCLUDED
    assert known("What is a fish?", asked, excluded) is None


def test_excluded_questions_are_the_prompts_of_files(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"prompt": "What is  A?", "reference": "x"}\n\n{"prompt": "B"}\n')
    assert read_excluded([path]) == {"what is a?", "b"}
    path.write_text('{"prompt": "A"}\n{"question": "B"}\n')
    with pytest.raises(ConfigError, match=r"test.jsonl:2: should be an object with a text 'prompt'"):
        read_excluded([path])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_excluded([tmp_path / "missing.jsonl"])
