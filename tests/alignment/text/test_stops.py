"""A checkpoint's ends are those of all its files, and the first is the one that its template writes."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from alignment.text.stops import ordered_stops, turn_end
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as small

UNK, BOS, EOS, END = 0, 1, 2, 3  # <unk>, <s>, </s>, <|end|>
LAST_TURN_OPEN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}<|end|>"
    "{% endif %}{% endfor %}"
)


def having(template: str | None, eos: str | None = "</s>") -> Tokenizer:
    hf = PreTrainedTokenizerFast(
        tokenizer_object=small.byte_level().hf.backend_tokenizer, bos_token="<s>", eos_token=eos, unk_token="<unk>"
    )
    hf.chat_template = template
    return Tokenizer(hf, "tiny")


@pytest.mark.parametrize("listed", [(END, EOS), (EOS, END), (END, UNK, EOS)])
def test_the_end_of_the_templates_turn_comes_first(listed):
    tokenizer = small.byte_level()
    assert turn_end(tokenizer, listed) == EOS
    stops = ordered_stops(tokenizer, listed, ())
    assert stops[0] == EOS
    assert set(stops) == set(listed)


def test_a_template_that_ends_a_turn_only_before_the_next_is_asked_again():
    assert ordered_stops(having(LAST_TURN_OPEN), (EOS, END), ()) == (END, EOS)


def test_without_a_template_the_generation_configuration_goes_first_then_the_tokenizer():
    assert ordered_stops(having(None), (END,), (EOS,)) == (END, EOS)
    assert ordered_stops(having(None), (), (END,)) == (EOS, END)
    refusing = "{{ raise_exception('no') }}"
    assert ordered_stops(having(refusing), (END, EOS), ()) == (END, EOS)


def test_the_tokenizers_own_end_counts_where_the_files_name_another():
    assert ordered_stops(small.byte_level(), (END,), (END,)) == (EOS, END)


def test_a_default_of_the_configuration_that_stands_for_text_counts_only_alone():
    text = small.byte_level().encode("a", add_special_tokens=False)[-1]
    assert ordered_stops(having(None), (END,), (text,)) == (END, EOS)
    assert ordered_stops(having(None, eos=None), (), (text,)) == (text,)
    assert ordered_stops(having(None, eos=None), (), ()) == ()


def test_ids_beyond_the_vocabulary_are_no_ends():
    tokenizer = small.byte_level()
    assert ordered_stops(tokenizer, (tokenizer.vocabulary_size + 5, -1, EOS), ()) == (EOS,)


def test_spellings_of_control_tokens_are_found_and_other_texts_are_not():
    tokenizer = small.byte_level()
    assert tokenizer.control_tokens(["<|end|>", "fox", "</s>", "<|nothing|>", ""]) == {
        END: "<|end|>",
        EOS: "</s>",
    }
