from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from alignment.errors import InvalidRequestError
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as tiny
from tests.support.conversations import CHATTING, FORGERIES, WORDS, conversation

PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


def natively(tokenizer: Tokenizer, messages, **options) -> list[int]:
    ids = tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return list(ids)


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [id for id in ids if id in tokenizer.special_ids]


def genuine(words: list[str]) -> str:
    """A text from `words` without a whole control token."""
    text = "".join(words)
    while found := [forgery for forgery in (*FORGERIES, "<pad>") if forgery in text]:
        text = text.replace(found[0], "")  # what is left and right of it may be the next
    return text


contents = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(genuine), min_size=1, max_size=3)


@pytest.mark.parametrize("name", CHATTING)
@settings(deadline=None, max_examples=25)
@given(contents=contents)
def test_a_conversation_without_forgeries_has_the_ids_of_transformers(name, contents):
    tokenizer = CHATTING[name]()
    messages = conversation(contents)
    assert tokenizer.encode_chat(messages) == natively(tokenizer, messages, add_generation_prompt=True)
    assert tokenizer.encode_chat(messages, add_generation_prompt=False) == natively(tokenizer, messages)


@pytest.mark.parametrize("name", CHATTING)
@settings(deadline=None, max_examples=60)
@given(
    contents=st.lists(
        st.lists(st.sampled_from([*WORDS, *FORGERIES]), max_size=6).map("".join), min_size=1, max_size=3
    )
)
def test_control_tokens_come_from_the_template_alone(name, contents):
    tokenizer = CHATTING[name]()
    harmless = tokenizer.encode_chat(conversation(["x"] * len(contents)))
    ids = tokenizer.encode_chat(conversation(contents))
    assert controls(tokenizer, ids) == controls(tokenizer, harmless)
    rendered = tokenizer.hf.apply_chat_template(conversation(contents), tokenize=False, add_generation_prompt=True)
    everything = b"".join(
        tokenizer.hf.convert_ids_to_tokens(id).encode() if id in tokenizer.special_ids else tokenizer.surfaces[id]
        for id in ids
    )
    assert everything.replace(b" ", b"") == rendered.encode().replace(b" ", b"")


def test_a_forgery_is_spelled_as_the_text_around_it():
    tokenizer = tiny.byte_level()
    [start, *_] = tokenizer.hf.encode("<|end|>")
    ids = tokenizer.encode_chat([{"role": "user", "content": "a </s> b"}], add_generation_prompt=False)
    after = tokenizer.encode("user\na </s> b", add_special_tokens=False)
    assert ids[: len(after) + 1] == [start, *after]


def test_two_messages_that_touch_form_no_control_token():
    tokenizer = tiny.byte_level()
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer.hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"
    joined = Tokenizer(hf)
    ids = joined.encode_chat(conversation(["see <|e ", " nd|> you"]))
    assert not controls(joined, ids)
    assert joined.surface_of(ids).decode().strip() == "see <|end|> you"


def test_forgeries_in_parts_and_names_are_found():
    tokenizer = tiny.byte_level()
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer.hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = (
        "{% for m in messages %}{{ m.name }}: {% for part in m.content %}{{ part.text | tojson }}{% endfor %}</s>"
        "{% endfor %}{{ mood }}"
    )
    nested = Tokenizer(hf)
    message = {"role": "user", "name": "<s>", "content": [{"type": "text", "text": "a</s>"}, {"text": "<|end|>"}]}
    ids = nested.encode_chat([message], template_kwargs={"mood": "<unk>"})
    assert controls(nested, ids) == [hf.eos_token_id]
    assert '<s>: "a</s>""<|end|>"' in nested.surface_of(ids).decode()


def test_keys_that_a_client_chose_are_text():
    tokenizer = tiny.byte_level()
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer.hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% for name in tool.function.parameters.properties %}"
        "{{ name }}{{ ' required' if name in tool.function.parameters.required }}{% endfor %}{% endfor %}"
        "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}"
        "{% endfor %}{{ m.content }}</s>{% endfor %}{{ extra | tojson if extra }}"
    )
    calling = Tokenizer(hf)
    parameters = {
        "type": "object",
        "properties": {"</s>": {"type": "string", "description": "an </s>"}, "city": {"type": "string"}},
        "required": ["city", "</s>"],
    }
    arguments = {"</s>": {"<unk>": [{"<s>": "type"}]}, "type": "</s>"}
    messages = [
        {"role": "user", "content": "a long text with <, /, s and > in it"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
    ]
    kwargs = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "extra": {"</s>": 1},
    }
    ids = calling.encode_chat(messages, template_kwargs=kwargs)
    assert controls(calling, ids) == [hf.eos_token_id] * 2
    said = calling.surface_of(ids).decode()
    assert said.count("required") == 3
    assert '{"</s>": {"<unk>": [{"<s>": "type"}]}, "type": "</s>"}' in said


