"""Linear layers for CPUs: weights in the layout that was measured the faster for the rows that come.

torch's own float32 path hands the plain matrix to MKL, which repacks it on every call. `mkldnn` lays a matrix out
once in the blocks that oneDNN multiplies. Neither is always faster: on an AVX2 server core a layer of 28,000 x 448
takes 0.66 of the time packed at one row and 0.46 at 16, one of 1216 x 448 1.4 and 0.86. So both are timed at load.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fusion.members.memory import free_memory

log = logging.getLogger(__name__)

SMALLEST_WEIGHT = 1 << 18
"""Weights with fewer elements stay as they are: their multiplication is too short for the longer call."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
"""Numbers of rows that are measured; those between go like the next larger one, those beyond like the last."""

_REPEATS = 3
_SLACK = 1.05  # a layout that is slower by less is as good: it does not take memory for both
_LONGEST = 0.2  # seconds of one multiplication after which no larger number of rows is tried
_CACHE_BYTES = 32 << 20  # a model larger than this finds its weights in memory, not in a cache
_SHARE_OF_MEMORY = 4  # one in so many of the bytes that are free may go to second layouts
_ROUNDING = 0.25  # of a usual result, by which two layouts may differ; a wrong one differs by more than all of it
_HINT = 16  # rows for choosing the packed layout; other numbers of rows run just as well with it

Timings = dict[int, tuple[float, float]]
"""By number of rows, as in `ROWS` or the first of these: seconds of the plain and of the packed layout."""


def pack_linear_layers(model: nn.Module, timed: Callable[[_Layer], Timings] | None = None) -> int:
    """Time the larger linear layers of a model on a CPU in both layouts, and keep what is faster.

    Weights are float32, or bfloat16 or float16 where oneDNN computes with them on this processor.

    Where one layout is faster for few rows and the other for many, both are kept, as far as memory allows. Where
    it does not, the packed one is only taken if it is slower neither for one row nor for sixteen.

    Args:
        timed: measures a layer; by default with the clock.

    Returns how many layers run packed for some number of rows. Others are left alone, with their plain weight; a
    plain weight that is not used any more is given up, unless an embedding shares it.
    """
    # oneDNN compiles a kernel of some 200 KB for every shape and number of rows, and by default keeps 1,024 of
    # them: a server that sees all batch sizes would grow for a long time. Read when oneDNN is first used.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    layers: defaultdict[tuple[int, ...], list[_Layer]] = defaultdict(list)
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if type(module) in (nn.Linear, Conv1D) and _is_large(weight):
            layers[tuple(weight.shape)].append(_Layer(module))
    everything = sum(layer.nbytes for group in layers.values() for layer in group)
    timed = timed or (lambda layer: _timings(layer, cold=everything > _CACHE_BYTES))
    room = free_memory() // _SHARE_OF_MEMORY
    packed = 0
    for shape, group in layers.items():
        timings = timed(group[0])
        use = [_use(timings, rows) for rows in ROWS]
        twice = sum(layer.nbytes for layer in group if any(use) and not all(use))
        if twice > room:
            use = [all(timings[rows][1] <= timings[rows][0] for rows in (1, 16) if rows in timings)] * len(ROWS)
            twice = 0
        room -= twice
        for layer in group:
            layer.settle(use)
        packed += len(group) if any(use) else 0
        log.info("%s x %d: %s", " x ".join(map(str, shape)), len(group), _described(use, timings))
    return packed


def _is_large(weight: Any) -> bool:
    large = weight.numel() >= SMALLEST_WEIGHT
    return bool(large and weight.device.type == "cpu" and weight.dtype in _dtypes())


