"""The three tokenizers: two byte-level BPEs that cut text differently, and one in the style of SentencePiece.

All are trained on the texts of the tasks, split digits one by one, and can encode every string of bytes.
"""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from deploy.demo.tasks import TASKS, Split, small_talk, stream

EXAMPLES_PER_TASK = 4000
SMALL_TALK_EXAMPLES = 1000
TEMPLATE_WORDS = ("user", "assistant", "system", "[INST]", "[/INST]")
"""What chat templates write around every message; each tokenizer learns them as often as small talk."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Builder = Callable[[Iterable[str], int, tuple[str, ...]], Tokenizer]
"""(texts, size of the vocabulary, special tokens) -> trained tokenizer."""


def corpus(seed: int) -> list[str]:
    """Prompts and answers of the training split, every task in the same measure."""
    texts = []
    for name, task in TASKS.items():
        examples = stream(task, Split.TRAIN, Random(f"{seed} {name}"))
        for example in islice(examples, EXAMPLES_PER_TASK):
            texts += [example.prompt, example.answer]
    rng = Random(f"{seed} small talk")
    for _ in range(SMALL_TALK_EXAMPLES):
        exchange = small_talk.draw(rng)
        texts += [exchange.prompt, exchange.answer, *TEMPLATE_WORDS]
    return texts


def gpt2_style(texts: Iterable[str], size: int, special: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE that cuts as GPT-2 does, digits apart."""
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return _byte_level(texts, size, special, pre_tokenizers.Sequence(cut))


def llama3_style(texts: Iterable[str], size: int, special: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE that cuts as Llama 3 and Qwen do: any sign may lead a word, digits apart."""
    cut = [
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return _byte_level(texts, size, special, pre_tokenizers.Sequence(cut))


def _byte_level(
    texts: Iterable[str], size: int, special: tuple[str, ...], cut: pre_tokenizers.PreTokenizer
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentencepiece_style(texts: Iterable[str], size: int, special: tuple[str, ...]) -> Tokenizer:
    """BPE over characters with byte fallback and ▁ for spaces, as in Llama 2.

    `special` must be the unknown token, the begin and the end of a text, in this order.
    """
    unknown, begin, _ = special
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token=unknown))
    # Merges never cross a space or touch a digit or a sign: all are cut here, before training.
    cut = [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
    trained.pre_tokenizer = pre_tokenizers.Sequence(cut)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *fallback],
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)],
        show_progress=False,
    )
    # A line break is left to byte fallback, as SentencePiece does.
    trained.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)

    # Training knows the byte tokens only as special ones, which would be recognised in the text of a user.
    # The same vocabulary in a fresh tokenizer leaves them to byte fallback.
    tokenizer = Tokenizer(_same_model(trained, unknown))
    tokenizer.add_special_tokens(list(special))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    return tokenizer


def _same_model(trained: Tokenizer, unknown: str) -> models.BPE:
    """The vocabulary and the merges of a trained tokenizer, without its added tokens."""
    state = json.loads(trained.to_str())["model"]
    return models.BPE(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        byte_fallback=True,
        fuse_unk=True,
        unk_token=unknown,
    )
