#!/usr/bin/env bash
# transformers: a gap in position_ids cuts the text in two, with use_cache=False alone.
#
# Software: transformers 5.24.0 (5.19.0 does the same), torch 2.13.0.
# Expected: position_ids say where the tokens are, as far as the position embedding is concerned, and use_cache says
#   whether keys and values are kept. The logits of one text at the positions 0 1 2 10 11 12 (a prompt whose middle was
#   left out, or the slots of a prompt cache) do not depend on use_cache, nor on a mask that hides nothing.
# Seen: with use_cache=False and no attention_mask the last three tokens do not see the first three: their logits are
#   those of the last three tokens alone. With use_cache=True, or with a mask of ones, they are those of the whole text.
#   No warning is given. So a teacher's or a reference's forward pass, which needs no cache, disagrees with the engine
#   on the same input; and a caller that does mean packed texts loses the walls between them once it passes a mask of
#   ones or leaves use_cache at its default.
# Source: masking_utils.py, _preprocess_mask_arguments: where there is no mask and no cache object, any two neighbours
#   whose positions differ by other than 1 are taken for the border of two packed texts (find_packed_sequence_indices).
#   With use_cache, the model makes an empty cache object before it makes the mask, and the search is not run.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.2,
)
model = AutoModelForCausalLM.from_config(config).eval()
ids, positions = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[0, 1, 2, 10, 11, 12]])


def last(start=0, mask=None, **settings):
    with torch.inference_mode():
        return model(
            ids[:, start:], position_ids=positions[:, start:], attention_mask=mask, **settings
        ).logits[0, -1]


ones = torch.ones_like(ids)
whole, tail = last(mask=ones, use_cache=True), last(start=3, mask=ones[:, 3:], use_cache=True)
print("transformers", transformers.__version__)
seen = {}
for cache in (True, False):
    for mask in (None, ones):
        got = last(mask=mask, use_cache=cache)
        off, alone = (float((got - other).abs().max()) for other in (whole, tail))
        seen[cache, mask is not None] = off < 1e-5, alone < 1e-5
        print(f"use_cache={cache}, mask {'of ones' if mask is not None else 'None'}: from the whole text {off:.1e}, "
              f"from the last three tokens alone {alone:.1e}")
cut = seen.pop((False, False))
sys.exit(0 if cut == (False, True) and set(seen.values()) == {(True, False)} else 1)
PYTHON
