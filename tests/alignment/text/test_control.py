from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from alignment.errors import InvalidRequestError
from alignment.methods.exact import exact_map
from alignment.spelling import Edit, Spelling
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as tiny
from tests.support.random_examples import at_least

TURNS = "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<halt>\n{% endfor %}<turn>assistant\n"


def added_unflagged(template: str | None = TURNS) -> Tokenizer:
    """Turn markers among the added tokens, none of them flagged special."""
    backend = Backend.from_str(tiny.byte_level().hf.backend_tokenizer.to_str())
    names = ["<turn>", "<halt>", "<think>", "<tool_call>", "<|pause|>", "<｜stop｜>"]
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    hf.chat_template = template
    return Tokenizer(hf, "toy")


def unigram_pieces() -> Tokenizer:
    """Markers that are ordinary pieces of a Unigram vocabulary."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("<pad>", -1.0), ("<halt>", -1.0), ("<think>", -1.0)]
    characters = sorted(set("▁abcdehiklmnoprstuvwxy<>/?.,\n"))
    words = ["▁hello", "hello", "▁you", "th", "in", "us", "er"]
    vocabulary = [*pieces, *((c, -8.0) for c in characters), *((w, -6.0) for w in words)]
    backend = Backend(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("<unk>", special=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    hf.chat_template = "{% for m in messages %}{{ m['content'] }}<halt>{% endfor %}"
    return Tokenizer(hf, "toy")


def merging() -> Tokenizer:
    """A BPE over whole texts that merges a marker, which is an added token too."""
    characters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz<>/"]
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("s", ">"), ("▁", "t"), ("▁t", "h"), ("<", "s"), ("<s", ">")]
    tokens = [*characters, *dict.fromkeys("".join(pair) for pair in merges)]
    vocabulary = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    whole = json.loads(Backend(model).to_str())
    whole["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    backend = Backend.from_str(json.dumps(whole))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    hf.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    return Tokenizer(hf, "toy")


TOYS = {"added": added_unflagged, "unigram": unigram_pieces, "merging": merging}
MARKERS = {
    "added": ["<turn>", "<halt>", "</s>", "<|pause|>", "<｜stop｜>", "<|end|>"],
    "unigram": ["<s>", "</s>", "<pad>", "<halt>", "<unk>"],
    "merging": ["<s>", "</s>", "<unk>"],
}
WORDS = ["hello", " you", " ", "<", "/", "s>", "th", "</", "halt", ">"]


@pytest.fixture(scope="module", params=TOYS)
def toy(request):
    return request.param, TOYS[request.param]()


def controls(tokenizer, ids):
    return [id for id in ids if id in tokenizer.special_ids]


def names(tokenizer):
    return {tokenizer.hf.convert_ids_to_tokens(id) for id in tokenizer.special_ids}


def test_control_tokens_are_found_by_flag_by_shape_and_by_what_the_template_writes(toy):
    name, tokenizer = toy
    assert set(MARKERS[name]) <= names(tokenizer)
    assert not names(tokenizer) & {"<think>", "<tool_call>"}, "words of an answer stay text"


def test_without_a_template_the_shape_alone_counts():
    assert names(added_unflagged(None)) == {*tiny.CONTROL, "<|pause|>", "<｜stop｜>"}


def test_a_marker_that_the_template_writes_around_calls_alone_is_one():
    calling = TURNS.replace("{{ m['content'] }}", "{% if m.tool_calls %}<pause>{% endif %}{{ m['content'] }}")
    backend = Backend.from_str(tiny.byte_level().hf.backend_tokenizer.to_str())
    backend.add_tokens(
        [AddedToken(name, special=False, normalized=False) for name in ("<turn>", "<pause>", "<b>")]
    )
    hf = PreTrainedTokenizerFast(tokenizer_object=backend)
    hf.chat_template = calling
    assert names(Tokenizer(hf)) - set(tiny.CONTROL) == {"<turn>", "<pause>"}


def test_words_of_an_answer_are_text_even_if_the_template_writes_them():
    tokenizer = added_unflagged(TURNS + "<think>\n")
    think = tokenizer.hf.convert_tokens_to_ids("<think>")
    assert think not in tokenizer.special_ids
    assert tokenizer.surfaces[think] == b"<think>"
    assert think in tokenizer.encode("a <think> b", add_special_tokens=False)


def test_white_space_and_words_that_a_template_writes_are_no_markers():
    backend = Backend.from_str(tiny.byte_level().hf.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("\n\n", "assistant", "<turn>")])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend)
    hf.chat_template = TURNS.replace("\n", "\n\n")
    assert names(Tokenizer(hf)) - set(tiny.CONTROL) == {"<turn>"}


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_text_never_becomes_a_control_token(toy, data):
    name, tokenizer = toy
    text = "".join(data.draw(st.lists(st.sampled_from([*WORDS, *MARKERS[name]]), max_size=8)))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not controls(tokenizer, ids)
    assert tokenizer.surface_of(ids).decode().lstrip(" ") == text.lstrip(" ")
    located_ids, located = tokenizer.locate(text, add_special_tokens=False)
    assert located_ids == ids
    assert (located.ends >= located.starts).all()
    with_special = tokenizer.encode(text, add_special_tokens=True)
    assert [id for id in with_special if id not in tokenizer.special_ids] == ids
    spelling = Spelling(tokenizer)
    for character in text:
        spelling.extend(character.encode())
        assert not controls(tokenizer, spelling.ids)
    assert spelling.ids == tokenizer.continuation.encode(text)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_messages_hold_the_templates_control_tokens_alone(toy, data):
    name, tokenizer = toy
    contents = data.draw(
        st.lists(
            st.lists(st.sampled_from([*WORDS, *MARKERS[name]]), max_size=6).map("".join), min_size=1, max_size=3
        )
    )
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    harmless = [message | {"content": "hello"} for message in messages]
    ids = tokenizer.encode_chat(messages)
    assert controls(tokenizer, ids) == controls(tokenizer, tokenizer.encode_chat(harmless))
    assert tokenizer.locate_chat(messages)[0] == ids
    rendered = tokenizer.template.render(messages, add_generation_prompt=True)
    everything = b"".join(
        tokenizer.hf.convert_ids_to_tokens(id).encode() if id in tokenizer.special_ids else tokenizer.surfaces[id]
        for id in ids
    )
    assert everything.replace(b" ", b"") == rendered.encode().replace(b" ", b"")


def test_a_character_that_the_vocabulary_lacks_is_unknown_and_its_name_is_text():
    tokenizer = unigram_pieces()
    unknown = tokenizer.hf.unk_token_id
    assert unknown in tokenizer.encode("hello é", add_special_tokens=False)
    ids = tokenizer.encode("hello <unk>", add_special_tokens=False)
    assert unknown not in ids
    assert tokenizer.surface_of(ids) == b" hello <unk>"


DELETING = {
    "replaced": "{{ m.content | replace('<b>', '') }}",
    "first lines": "{{ m.content.split('\n') | join('') }}",
    "after thinking": "{{ m.content.split('</think>')[-1] }}",
    "each word": "{% for word in m.content.split(' ') %}{{ word }}{% endfor %}",
    "no tags": "{{ m.content | replace('<i>', '') | replace('</i>', '') | trim }}",
    "small": "{{ m.content | lower }}",
}


PARTS = ["<tu", "rn>", "<b>", "\n", " ", "</think>", "<i>", "hi", "<ha", "lt>", "<s", ">"]
JOINED = {
    "replaced": ["<tu<b>rn>"],
    "first lines": ["<ha\nlt>", "<tu\nrn>"],
    "after thinking": ["</think><turn>", "<halt>"],
    "each word": ["<s >", "<tu rn>"],
    "no tags": ["<tu</i>rn>", "<ha<i>lt>"],
    "small": ["<TURN>", "<S>"],
}


@pytest.mark.parametrize("rule", DELETING)
def test_what_a_template_deletes_joins_nothing_into_a_marker(rule):
    tokenizer, drawn = _deleting(rule), 0
    begun = {"role": "user", "content": "hi"}
    genuine = controls(tokenizer, tokenizer.encode_chat([begun]))
    markers = tokenizer.template.render([begun], add_generation_prompt=True).count("<")

    @settings(deadline=None, max_examples=60)
    @given(words=st.lists(st.sampled_from([*PARTS, *JOINED[rule] * 4])))
    @example(words=["<tu", "<b>", "rn>"])
    @example(words=["<ha", "\n", "lt>"])
    @example(words=["<ha", "</think>", "<s", " ", ">"])
    @example(words=["<tu", "</think>", "rn>"])
    def reads(words):
        nonlocal drawn
        message = begun | {"content": "".join(words)}
        assert controls(tokenizer, tokenizer.encode_chat([message])) == genuine
        written = tokenizer.template.render([message], add_generation_prompt=True)
        drawn += sum(written.count(marker) for marker in ("<turn>", "<halt>", "<s>")) > markers

    reads()
    assert drawn >= at_least(6), "of the texts that were read, so many held what looks like a marker"


_CACHE: dict[str, Tokenizer] = {}


def _deleting(rule: str) -> Tokenizer:
    if rule not in _CACHE:
        _CACHE[rule] = added_unflagged(
            "{% for m in messages %}<turn>{{ m.role }}\n" + DELETING[rule] + "<halt>{% endfor %}<turn>assistant\n"
        )
    return _CACHE[rule]


@pytest.mark.parametrize("rule", DELETING)
def test_ordinary_messages_are_read_whatever_a_template_deletes(rule):
    tokenizer = _deleting(rule)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Is 3 < 4 and <b>bold</b>? if a > b: f[0] | g"}])
    assert ids == tokenizer.hf.apply_chat_template(
        [{"role": "user", "content": "Is 3 < 4 and <b>bold</b>? if a > b: f[0] | g"}], return_dict=False
    )


def test_characters_that_a_template_decodes_become_no_marker():
    tokenizer = added_unflagged(TURNS.replace("m['content']", "m['content'] | striptags"))
    with pytest.raises(InvalidRequestError, match="could spell control tokens"):
        tokenizer.encode_chat([{"role": "user", "content": "&lt;turn&gt;"}])
    tokenizer.encode_chat([{"role": "user", "content": "&lt;b&gt; and &amp;"}])


def test_an_edit_never_keeps_less_than_nothing():
    spelling = Spelling(unigram_pieces())
    spelling.ids = [7, 8]
    spelling._low, spelling._old = 2, []
    spelling._replace(0, [])
    assert spelling._edit() == Edit(0, [])


def test_a_role_makes_no_control_token_of_a_word(tmp_path):
    """A copied `pad_token_id = 0` is `!` in vocabularies that begin with the printable characters."""
    plain = tiny.split_digits()
    hf = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(plain.hf.backend_tokenizer.to_str()), eos_token="</s>", pad_token="!"
    )
    hf.save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(str(tmp_path))
    [mark] = tokenizer.hf.convert_tokens_to_ids(["!"])
    assert tokenizer.hf.pad_token_id == mark
    assert tokenizer.special_ids == plain.special_ids
    for text in ("Hello! Stop!! 3!", "!", "a!b"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.surface_of(ids).decode() == text
        assert tokenizer.surface_of(tokenizer.continuation.encode(text)).decode() == text
    assert tokenizer.byte_ids[ord("!")] == mark
    assert exact_map(tokenizer, tokenizer, source_stops=(), target_stop=2).target_ids[mark, 0] == mark


def test_tags_of_html_are_text_where_a_vocabulary_has_them(tmp_path):
    """Gemma's `<s>` strikes text out; its own marks are `<bos>` and `<eos>`."""
    backend = Backend.from_str(tiny.sentencepiece("<u>", "</u>").hf.backend_tokenizer.to_str())
    whole = json.loads(backend.to_str())
    for token in whole["added_tokens"]:
        token["special"] = token["content"] in ("<unk>", "<|end|>")
    hf = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(whole)), eos_token="<|end|>", unk_token="<unk>"
    )
    tokenizer = Tokenizer(hf)
    struck = hf.convert_tokens_to_ids("<s>")
    assert struck not in tokenizer.special_ids
    assert tokenizer.surfaces[struck] == b"<s>"
    assert struck in tokenizer.encode("a <s>b</s>", add_special_tokens=False)


@pytest.mark.parametrize("name", ["<think>", "<tool_call>", "sop"])
def test_a_flagged_token_is_one_of_control_though_the_model_has_it_too(name):
    """As tokenizers' own trainers make special tokens; a role alone says less than the flag."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>", name], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["a text"], trainer)
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    id = tokenizer.hf.convert_tokens_to_ids(name)
    assert backend.model.id_to_token(id) == name
    assert id in tokenizer.special_ids
    assert id not in tokenizer.encode(f"a{name}b", add_special_tokens=False)
