"""Fronts: several ways to read text with one vocabulary, side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection

import tokenizers


def derive(
    backend: tokenizers.Tokenizer,
    *,
    control: Collection[int],
    encode_special_tokens: bool,
    post_process: bool = True,
) -> tokenizers.Tokenizer:
    """A second front on the same vocabulary and merges, without truncation or padding.

    Whether special tokens are read from text is a state of the backend, which transformers flips on each call:
    a front of our own keeps the choice, whatever thread encodes. The model itself is shared, not copied. Added
    tokens in `control` count as special, and no others, whatever the file flags.
    """
    front = tokenizers.Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(front, part, value)
    added = backend.get_added_tokens_decoder()
    for id, token in added.items():
        token.special = id in control
    in_order = (token for _, token in sorted(added.items()))
    for special, tokens in itertools.groupby(in_order, key=lambda token: bool(token.special)):
        (front.add_special_tokens if special else front.add_tokens)(list(tokens))
    if front.get_added_tokens_decoder().keys() != added.keys():
        # Ids of added tokens with holes between them can only be had from a file.
        whole = json.loads(backend.to_str())
        for stated in whole["added_tokens"]:
            stated["special"] = stated["id"] in control
        front = tokenizers.Tokenizer.from_str(json.dumps(whole))
        front.no_truncation()
        front.no_padding()
    if not post_process:
        front.post_processor = None
    front.encode_special_tokens = encode_special_tokens
    return front
