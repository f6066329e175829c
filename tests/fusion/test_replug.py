"""A mixture over documents on made-up facts: one of eight holds the answer, the others mislead.

The member is made for it: it is sure of a number that a document ties to the name asked for, and drawn to the
others the more the later they stand. All eight in one prompt mislead it where many follow the right one; read one
at a time, none of them does.
"""

from __future__ import annotations

import random
import re

import numpy as np

from fusion.assembly.ensembles import build_ensemble
from fusion.assembly.views import with_views
from fusion.core import Capacity
from fusion.ensemble import Model
from fusion.loop.fuser import Fuser
from fusion.options import ContextView, FusionParams
from tests.support.toy_fuser import Running
from tests.support.toy_members import ToyMember

ROOMY = Capacity(context=1024, cache_tokens=100_000, sequences=64)
NAMES = ("Tovar", "Melin", "Quist", "Harbo", "Lenz", "Ostra", "Pavik", "Rudin")
DIGITS = "0123456789"


def questions(count):
    """Made-up records: each document gives one name a number; one of the names is asked for."""
    rng = random.Random(7)
    for _ in range(count):
        names = rng.sample(NAMES, 8)
        values = [rng.choice(DIGITS) for _ in names]
        asked = rng.randrange(8)
        documents = [f"The number of {name} is {value}." for name, value in zip(names, values, strict=True)]
        rng.shuffle(documents)
        yield f"The number of {names[asked]} is", documents, values[asked]


class Reader(ToyMember):
    """Weighs every number by how near the name asked for stands to it, and by how late it comes."""

    def __init__(self, tokenizer):
        super().__init__("reader", self._read, tokenizer.vocabulary_size, ROOMY, k=tokenizer.vocabulary_size)
        self._tokenizer = tokenizer

    def _read(self, tokens):
        text = self._tokenizer.decode(tokens)
        asked = re.findall(r"number of (\w+)", text)[-1]
        found = re.findall(r"number of (\w+) is (\d)\.", text)
        logits = np.full(self.vocabulary_size, -8.0)
        for place, (name, value) in enumerate(found):
            token = self._tokenizer.encode(f" {value}", add_special_tokens=False)[-1]
            logits[token] = max(logits[token], 4.0 if name == asked else 1.1 * place - 3.0)
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def test_the_mixture_over_documents_is_right_at_least_as_often_as_all_in_one_prompt(tokenizers):
    tokenizer = tokenizers["almanac"]
    member = Reader(tokenizer)
    single = build_ensemble(
        "one", {"reader": Model(member, tokenizer, (tokenizer.hf.eos_token_id,), "r")}, "reader"
    )
    fuser = Fuser({"reader": member})
    fuser.start()

    def answer(documents, question):
        viewed, fusion = with_views(single, FusionParams(views=tuple(map(ContextView, documents))))
        prompt = viewed.encode_text(question)
        listener = Running(fuser, viewed).submit(prompt, fusion, max_tokens=1, ignore_eos=True).wait()
        assert listener.last.error is None
        return tokenizer.decode(listener.ids)

    try:
        right = {"mixture": 0, "together": 0}
        for question, documents, value in questions(24):
            right["mixture"] += value in answer(documents, question)
            right["together"] += value in answer([" ".join(documents)], question)
    finally:
        fuser.stop()
    assert right["mixture"] >= right["together"]
    assert right["mixture"] >= 20
