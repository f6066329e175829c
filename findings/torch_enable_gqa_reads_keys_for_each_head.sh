#!/usr/bin/env bash
# torch: on a CPU, scaled_dot_product_attention with enable_gqa=True reads shared keys and values once per query head.
#
# Software: torch 2.13.0.
# Expected: grouped-query attention is said to be the cheaper one in decoding, since a group of query heads shares keys
#   and values; `enable_gqa=True` is the option for it, so it should read them once for the group.
# Seen: for one new token (32 query heads over 8 heads of keys and values, 4,000 tokens, float32) the same attention with
#   the four heads of a group given as four queries of one head has the same result within 1e-5, in half of the time
#   that the option takes.
# Source: torch's CPU kernel goes over pairs of batch row and query head, and finds each pair's keys by dividing the
#   head's number; only queries of one head are multiplied together.
# Exit status: 0 while the behaviour is as described (the option at least 1.3 times as long), 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/attends.py" <<'PYTHON'
import time

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

HEADS, SHARED, TOKENS, DIM = 8, 4, 4000, 128
torch.manual_seed(0)
query = torch.randn(1, HEADS * SHARED, 1, DIM)
keys, values = torch.randn(2, 1, HEADS, TOKENS, DIM)


def option():
    return attention(query, keys, values, enable_gqa=True)


def as_queries():
    folded = query.view(1, HEADS, SHARED, DIM)
    return attention(folded, keys, values).view(1, HEADS * SHARED, 1, DIM)


def milliseconds(run):
    taken = []
    for _ in range(30):
        began = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - began))
    return sorted(taken)[len(taken) // 2]


torch.testing.assert_close(option(), as_queries(), atol=1e-5, rtol=0)
slow, fast = milliseconds(option), milliseconds(as_queries)
print(f"torch {torch.__version__}: {slow:.2f} ms with enable_gqa, {fast:.2f} ms as queries of one head")
raise SystemExit(slow < 1.3 * fast)
PYTHON
"$folder/venv/bin/python" "$folder/attends.py"
