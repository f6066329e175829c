#!/usr/bin/env bash
# transformers and GGUF: a Llama file that states a scaling of its rotary embedding is loaded without it.
#
# Software: transformers 5.19.0, gguf 0.19.0, torch 2.13.0.
# Expected: a file written with llama.rope.scaling.type "linear" and llama.rope.scaling.factor 4 gives a configuration
#   whose rotary embedding is scaled by 4, or the loader says that it cannot.
# Seen: the configuration has the default rotary embedding; nothing is raised and nothing is logged at the default level.
#   The model runs, and its positions are four times too far apart.
# Source: the table of keys that the loader reads for this architecture has rope.freq_base but no key of rope.scaling;
#   keys it does not know are logged at level INFO only.
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

path = Path(sys.argv[1], "scaled.gguf")
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(1024)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_feed_forward_length(64)
writer.add_head_count(4)
writer.add_head_count_kv(4)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(10000.0)
writer.add_vocab_size(16)
writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
writer.add_rope_scaling_factor(4.0)
writer.add_tensor("token_embd.weight", np.zeros((16, 32), np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

stated = gguf.GGUFReader(path).fields["llama.rope.scaling.factor"].contents()
config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
print("transformers", transformers.__version__, "file:", stated, "configuration:", config.rope_parameters)
dropped = stated == 4.0 and config.rope_parameters["rope_type"] == "default"
sys.exit(0 if dropped else 1)
PYTHON
