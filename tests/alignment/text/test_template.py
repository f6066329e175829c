from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from alignment.errors import ConfigError, InvalidRequestError
from alignment.text.template import Template
from alignment.text.tokenizer import Tokenizer
from tests.support import small_tokenizers as tiny

HEAD = "{% for m in messages %}{{ '<|end|>' + m['role'] + '\n' }}"
TAIL = "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|end|>assistant\n' }}{% endif %}"
WHOLE = "{{ '<|end|>' + m['role'] + '\n' + m['content'] }}" + TAIL
ALTERNATES = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
)
OVER_PARTS = {
    "loop": "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}",
    "filter": "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] | trim }}{% endfor %}",
    "first": "{{ m['content'][0]['text'] }}",
}
SOME_OVER_PARTS = {
    "users": "{% for m in messages %}{{ m.role }}: {% if m.role == 'user' %}{{ m.content[0].text }}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '\n' }}{% endfor %}",
    "assistants": "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{{ m.content[0].text }}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '\n' }}{% endfor %}",
    "all but the system": "{% for m in messages %}{{ m.role }}: {% if m.role != 'system' %}{{ m.content[0].text }}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '\n' }}{% endfor %}",
}
STRICT = {
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + ALTERNATES + WHOLE,
    "drops the system": "{% for m in (messages[1:] if messages[0]['role'] == 'system' else messages) %}"
    + ALTERNATES
    + WHOLE,
    "system first": "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}" + WHOLE,
    "system before a user": "{% for m in (messages[1:] if messages[0]['role'] == 'system' else messages) %}"
    "{{ '<|end|>' + m['role'] + '\n' }}"
    "{{ messages[0]['content'] + '\n' if loop.first and messages[0]['role'] == 'system' }}{{ m['content'] }}"
    + TAIL,
    "first system alone": "{% for m in messages %}{% if m['role'] != 'system' or loop.first %}"
    "{{ '<|end|>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endif %}{% endfor %}",
    "wants a system": "{% if messages[0]['role'] != 'system' %}"
    "{{ raise_exception('no system message') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}" + WHOLE,
    "wants a system and turns": "{% if messages[0]['role'] != 'system' %}"
    "{{ raise_exception('no system message') }}{% endif %}{{ '<|end|>system\n' + messages[0]['content'] + '\n' }}"
    "{% for m in messages[1:] %}" + ALTERNATES + WHOLE,
    "ends with a user": "{% if messages[-1]['role'] != 'user' %}{{ raise_exception('no question') }}{% endif %}"
    "{% for m in messages %}" + WHOLE,
    "easy": "{% for m in messages %}" + WHOLE,
}


def template(source: str) -> Template:
    hf = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_level().hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = source
    return Template(hf)


def conversation(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"word{i}"} for i, role in enumerate(roles)]


@pytest.mark.parametrize("kind", OVER_PARTS)
def test_a_template_over_parts_is_handed_parts(kind):
    over_parts = template(HEAD + OVER_PARTS[kind] + TAIL)
    assert over_parts.takes_parts
    text = over_parts.render([{"role": "user", "content": "red?"}, {"role": "assistant", "content": ""}])
    assert text == "<|end|>user\nred?</s>\n<|end|>assistant\n</s>\n"


@pytest.mark.parametrize("kind", SOME_OVER_PARTS)
def test_only_the_roles_that_a_template_reads_in_parts_are_handed_parts(kind):
    roles = ("system", "user", "assistant", "user")
    text = template(SOME_OVER_PARTS[kind]).render(conversation(*roles))
    assert text == "".join(f"{role}: word{i}\n" for i, role in enumerate(roles))


def test_a_template_that_takes_both_is_handed_texts():
    either = template(HEAD + "{% if m['content'] is string %}{{ m['content'] }}{% else %}parts!{% endif %}" + TAIL)
    assert not either.takes_parts
    assert either.render([{"role": "user", "content": "red?"}]) == "<|end|>user\nred?</s>\n"


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize(
    "roles",
    [
        ("system", "user"),
        ("system", "system", "user"),
        ("developer", "system", "user"),
        ("user", "assistant", "system", "user"),
        ("system", "user", "assistant", "system", "user", "user"),
        ("user", "user"),
        ("user", "user", "assistant", "assistant", "user"),
        ("assistant", "user"),
        ("system", "assistant", "user"),
        ("system",),
        ("developer", "system"),
        ("user",),
        ("user", "assistant", "user"),
        ("user", "assistant"),
        ("system", "user", "assistant"),
    ],
)
def test_no_ordinary_conversation_is_refused_and_no_word_is_lost(kind, roles):
    text = template(STRICT[kind]).render(conversation(*roles), add_generation_prompt=True)
    assert all(text.count(f"word{i}") == 1 for i in range(len(roles)))


