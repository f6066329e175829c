"""Respelling: milliseconds of processor time that a round takes to bring one member's tokens up to date.

Every round adds the bytes of one token of another tokenizer to the text, and `Spelling.extend` finds the member's
tokens of the longer text. Measured at 5,000 and at 10,000 tokens, over texts of several kinds, for the
tokenizers of a folder and for two pipelines made of the first SentencePiece one among them: Gemma 2's (no dummy
prefix, added tokens that are text) and Phi-3's (end tokens that swallow white space).

    python -m tools.bench.respell [--tokenizers ../shared/tokenizers]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerFast

from alignment.spelling import Spelling
from alignment.text.tokenizer import Tokenizer

LENGTHS = (5_000, 10_000)
ROUNDS = 200
TEXTS = {
    "prose": "The members agree on most of the words, and where they do not, the round decides between them. ",
    "code": "def fuse(rows, weights):\n    return sum(w * row for w, row in zip(weights, rows))\n\n\n",
    "chinese": "各模型在每一步都给出下一个词的分布然后按照权重把它们合在一起再从中选出一个词",
    "dashes": "-" * 60,
    "spaces": " " * 40 + "x\n",
    "digits": "3141592653589793238462643383279502884197169399375105820974944592",
    "letters": "QWxsIG1lbWJlcnMgYWdyZWUgb24gbW9zdCBvZiB0aGUgd29yZHMsIGFuZCB3aGVyZSB0aGV5IGRv",
    "hindi": "सदस्य अधिकांश शब्दों पर सहमत हैं और जहाँ नहीं हैं वहाँ दौर उनके बीच निर्णय करता है। ",
    "accents": "de\u0301ja\u0300 vu e\u0301te\u0301 ",
    "emoji": "👍🏽🎉👩‍👩‍👧🚀",
    "lines": "\n" * 50 + "\t\t",
    "tabs": "\t" * 60 + "\n",
}


def respell(tokenizer: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """Milliseconds of each of the rounds that follow so many tokens of `text`, [ROUNDS] for each of `LENGTHS`."""
    block = text.encode()
    data = itertools.chain.from_iterable(itertools.repeat(block))
    spelling = Spelling(tokenizer)
    for length in LENGTHS:
        while len(spelling.ids) < length:
            spelling.extend(bytes(itertools.islice(data, 1024)))
        took = []
        for _ in range(ROUNDS):
            added = bytes(itertools.islice(data, 4))
            start = time.thread_time()
            spelling.extend(added)
            took.append(1e3 * (time.thread_time() - start))
        yield np.array(took)


def pipelines(folder: Path) -> Iterator[tuple[str, Tokenizer]]:
    """The tokenizers of a folder by name, then the two that are made of one of them."""
    sentencepiece = None
    for path in sorted(path.parent for path in folder.glob("*/tokenizer.json")):
        tokenizer = Tokenizer.load(str(path))
        if sentencepiece is None and tokenizer.continuation.windows == "pairs":
            sentencepiece = json.loads(tokenizer.hf.backend_tokenizer.to_str())
        yield path.name, tokenizer
    if sentencepiece is not None:
        yield "gemma-2's pipeline", _of(like_gemma(sentencepiece))
        yield "phi-3's pipeline", _of(like_phi(sentencepiece))


def like_gemma(pipeline: dict) -> dict:
    """Spaces become marks without a prefix, a split that never splits, and added tokens that are text."""
    pipeline = json.loads(json.dumps(pipeline))
    pipeline["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    pipeline["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    for text in [*("\n" * n for n in range(2, 32)), *("▁" * n for n in range(2, 32)), "<table>", "</table>"]:
        _add(pipeline, text, special=False)
    return pipeline


def like_phi(pipeline: dict) -> dict:
    """End tokens that take the white space after them, one of them not flagged special."""
    pipeline = json.loads(json.dumps(pipeline))
    for token in pipeline["added_tokens"]:
        if token["content"] == "</s>":
            token |= {"special": False, "rstrip": True}
    for name in ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"):
        _add(pipeline, name, special=True, rstrip=True)
    return pipeline


def _add(pipeline: dict, text: str, *, special: bool, rstrip: bool = False) -> None:
    vocabulary = pipeline["model"]["vocab"]
    number = vocabulary.setdefault(text, len(vocabulary))
    flags = {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False, "special": special}
    pipeline["added_tokens"].append({"id": number, "content": text, **flags})


def _of(pipeline: dict) -> Tokenizer:
    pipeline["added_tokens"].sort(key=lambda token: token["id"])
    backend = tokenizers.Tokenizer.from_str(json.dumps(pipeline))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), "made")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokenizers", type=Path, default=Path("../shared/tokenizers"))
    folder = arguments.parse_args().tokenizers
    worst = 0.0
    for name, tokenizer in pipelines(folder):
        for kind, text in TEXTS.items():
            means = [float(took.mean()) for took in respell(tokenizer, text)]
            worst = max(worst, *means)
            print(
                f"{name:20} {tokenizer.continuation.windows:6} {kind:8}",
                *(f"{mean:8.3f}" for mean in means),
                flush=True,
            )
    print(json.dumps({"benchmark": "respell", "lengths": LENGTHS, "worst_mean_ms_a_round": round(worst, 3)}))


if __name__ == "__main__":
    main()
