#!/usr/bin/env bash
# tokenizers: BpeTrainer with limit_alphabet trains another vocabulary in every process, from the same texts.
#
# Software: tokenizers 0.23.3.
# Expected: byte-pair encoding has no randomness, so the same texts and settings give the same tokenizer.json.
# Seen: where several characters are equally frequent at the limit, which of them stay in the alphabet (and so which
#   texts can be spelled at all) differs from process to process; eight processes gave several alphabets. With the same
#   characters given as initial_alphabet, all processes write the same file.
# Source: characters are counted in a hash map with a seed per process, and cut off after an unstable sort by count.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/train.py" <<'PYTHON'
import hashlib
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = ["abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ", "aaaa bbbb cccc dddd"]
LIMIT = 20
settings = {"vocab_size": 40, "limit_alphabet": LIMIT, "show_progress": False}
if sys.argv[1] == "given":
    kept = "abcdefghijklmnopqrst"
    settings["initial_alphabet"] = list(kept)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(**settings))
print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
PYTHON
for number in 1 2 3 4 5 6 7 8; do
    "$folder/venv/bin/python" "$folder/train.py" limit >>"$folder/limit"
    "$folder/venv/bin/python" "$folder/train.py" given >>"$folder/given"
done
limited=$(sort -u "$folder/limit" | wc -l)
given=$(sort -u "$folder/given" | wc -l)
echo "tokenizers 0.23.3: different vocabularies of 8 processes: limit_alphabet $limited, initial_alphabet as well $given"
[ "$limited" -gt 1 ] && [ "$given" -eq 1 ]
