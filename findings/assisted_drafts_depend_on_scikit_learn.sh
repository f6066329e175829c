#!/usr/bin/env bash
# transformers: how long the drafts of assisted generation are depends on whether scikit-learn is installed.
#
# Software: transformers 5.19.0, torch 2.13.0, scikit-learn 1.9.1.
# Expected: the threshold of confidence at which an assistant stops drafting is adjusted while tokens are generated, as
#   its documentation says; the same models, prompt and settings take the same passes wherever they run.
# Seen: it is adjusted only where scikit-learn can be imported, which transformers does not require. Without, it stays at
#   0.4 and nothing is logged. The same 60 tokens take the assistant 55 passes without the package and 109 with it, so a
#   measurement of speculative decoding holds for one set of installed packages.
# Source: the candidate generator takes `roc_curve` from it to find the next threshold, and skips that step otherwise; the
#   description of `assistant_confidence_threshold` does not name the package.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.19.0 torch==2.13.0
cat >"$folder/passes.py" <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
passes = {}


def model(name, noise):
    """The same random weights each time, with as much noise, that counts its passes."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_attention_heads=2, initializer_range=0.3, eos_token_id=None, pad_token_id=0)
    made = LlamaForCausalLM(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(noise * torch.randn_like(weight))
    forward, passes[name] = made.forward, 0

    def counted(*args, **options):
        passes[name] += 1
        return forward(*args, **options)

    made.forward = counted
    return made


target, assistant = model("target", 0.0), model("assistant", 0.08)
prompt = torch.tensor([[1, 5, 9, 13]])
answer = target.generate(prompt, assistant_model=assistant, do_sample=False, max_new_tokens=60)
print(passes["assistant"], *answer[0].tolist())
PYTHON
cd "$folder"
export HF_HOME="$folder/home" OMP_NUM_THREADS=1
without=$(venv/bin/python passes.py 2>/dev/null)
venv/bin/pip install --quiet --disable-pip-version-check scikit-learn==1.9.1
with=$(venv/bin/python passes.py 2>/dev/null)
printf 'transformers %s\npasses of the assistant, then the tokens:\nwithout scikit-learn: %s\nwith scikit-learn:    %s\n' \
    "$(venv/bin/python -c 'import transformers; print(transformers.__version__)')" "$without" "$with"
[ "${without#* }" = "${with#* }" ] || exit 1
[ "${without%% *}" -lt "${with%% *}" ] || exit 1