@pytest.mark.parametrize("roles", [("system", "system", "user"), ("user", "user"), ("user", "system", "user")])
def test_what_a_template_takes_is_not_repaired(roles):
    text = template(STRICT["easy"]).render(conversation(*roles))
    assert text == "".join(f"<|end|>{role}\nword{i}</s>\n" for i, role in enumerate(roles))


def test_systems_are_merged_in_order_with_a_blank_line():
    text = template(STRICT["system first"]).render(conversation("user", "system", "system"))
    assert text == "<|end|>system\nword1\n\nword2</s>\n<|end|>user\nword0</s>\n"
    text = template(STRICT["no system"]).render(conversation("system", "user", "user"))
    assert text == "<|end|>user\nword0\n\nword1\n\nword2</s>\n"


def test_a_message_with_calls_is_never_joined():
    calling = {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}
    messages = [{"role": "user", "content": "q"}, calling, {"role": "assistant", "content": "b"}]
    with pytest.raises(InvalidRequestError, match="must alternate"):
        template(STRICT["no system"]).render(messages)


def test_a_final_message_that_goes_on_stays_the_last():
    turns = template(STRICT["ends with a user"])
    with pytest.raises(InvalidRequestError, match="no question"):
        turns.render(conversation("user", "assistant"), continue_final_message=True)


@pytest.mark.parametrize("content", ["", " \n"])
@pytest.mark.parametrize("shown", ["m.content | trim", "m.content"])
def test_an_empty_message_goes_on_after_its_header(shown, content):
    source = "{% for m in messages %}<|{{ m.role }}|>\n\n{{ " + shown + " }}</s>{% endfor %}"
    turns = template(source + "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}")
    asked = [{"role": "user", "content": "Hi"}]
    prompt = turns.render(asked, add_generation_prompt=True)
    said = [*asked, {"role": "assistant", "content": content}]
    assert turns.render(said, continue_final_message=True) == prompt


def test_a_template_that_wants_a_system_message_is_given_an_empty_one():
    wants = template(STRICT["wants a system"])
    assert wants.render(conversation("user")) == "<|end|>system\n</s>\n<|end|>user\nword0</s>\n"
    assert any("an empty one" in sentence for sentence in wants.findings())
    assert not any("an empty one" in sentence for sentence in template(STRICT["easy"]).findings())


def test_texts_of_the_source_are_read_as_jinja_reads_them():
    """Line breaks within quotes and escapes; one that cannot be read hides none of the others."""
    hf = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_level().hf.backend_tokenizer)
    hf.chat_template = "{% set a = 'one\ntwo' %}{% set b = 'x\\u0041\\n' %}{% set c = '</think>' %}text"
    found = Template(hf)
    assert found.literals == {"one\ntwo", "xA\n", "</think>"}
    assert "text" in found.texts


def test_a_template_that_refuses_everything_says_why():
    with pytest.raises(InvalidRequestError, match="never") as caught:
        template("{{ raise_exception('never') }}").render(conversation("user"))
    assert caught.value.param == "messages"


def test_contents_of_merged_messages_keep_their_places():
    tokenizer = tiny.Tutti(_hf(STRICT["no system"]), "tiny")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    ids, located = tokenizer.locate_chat(messages)
    assert ids == tokenizer.encode_chat(messages)
    text = tokenizer.template.render(messages, add_generation_prompt=True)
    assert [text[start:end] for start, end in located.texts] == ["Be brief.", "hi"]


def _hf(source: str) -> PreTrainedTokenizerFast:
    hf = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_level().hf.backend_tokenizer, eos_token="</s>")
    hf.chat_template = source
    return hf


BROKEN = {
    "a syntax error": "{% for m in messages %}{{ m.content }",
    "no message": "Just a text",
    "another field": "{% for m in messages %}{{ m['role'] + ': ' }}{{ m['contents'] }}\n{% endfor %}",
    "always a refusal": "{{ raise_exception('never') }}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_renders_nothing_is_found_out(name, tmp_path):
    hf = PreTrainedTokenizerFast(tokenizer_object=tiny.byte_level().hf.backend_tokenizer)
    hf.chat_template = BROKEN[name]
    [finding] = Template(hf).findings()
    assert finding.startswith("The chat template renders no plain conversation (")
    hf.chat_template = None
    hf.save_pretrained(tmp_path / "model")
    (tmp_path / "t.jinja").write_text(BROKEN[name])
    with pytest.raises(ConfigError, match=r"t\.jinja renders no conversation \(.*\): mend it") as caught:
        Tokenizer.load(str(tmp_path / "model"), chat_template=str(tmp_path / "t.jinja"))
    assert "\n" not in str(caught.value)
