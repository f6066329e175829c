#!/usr/bin/env bash
# safetensors: an array of NumPy that is not in C order is saved with other values, and nothing says so.
#
# Software: safetensors 0.8.0 (0.7.0 saved them rightly), numpy 2.4.6.
# Expected: what save_file was given is what load_file returns, or it refuses, as safetensors.torch does with a tensor
#   that is not contiguous. The usual such array is a transposed weight, as between the layouts of two frameworks.
# Seen: the shape is that of the array and the values are those of the memory behind it: a transposed matrix is loaded
#   as a shuffled one, of every second column the beginning of the memory is loaded. A file of such weights passes every
#   check of names, shapes and types, and the model that is loaded from it runs. For a square matrix the transposition is
#   merely undone, and a matrix of one row or column is saved rightly, so that a test with small shapes may miss it.
# Source: safetensors/numpy.py, _flatten: since 0.8.0 it hands on the array's shape with the address and length of its
#   memory, in place of tobytes(), which had put the values into C order; nobody looks at the strides.
#   Reported as safetensors/safetensors#825.
# Exit status: 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/saved.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

weight = np.arange(6, dtype=np.float32).reshape(2, 3)
square = np.arange(4, dtype=np.float32).reshape(2, 2)
given = {
    "as it is": weight,
    "transposed": weight.T,
    "transposed square": square.T,
    "Fortran order": np.asfortranarray(weight),
    "every second column": weight[:, ::2],
    "transposed, copied": np.ascontiguousarray(weight.T),
}
path = Path(sys.argv[1], "arrays.safetensors")
save_file(given, path)
loaded = load_file(path)
print("safetensors", safetensors.__version__)
kept = []
for name, array in given.items():
    assert loaded[name].shape == array.shape and loaded[name].dtype == array.dtype
    kept.append(np.array_equal(loaded[name], array))
    print(f"  {name:20}", array.tolist(), "is loaded as", "itself" if kept[-1] else loaded[name].tolist())
if safetensors.__version__ == "0.7.0":
    sys.exit(0 if all(kept) else 1)
sys.exit(0 if kept == [True, False, False, False, False, True] else 1)
PYTHON
for version in 0.7.0 0.8.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check safetensors==$version numpy==2.4.6
    "$folder/$version/bin/python" "$folder/saved.py" "$folder"
done
