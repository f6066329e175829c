#!/usr/bin/env bash
# transformers and GGUF: biases of a Llama's attention are left out of the model, and no report of loading names them.
#
# Software: transformers 5.19.0, gguf 0.19.0, accelerate 1.15.0, torch 2.13.0.
# Expected: tensors blk.0.attn_q.bias and its like either become the biases of the projections, or stand under
#   unexpected_keys of output_loading_info, as they would for safetensors.
# Seen: the configuration says attention_bias False, the biases are gone, and missing_keys, unexpected_keys and
#   mismatched_keys are all empty.
# Source: the loader asks an empty model for the names that it has, and passes over tensors of the file without one
#   before the ordinary loading, which makes the report, sees them.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.19.0 tokenizers==0.23.3 gguf==0.19.0 accelerate==1.15.0 torch==2.13.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import numpy as np
import transformers

WIDTH, INNER, IDS = 32, 64, 16
path = Path(sys.argv[1], "biased.gguf")
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(128)
writer.add_embedding_length(WIDTH)
writer.add_block_count(1)
writer.add_feed_forward_length(INNER)
writer.add_head_count(4)
writer.add_head_count_kv(4)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(IDS)
shapes = {
    "token_embd.weight": (IDS, WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.ffn_gate.weight": (INNER, WIDTH),
    "blk.0.ffn_up.weight": (INNER, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, INNER),
}
for part in ("q", "k", "v", "output"):
    shapes[f"blk.0.attn_{part}.weight"] = (WIDTH, WIDTH)
    shapes[f"blk.0.attn_{part}.bias"] = (WIDTH,)
rng = np.random.default_rng(0)
for name, shape in shapes.items():
    writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

model, report = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, output_loading_info=True
)
biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
found = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
print("transformers", transformers.__version__, "biases in the model:", biases, found)
silent = not biases and not any(found.values())
sys.exit(0 if silent else 1)
PYTHON
