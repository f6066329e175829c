"""The demo's data: reproducible, split without overlap, and readable by its tokenizers."""

import json
from itertools import islice
from random import Random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from deploy.demo import testset
from deploy.demo.batches import encode_chat
from deploy.demo.chats import Chat, ChatStream
from deploy.demo.members import MEMBERS, MODELS, PIVOT
from deploy.demo.tasks import TASKS, Split, stream
from deploy.demo.tasks.example import split_of
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import is_right

ROWS = [json.loads(line) for line in testset.PATH.read_text(encoding="utf-8").splitlines()]
CHAT: Chat = [
    {"role": "system", "content": "Be helpful and polite."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I help you?"},
    {"role": "user", "content": "What is 2 + 2?"},
]
AWKWARD = (
    "<|im_end|> </s> <|end|> [/INST]",
    "ŝi ĵus aĉetis 12 ĉapelojn\n\n\tx  y ",
    "日本 🙂 \x00\x7f",
    "naïve Ⅷ ½",
)


@pytest.fixture(params=sorted(MEMBERS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODELS / request.param)


def test_the_committed_test_set_is_what_the_generator_writes() -> None:
    assert testset.PATH.read_bytes() == testset.text().encode()


def test_every_task_has_its_rows_and_no_prompt_twice() -> None:
    assert len({row["prompt"] for row in ROWS}) == len({row["id"] for row in ROWS}) == len(ROWS)
    for name in TASKS:
        assert sum(row["task"] == name for row in ROWS) == testset.ROWS_PER_TASK


@pytest.mark.parametrize("name", TASKS)
def test_training_never_sees_a_prompt_of_the_test_set(name: str) -> None:
    prompts = {row["prompt"] for row in ROWS}
    for example in islice(stream(TASKS[name], Split.TRAIN, Random(1)), 5000):
        assert split_of(example.key) is Split.TRAIN
        assert example.prompt not in prompts


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_has_one_key_and_one_answer(name: str) -> None:
    seen: dict[str, tuple[str, str]] = {}
    rng = Random(2)
    for _ in range(5000):
        example = TASKS[name](rng)
        assert seen.setdefault(example.prompt, (example.key, example.answer)) == (example.key, example.answer)


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_is_an_exact_match_of_its_reference(name: str) -> None:
    for example in islice(stream(TASKS[name], Split.TEST, Random(3)), 100):
        question = Question("1", name, example.prompt, (example.reference,))
        assert is_right(question, example.answer)
        assert not is_right(question, "")


def test_the_pivot_has_the_widest_vocabulary() -> None:
    sizes = {name: len(AutoTokenizer.from_pretrained(MODELS / name)) for name in MEMBERS}
    assert max(sizes, key=lambda name: sizes[name]) == PIVOT.name


@pytest.mark.parametrize("text", AWKWARD)
def test_text_that_looks_special_is_encoded_as_plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.tokenize("2026")
    assert tokens[-4:] == ["2", "0", "2", "6"]


def test_templates_tell_system_message_turns_and_where_to_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    positions = [rendered.index(message["content"]) for message in CHAT]
    assert positions == sorted(positions)
    assert rendered.count(tokenizer.eos_token) >= 1


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_an_answer_in_training_follows_the_prompt_a_server_would_write(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    rng = Random(4)
    for chat in islice((chat for chat in ChatStream(MEMBERS[name].shares, rng) if len(chat) == 2), 100):
        encoded = encode_chat(tokenizer, chat, rng)
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        assert encoded.ids[: len(prompt)] == prompt
        end = encoded.ids.index(tokenizer.eos_token_id, len(prompt))
        assert encoded.learnt[end] == 1.0
        assert tokenizer.decode(encoded.ids[len(prompt) : end]) == chat[1]["content"]
