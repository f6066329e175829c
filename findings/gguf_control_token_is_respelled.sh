#!/usr/bin/env bash
# transformers and GGUF: a control token with a character outside the byte alphabet is not a token after loading.
#
# Software: transformers 5.19.0, tokenizers 0.23.3, gguf 0.19.0, torch 2.13.0.
# Expected: a byte-level vocabulary of a GGUF file whose control token holds a full-width bar, as several families of
#   models write theirs, gives a tokenizer in which this text is that token, and which has as many ids as the file.
# Seen: the token's name is spelled anew in the byte alphabet, as if it were ordinary text, and the token is not added: its
#   text is cut into many ids. And where the file has no "<|endoftext|>", that one is added behind the last id, beyond
#   the model's embeddings.
# Source: the loader takes a control token with other characters for a mislabelled one and passes over it, saying so in a
#   comment; GPT-2's class, which it builds byte-level vocabularies with, brings its own end of text.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.19.0 tokenizers==0.23.3 gguf==0.19.0 torch==2.13.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import numpy as np
import transformers
from tokenizers.pre_tokenizers import ByteLevel

MARKER = "<\uff5cturn\uff5c>"
tokens = [*sorted(ByteLevel.alphabet()), "ab", MARKER, "<end>"]
kinds = [int(gguf.TokenType.NORMAL)] * 257 + [int(gguf.TokenType.CONTROL)] * 2
path = Path(sys.argv[1], "marked.gguf")
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(64)
writer.add_embedding_length(8)
writer.add_block_count(1)
writer.add_feed_forward_length(8)
writer.add_head_count(1)
writer.add_head_count_kv(1)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(tokens)
writer.add_token_types(kinds)
writer.add_token_merges(["a b"])
writer.add_eos_token_id(258)
writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

read = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
ids, ends = read(MARKER, add_special_tokens=False).input_ids, read("<end>", add_special_tokens=False).input_ids
added = {token.content: id for id, token in read.added_tokens_decoder.items()}
print("transformers", transformers.__version__, "| ids in the file:", len(tokens), "| marker:", ids, "| end:", ends)
print("added tokens:", added)
seen = ends == [258] and ids != [257] and len(ids) > 1 and added.get("<|endoftext|>", 0) >= len(tokens)
sys.exit(0 if seen else 1)
PYTHON
