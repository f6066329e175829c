"""Chats as batches of token ids, with how much each token is to be learnt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from deploy.demo.chats import Chat

SORTED_TOGETHER = 4096
"""Chats sorted by length at a time: enough for little padding, few enough to keep batches mixed."""

PROMPT_SHARE = 0.2
"""Share of the prompt tokens that are learnt: a model should also know what questions of its kind look like."""

CUT_SHARE = 0.3
"""Share of the answers that are cut at any character. In an ensemble a member goes on from text that may end
inside one of its words, tokenised as it stands; here it learns to."""


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a chat and, for each, the probability with which it is learnt."""

    ids: list[int]
    learnt: list[float]


@dataclass(frozen=True)
class Batch:
    """Several chats, padded on the right: causal attention never sees the padding, and it is not learnt.

    ids     int64 [chats, length]
    learnt  float32 [chats, length], probabilities
    """

    ids: Tensor
    learnt: Tensor


def encode_chat(tokenizer: PreTrainedTokenizerFast, chat: Chat, rng: Random) -> EncodedChat:
    """Tokenises a chat as a server would: each answer follows the ids of the prompt before it."""
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    learnt = [PROMPT_SHARE] * len(ids)
    for turn in range(len(chat) - 1, -1, -1):  # from the end, so that positions before stay valid
        if chat[turn]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(chat[:turn], add_generation_prompt=True, return_dict=False)
            start = len(prompt)
            end = ids.index(tokenizer.eos_token_id, start)
            answer = EncodedChat(ids[start:end], [1.0] * (end - start))
            if rng.random() < CUT_SHARE:
                answer = _cut(tokenizer, chat[turn]["content"], answer.ids, rng)
            ids[start:end] = answer.ids
            learnt[start : end + 1] = [*answer.learnt, 1.0]
    return EncodedChat(ids, learnt)


def encode_chats(
    tokenizer: PreTrainedTokenizerFast, chats: Iterable[Chat], tokens: int, rng: Random
) -> list[EncodedChat]:
    """As many of the chats as make up this many tokens."""
    encoded = []
    for chat in chats:
        encoded.append(encode_chat(tokenizer, chat, rng))
        tokens -= len(encoded[-1].ids)
        if tokens <= 0:
            break
    return encoded


def _cut(tokenizer: PreTrainedTokenizerFast, text: str, whole: list[int], rng: Random) -> EncodedChat:
    """An answer tokenised in two parts; what the first part ends in is given, not learnt, unless it is usual."""
    at = rng.randint(1, len(text))
    first = tokenizer(text[:at], add_special_tokens=False).input_ids
    # No token crosses a line break, so the second part is cut as the middle of a text, not as its beginning.
    line_break = tokenizer("\n", add_special_tokens=False).input_ids
    second = tokenizer(f"\n{text[at:]}", add_special_tokens=False).input_ids[len(line_break) :]
    usual = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, whole, strict=False))))
    return EncodedChat(first + second, [1.0] * usual + [0.0] * (len(first) - usual) + [1.0] * len(second))


def batches(chats: Sequence[EncodedChat], tokens: int, pad_id: int, rng: Random) -> Iterator[Batch]:
    """All chats once, in batches of at most `tokens` tokens with padding, chats of like length together."""
    for start in range(0, len(chats), SORTED_TOGETHER):
        together = sorted(chats[start : start + SORTED_TOGETHER], key=lambda chat: len(chat.ids))
        groups: list[list[EncodedChat]] = [[]]
        for chat in together:
            if (len(groups[-1]) + 1) * len(chat.ids) > tokens:
                groups.append([])
            groups[-1].append(chat)
        rng.shuffle(groups)
        for group in groups:
            yield _pad(group, pad_id)


def _pad(chats: Sequence[EncodedChat], pad_id: int) -> Batch:
    shape = (len(chats), max(len(chat.ids) for chat in chats))
    ids, learnt = torch.full(shape, pad_id), torch.zeros(shape)
    for row, chat in enumerate(chats):
        ids[row, : len(chat.ids)] = torch.tensor(chat.ids)
        learnt[row, : len(chat.ids)] = torch.tensor(chat.learnt)
    return Batch(ids, learnt)
