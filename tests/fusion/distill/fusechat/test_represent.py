"""Every model reads the texts once, and its shards hold what a plain forward pass says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.errors import ConfigError
from fusion.distill.fusechat.represent import represent
from fusion.distill.fusechat.run import Run
from fusion.distill.fusechat.settings import FuseChat
from fusion.distill.training.conversations import encode, held_out, read_conversations
from fusion.distill.training.reading import open_tokenizer, read_as
from fusion.distill.training.settings import BASE
from fusion.distill.training.shards import read_shard, shard_path, write_shard


@pytest.mark.parametrize("reader", [BASE, "ben"])
def test_rows_and_losses_are_those_of_a_plain_forward_pass(done: Run, reader: str) -> None:
    shard = done._reading_of(reader, 1)
    model = AutoModelForCausalLM.from_pretrained(done.settings.readers[reader].source, dtype=torch.float32)
    rows = shard.rows()
    for number, one in enumerate(shard.conversations()):
        assert one is not None
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([one.ids])).logits[0].double(), -1).numpy()
        here = slice(rows[number], rows[number + 1])
        at = logprobs[one.positions]
        assert np.abs(np.take_along_axis(at, shard.ids[here].astype(int), 1) - shard.logprobs[here]).max() < 1e-4
        assert np.abs(-np.sort(-at, axis=1)[:, : shard.ids.shape[1]] - shard.logprobs[here]).max() < 1e-4
        following = [one.ids[position + 1] for position in one.positions]
        assert shard.losses[number] == pytest.approx(-at[np.arange(len(at)), following].sum(), abs=1e-3)


def test_answers_are_learned_with_their_end_and_nothing_else(done: Run) -> None:
    shard = done._reading_of(BASE, 0)
    tokenizer = AutoTokenizer.from_pretrained(done.settings.base.source)
    for one, messages in zip(shard.conversations(), done.conversations.messages, strict=False):
        assert one is not None
        answers = [message["content"] + "<end>" for message in messages if message["role"] == "assistant"]
        assert [tokenizer.decode(one.ids[start:end]) for start, end in one.answers] == answers


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_answer_is_read_but_not_learned(site: FuseChat, empty: str) -> None:
    tokenizer, stops = open_tokenizer(site.base)
    said = [("user", "the"), ("assistant", empty), ("user", "house"), ("assistant", "red cat")]
    messages = [{"role": role, "content": content} for role, content in said]
    encoded = encode(tokenizer, stops, messages, 128)
    assert encoded is not None
    assert tokenizer.decode(encoded.ids[: encoded.answers[0][0]]).count("<assistant>") == 2
    assert [tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.answers] == ["red cat<end>"]


def test_a_rerun_reads_nothing_again(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.distill.fusechat.represent.open_engine", None)
    done.represent()


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "of other settings"])
def test_a_damaged_shard_is_read_again(done: Run, site: FuseChat, damage: str) -> None:
    run = Run(site)
    run.represent()
    path = shard_path(site.work / "represent" / BASE, 1)
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        case "missing":
            path.unlink()
        case _:
            arrays = read_shard(path, run.reading[BASE])
            assert arrays is not None
            write_shard(path, arrays, "others")
    assert read_shard(path, run.reading[BASE]) is None
    Run(site).represent()
    assert path.read_bytes() == whole


def test_conversations_without_an_answer_are_left_out_and_counted(site: FuseChat, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "the cat"}]}\n\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}\n'
        '{"prompt": "the", "answer": "cat"}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},'
        ' {"role": "user", "content": "c"}]}\n'
    )
    data = type(site.data)((path,))
    found = read_conversations(data)
    assert found.without_answer == 2
    assert [[message["content"] for message in one] for one in found.messages] == [["the", "cat"], ["a", "b"]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"messages": [{"role": "user", "content": "the cat"}]}\n', "no conversation has an answer"),
        ("{\n", "not JSON"),
        ('{"messages": [{"role": "tool", "content": "x"}]}\n', "should hold 'messages'"),
        ('["x"]\n', "should hold 'messages'"),
    ],
)
def test_data_that_will_not_do_is_named(site: FuseChat, tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as error:
        read_conversations(type(site.data)((path,)))
    assert str(path) in str(error.value)


def test_a_shard_of_conversations_that_are_too_long_is_empty(site: FuseChat) -> None:
    """It is left out like one that is too long among others, and so is what it would have been aligned with."""
    tokenizer = AutoTokenizer.from_pretrained(site.base.source)
    messages = read_conversations(site.data).messages
    lengths = [len(tokenizer.apply_chat_template(one, return_dict=False)) for one in messages]
    limit = sorted(lengths)[len(lengths) // 2]  # leaves out some of the conversations, one in each shard
    for method in ("projected", "statistics"):
        settings = replace(
            site,
            data=replace(site.data, max_length=limit),
            represent=replace(site.represent, shard=1),
            align=replace(site.align, method=method),
            work=site.work / method,
        )
        run = Run(settings)
        run.represent()
        coverage = run.align()
        assert all(one.positions > 0 for one in coverage.values())
        texts = run.texts("ben")
        assert 0 < len(texts.learned) < len(lengths)
    unread = sum(length > limit for length in lengths)
    assert run.notes[0].startswith(f"base cannot read {unread} of {len(lengths)} conversations")
    run.train()
    run.merge()
    record = json.loads((site.out / "distillation.json").read_text())
    assert record["data"]["unread"]["base"] == unread
    assert f"{unread} by `base`" in (site.out / "README.md").read_text()


@given(st.integers(1, 300), st.floats(0.01, 0.99))
def test_the_share_that_is_held_out_is_the_one_asked_for(count: int, share: float) -> None:
    marked = held_out(count, share)
    assert len(marked) == count
    assert abs(sum(marked) - count * share) <= 1
    assert sum(marked) > 0 or count == 1


def test_another_chat_template_is_read_anew(site: FuseChat, tmp_path: Path) -> None:
    source = replace(site.base, source=str(shutil.copytree(site.base.source, tmp_path / "base")))
    before = read_as(source)
    assert read_as(source) == before
    tokenizer = AutoTokenizer.from_pretrained(source.source)
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(source.source)
    assert read_as(source) != before


def test_a_model_that_can_read_nothing_is_named(site: FuseChat) -> None:
    conversations = read_conversations(site.data)
    for _ in range(2):  # what is there already makes it no better
        with pytest.raises(ConfigError, match=r"ben .* can read none of"):
            represent(
                "ben",
                site.sources["ben"],
                conversations,
                site.represent,
                3,
                site.work / "x",
                lambda done, total: None,
            )
