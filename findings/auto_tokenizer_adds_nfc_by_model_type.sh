#!/usr/bin/env bash
# transformers: AutoTokenizer adds a normaliser that tokenizer.json does not have, because config.json says qwen2.
#
# Software: transformers 5.19.0, tokenizers 0.23.3.
# Expected: tokenizer.json is the whole pipeline, and a tokenizer_config.json that names PreTrainedTokenizerFast loads it
#   as it is, whatever model lies beside it.
# Seen: with model_type llama the ids are those of the file. With model_type qwen2 (the only difference) the
#   class becomes Qwen2Tokenizer, which puts NFC in front: "e" followed by a combining acute accent comes to the bytes
#   of the composed letter, so the text that the model reads is not the text that was given, nor what the file's own
#   pipeline makes of it.
# Source: the class is chosen by model_type, and Qwen2Tokenizer builds its normaliser itself.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.19.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

folder = Path(sys.argv[1], "model")
folder.mkdir()
letters = {symbol: id for id, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab={**letters, "<|end|>": 256}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<|end|>"])
tokenizer.save(str(folder / "tokenizer.json"))
named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
(folder / "tokenizer_config.json").write_text(json.dumps(named))

TEXT = "e\u0301"
own, seen = tokenizer.encode(TEXT).ids, {}
for kind in ("llama", "qwen2"):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
    seen[kind] = type(loaded).__name__, loaded(TEXT, add_special_tokens=False)["input_ids"]
print("transformers", transformers.__version__, "tokenizer.json:", own, seen)
changed = seen["llama"][1] != own or seen["qwen2"][1] == own
sys.exit(1 if changed else 0)
PYTHON