@cache
def _dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN multiplies on this processor; it raises at others."""
    half = ((torch.bfloat16, "bf16"), (torch.float16, "fp16"))
    supported = [kind for kind, name in half if getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()]
    return (torch.float32, *supported)


class _Layer:
    """x [..., in] -> x W^T + b [..., out]: the `forward` of a linear module.

    Attributes:
        plain: as the module itself computes it.
    """

    def __init__(self, module: Any) -> None:
        self.nbytes: int = module.weight.nbytes
        self.plain: Callable[[Tensor], Tensor] = module.forward
        self._module = module
        self._bias = None if module.bias is None else module.bias.detach()
        self._packed: Tensor | None = None
        self._use: tuple[bool, ...] = ()
        self._apply = torch.ops.mkldnn._linear_pointwise.default

    @property
    def dtype(self) -> torch.dtype:
        """Of x and the weight."""
        return self._module.weight.dtype  # type: ignore[no-any-return]

    @property
    def inputs(self) -> int:
        """Width of x."""
        weight = self._module.weight
        return int(weight.shape[0] if isinstance(self._module, Conv1D) else weight.shape[1])

    def pack(self) -> None:
        """Lay the weight out for oneDNN, beside the plain one."""
        if self._packed is None:
            weight = self._module.weight.detach()
            matrix = weight.T.contiguous() if isinstance(self._module, Conv1D) else weight
            self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix, _HINT)

    def packed(self, x: Tensor) -> Tensor:
        """The same over the packed weight."""
        return self._apply(x, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]

    def agrees(self, x: Tensor) -> bool:
        """Whether both layouts give the same but for rounding."""
        plain, packed = self.plain(x).float(), self.packed(x).float()
        return bool((plain - packed).abs().max() <= _ROUNDING * plain.std())

    def settle(self, use: list[bool]) -> None:
        """Run packed for the numbers of rows of `ROWS` where `use` says so, and plain for the others."""
        if not any(use):
            self._packed = None
            return
        self.pack()
        self._use = tuple(use)
        self._module.forward = self.packed if all(use) else self
        if all(use):
            self._module.weight = nn.Parameter(self._module.weight.new_empty(0), requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        at = min((rows - 1).bit_length(), len(ROWS) - 1)
        return self.packed(x) if self._use[at] else self.plain(x)


@torch.inference_mode()
def _timings(layer: _Layer, *, cold: bool) -> Timings:
    """Time both layouts in turn; the best of a few repeats, because what else runs here can only add to it."""
    layer.pack()
    # Without threads of its own a multiplication is timed by what it computes, whoever else uses the core.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    flushed = torch.zeros(_CACHE_BYTES // 4 if cold and layer.nbytes < _CACHE_BYTES else 1)
    timings: Timings = {}
    for rows in ROWS:
        x = torch.randn(1, rows, layer.inputs, dtype=layer.dtype)
        best = [float("inf")] * 2
        for repeat in range(_REPEATS + 1):
            for at, run in enumerate((layer.plain, layer.packed)):
                flushed.add_(1)
                begun = clock()
                run(x)
                if repeat:  # the first compiles the kernel
                    best[at] = min(best[at], clock() - begun)
        timings[rows] = best[0], best[1]
        if max(best) > _LONGEST:
            break
    if not layer.agrees(x):
        log.warning("oneDNN multiplies %s wrongly here; torch's own multiplication is used", layer.dtype)
        return dict.fromkeys(timings, (0.0, float("inf")))
    return timings


def _use(timings: Timings, rows: int) -> bool:
    """Whether to run packed for so many rows."""
    plain, packed = timings[min(rows, max(timings))]
    does = [all(pair[at] <= _SLACK * min(pair) for pair in timings.values()) for at in (0, 1)]
    if does[0] != does[1]:
        return does[1]
    if all(does):
        return sum(pair[0] for pair in timings.values()) > sum(pair[1] for pair in timings.values())
    return packed < plain


def _described(use: list[bool], timings: Timings) -> str:
    """What was taken, for the log."""
    if not any(use):
        taken = "plain"
    elif all(use):
        taken = "packed"
    else:
        taken = "packed at " + ", ".join(str(rows) for rows, one in zip(ROWS, use, strict=True) if one) + " rows"
    measured = ", ".join(
        f"{1e3 * timings[r][0]:.2f} and {1e3 * timings[r][1]:.2f} ms at {r}" for r in (1, 16) if r in timings
    )
    return f"{taken} (plain and packed: {measured})"
