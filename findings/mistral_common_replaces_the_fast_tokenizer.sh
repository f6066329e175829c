#!/usr/bin/env bash
# transformers with mistral-common: installing a package changes which tokenizer AutoTokenizer gives for a folder.
#
# Software: transformers 5.19.0, mistral-common 1.13.1.
# Expected: a folder with a tokenizer.json has a fast tokenizer, whatever else is installed and lies beside the file.
# Seen: a folder of a Mistral model with tokenizer.json and tekken.json opens as TokenizersBackend (is_fast True), and
#   once mistral-common is there (vLLM requires it) as MistralCommonBackend, which has no is_fast and no backend of the
#   tokenizers library. Programs that need offsets or the file's pipeline then say that the model has a slow tokenizer
#   only. mistral_format=False gives the fast one in both.
# Source: for a few model types the auto class looks for tekken.json first where mistral-common can be imported; the
#   argument mistral_format, None by default, decides.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip --quiet --disable-pip-version-check"
$pip install transformers==5.19.0
# Fetched, not installed: its files hold a tekken.json.
$pip download --no-deps --dest "$folder" mistral-common==1.13.1
cat >"$folder/opened.py" <<'PYTHON'
import json
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import tokenizers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
model = folder / "model"
if not model.exists():
    model.mkdir()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    backend.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    package = zipfile.ZipFile(next(folder.glob("mistral_common-*.whl")))
    (model / "tekken.json").write_bytes(package.read("mistral_common/data/tekken_240911.json"))
has = "with" if find_spec("mistral_common") else "without"
for options in ({}, {"mistral_format": False}):
    tokenizer = AutoTokenizer.from_pretrained(model, **options)
    print(has, options, type(tokenizer).__name__, getattr(tokenizer, "is_fast", "no is_fast"))
PYTHON
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
before=$(venv/bin/python opened.py "$folder" 2>/dev/null)
$pip install mistral_common-*.whl
after=$(venv/bin/python opened.py "$folder" 2>/dev/null)
printf '%s\n%s\n' "$before" "$after"
[ "$before" = "without {} TokenizersBackend True
without {'mistral_format': False} TokenizersBackend True" ] || exit 1
[ "$after" = "with {} MistralCommonBackend no is_fast
with {'mistral_format': False} TokenizersBackend True" ] || exit 1
