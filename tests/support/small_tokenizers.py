"""Small tokenizers of every kind, trained on the spot."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from alignment.text.tokenizer import Tokenizer as Tutti

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's lazy.",
    "There are 12 apples and 345 pears in 7 baskets; how many are there in all?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est l'été à Noël ?",
    "  indented\n    twice\n\n\treturn x == y  # and so on ...\n",
    "你好，世界。今天天气很好。 こんにちは世界 안녕하세요 세계 😀😃 👨‍👩‍👧",
] * 4
CONTROL = ["<unk>", "<s>", "</s>", "<|end|>"]
CHATML = (
    "{% for m in messages %}<|end|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
STRIPPING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' </s>' }}"
    "{% else %}{{ raise_exception('Only users and assistants talk here.') }}{% endif %}{% endfor %}"
)


def _trained(
    backend: Tokenizer, trainer: trainers.Trainer, template: str | None, added: tuple[str, ...] = ()
) -> Tutti:
    backend.train_from_iterator(TEXTS, trainer)
    return _wrapped(backend, template, added)


def _wrapped(backend: Tokenizer, template: str | None, added: tuple[str, ...] = ()) -> Tutti:
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    hf.chat_template = template
    return Tutti(hf, "tiny")


def _bpe(**settings: object) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=700, special_tokens=CONTROL, show_progress=False, **settings)


@cache
def byte_level(*added: str, complete: bool = True, nfc: bool = False) -> Tutti:
    backend = Tokenizer(models.BPE())
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if complete else []
    return _trained(backend, _bpe(initial_alphabet=alphabet), CHATML, added)


@cache
def split_digits() -> Tutti:
    """A sequence of pre-tokenizers, of which only the last covers all text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, _bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), None)


@cache
def anchored() -> Tutti:
    """Splits with a lookbehind, which nothing is known about."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(?<=\w) | ?\w+|\s+$|\W"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, _bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), None)


@cache
def sentencepiece(*added: str, fallback: bool = True) -> Tutti:
    """Llama 2's arrangement: a Prepend normalizer, and merges across the whole text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _with_byte_tokens(backend, STRIPPING, added, fallback)


@cache
def metaspace(scheme: str, *, split: bool) -> Tutti:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return _with_byte_tokens(backend, STRIPPING, (), fallback=True)


def _with_byte_tokens(backend: Tokenizer, template: str, added: tuple[str, ...], fallback: bool) -> Tutti:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    # A trainer with only a limit keeps other characters of equal counts in every process.
    counts = Counter("".join(TEXTS).replace(" ", "▁"))
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:70]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=CONTROL + bytes_,
        show_progress=False,
        max_token_length=8,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    backend.train_from_iterator(TEXTS, trainer)
    # Trainers can only make byte tokens as special ones; in a real vocabulary they are ordinary.
    real = Tokenizer(backend.model)
    real.normalizer, real.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    real.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    real.add_special_tokens(CONTROL)
    real.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    real.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    hf = PreTrainedTokenizerFast(tokenizer_object=real, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    hf.chat_template = template
    return Tutti(hf, "tiny")


@cache
def unigram() -> Tutti:
    """SentencePiece's other model, without byte tokens."""
    # Its trainer gives another vocabulary in every process, so the pieces are counted here.
    words = " ".join(TEXTS).split()
    pieces = Counter(
        word[begin:end]
        for word in (f"▁{word}" for word in words)
        for begin in range(len(word))
        for end in range(begin + 1, min(begin + 6, len(word)) + 1)
    )
    single = [piece for piece in pieces if len(piece) == 1]
    often = sorted((p for p in pieces if len(p) > 1), key=lambda piece: (-pieces[piece] * len(piece), piece))
    kept = sorted(single) + often[: 300 - len(single)]
    scores = [(piece, math.log(pieces[piece] / pieces.total())) for piece in kept]
    backend = Tokenizer(models.Unigram([(token, 0.0) for token in CONTROL] + scores, CONTROL.index("<unk>")))
    backend.add_special_tokens(CONTROL)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _wrapped(backend, None)


def without_bytes(missing: Collection[int]) -> Tutti:
    """The byte-level one without tokens that hold these bytes, as SmolLM2's vocabulary lacks some."""
    whole = json.loads(byte_level().hf.backend_tokenizer.to_str())
    gone = {byte_level().hf.convert_ids_to_tokens(byte_level().byte_ids[byte]) for byte in missing}
    model = whole["model"]
    model["merges"] = [m for m in model["merges"] if not gone & set("".join(m))]
    kept = {token: id for token, id in model["vocab"].items() if token not in gone and not gone & set(token)}
    model["vocab"] = {token: number for number, token in enumerate(kept)}
    for token in whole["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    hf = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)), eos_token="</s>")
    return Tutti(hf, "lacking")


KINDS = {
    "byte level": byte_level,
    "byte level, NFC": lambda: byte_level(nfc=True),
    "byte level, added tokens": lambda: byte_level("<think>", "</think>", "é\u0301x", nfc=True),
    "split digits": split_digits,
    "anchored": anchored,
    "sentencepiece": sentencepiece,
    "sentencepiece, added tokens": lambda: sentencepiece("<think>", "</think>"),
    "metaspace": lambda: metaspace("first", split=True),
    "metaspace, whole text": lambda: metaspace("always", split=False),
}