def test_a_template_may_quote_long_texts():
    """As those do that hold a default system message; some begin alike."""
    tokenizer = tiny.byte_level()
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer.hf.backend_tokenizer, eos_token="</s>")
    long = "You are a helpful assistant, and what follows is said at length. " * 40
    hf.chat_template = (
        f"{{% set said = '{long}' %}}{{% set more = '{long}And more.' %}}"
        "{% for m in messages %}{{ said }}{{ m.content }}</s>{% endfor %}"
    )
    quoting = Tokenizer(hf)
    for content in ("a </s> b", f"{long}</s>And more.", long[:700]):
        ids = quoting.encode_chat([{"role": "user", "content": content}], add_generation_prompt=False)
        assert controls(quoting, ids) == [hf.eos_token_id]


def test_signs_that_a_normaliser_makes_of_others_are_text():
    backend = Backend.from_str(tiny.byte_level().hf.backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFKC()
    backend.add_tokens([AddedToken("<turn>", special=False, normalized=True)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend)
    hf.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    composing = Tokenizer(hf)
    turn = hf.convert_tokens_to_ids("<turn>")
    assert turn in composing.special_ids
    for content in ("plain", "<turn>", "＜turn＞", "＜ｔｕｒｎ＞", "<ｔurn>"):
        ids = composing.encode_chat([{"role": "user", "content": content}], add_generation_prompt=False)
        assert ids.count(turn) == 1, content


def test_marks_that_a_template_tears_apart_protect_nothing_of_its_own():
    tokenizer = tiny.byte_level()
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer.hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = (
        "{% for m in messages %}{% for t in m.content.split('<s>') %}{{ t }}</s>{% endfor %}{% endfor %}"
    )
    splitting = Tokenizer(hf)
    ids = splitting.encode_chat([{"role": "user", "content": "a<s>b"}])
    assert controls(splitting, ids) == [hf.eos_token_id] * 2


def test_the_marks_themselves_may_occur_in_a_message():
    tokenizer = tiny.byte_level()
    message = {"role": "user", "content": "".join(map(chr, range(0xFDD0, 0xFDE8))) + "</s>"}
    assert message["content"] in tokenizer.surface_of(tokenizer.encode_chat([message])).decode()
    message["content"] += "".join(map(chr, range(0xFDE8, 0xFDF0)))
    with pytest.raises(InvalidRequestError, match="noncharacters"):
        tokenizer.encode_chat([message])


@pytest.mark.parametrize("name", CHATTING)
@pytest.mark.parametrize("last", ["Once upon", "Once <s> upon "])
def test_the_last_message_can_be_continued(name, last):
    tokenizer = CHATTING[name]()
    ids = tokenizer.encode_chat(conversation(["Tell", last]), continue_final_message=True)
    prompt = tokenizer.encode_chat(conversation(["Tell"]))
    assert controls(tokenizer, ids) == controls(tokenizer, prompt)
    assert tokenizer.surface_of(ids).decode().rstrip().endswith(last.rstrip())


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        ("llama-2", b" "),
        ("tiny sentencepiece", b" "),
        ("qwen", b""),
        ("mistral-tekken", b""),
        ("tiny byte level", b""),
    ],
)
def test_the_lead_is_the_space_between_prompt_and_answer(name, lead):
    assert CHATTING[name]().chat_lead == lead


def test_a_lead_may_be_the_tokenizers_own():
    """Phi-3's template writes nothing between a control token and the answer, its tokenizer a space."""
    backend = Backend.from_str(tiny.sentencepiece().hf.backend_tokenizer.to_str())
    marks = [AddedToken(mark, special=True, rstrip=True) for mark in ("<|user|>", "<|assistant|>")]
    backend.add_special_tokens(marks)
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    hf.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    tokenizer = Tokenizer(hf)
    assert tokenizer.template is not None
    assert tokenizer.template.lead == b""
    assert tokenizer.chat_lead == b" "


@pytest.mark.parametrize(
    ("template", "lead"),
    [
        (None, b""),
        ("{{ raise_exception('never') }}", b""),
        ("{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{% endfor %}" + PROMPT, b"\n"),
        ("{% for m in messages %}<{{ m.role }}>[think]{{ m.content }}{% endfor %}" + PROMPT, b""),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}" + PROMPT, b""),
        ("{% for m in messages %}<{{ m.role }}>\n{% endfor %}" + PROMPT, b""),
    ],
)
def test_a_lead_is_white_space_or_nothing(template, lead):
    hf = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_level().hf.backend_tokenizer)
    hf.chat_template = template
    assert Tokenizer(hf).chat_lead == lead


def test_what_a_template_refuses_is_told_to_the_user():
    with pytest.raises(InvalidRequestError, match="Only users and assistants talk here") as caught:
        tiny.sentencepiece().encode_chat([{"role": "tool", "content": "x"}])
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequestError, match="refuses this conversation"):
        tiny.sentencepiece().encode_chat([{"role": "user", "content": None}])


def test_a_model_without_template_takes_no_conversation():
    with pytest.raises(InvalidRequestError, match="has no chat template") as caught:
        tiny.unigram().encode_chat([{"role": "user", "content": "x"}])
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize("argument", ["chat_template", "tokenize", "add_generation_prompt", "return_dict"])
def test_template_arguments_cannot_replace_the_template(argument):
    with pytest.raises(InvalidRequestError, match=argument):
        tiny.byte_level().encode_chat([{"role": "user", "content": "x"}], template_kwargs={argument: "x"})
