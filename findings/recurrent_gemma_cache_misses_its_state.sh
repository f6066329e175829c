#!/usr/bin/env bash
# transformers: two texts with a cache object each still share the state of a Recurrent Gemma.
#
# Software: transformers 5.24.0 (5.19.0 does the same), torch 2.13.0.
# Expected: what a model needs of the tokens before is in the cache object that is passed to it, so that texts with a
#   cache each can be run in turns.
# Seen: a text in two parts gives the logits of the whole text to 1e-6; with the beginning of another text between the
#   parts, which has a cache of its own, they are off by several hundredths. No warning is given.
# Source: the recurrent layers keep their recurrent and convolutional states as attributes of the modules; only the keys
#   and values of the attention layers go into the cache.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

torch.manual_seed(0)
config = AutoConfig.for_model(
    "recurrent_gemma",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    lru_width=32,
    attention_window_size=8,
)
model = AutoModelForCausalLM.from_config(config).eval()
text, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[20, 21, 22]])


def last(ids, cache=None, start=0):
    positions = torch.arange(start, start + ids.shape[1])[None]
    with torch.inference_mode():
        return model(ids, cache=cache, use_cache=cache is not None, position_ids=positions).logits[0, -1]


def in_two_parts(between):
    cache = DynamicCache(config=config)
    last(text[:, :3], cache)
    if between:
        last(other, DynamicCache(config=config))
    return last(text[:, 3:], cache, start=3)


whole = last(text)
alone, mixed = (float((in_two_parts(between) - whole).abs().max()) for between in (False, True))
print("transformers", transformers.__version__, f"alone off by {alone:.1e}, with another text between by {mixed:.1e}")
sys.exit(0 if alone < 1e-5 and mixed > 1e-2 else 1)
PYTHON
