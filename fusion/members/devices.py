"""Devices and dtypes by name."""

from __future__ import annotations

import torch

from alignment.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_device(device: str) -> torch.device:
    """`cpu`, `cuda:1`, `mps`: a device of this machine. Raises ConfigError."""
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"{device!r} is not a device; use cpu, cuda, cuda:N or mps.") from error
    if parsed.type == "cpu":
        return torch.device("cpu")
    if parsed.type == "mps" and torch.backends.mps.is_available():
        return torch.device("mps")
    if parsed.type == "cuda":
        count = torch.cuda.device_count()
        index = parsed.index or 0
        if index < count:
            return torch.device("cuda", index)
        present = f"CUDA devices are cuda:0 to cuda:{count - 1}" if count else "it has no CUDA device"
        raise ConfigError(f"Device {device!r} does not exist on this machine: {present}.")
    raise ConfigError(f"Device {device!r} does not exist on this machine; use cpu, cuda, cuda:N or mps.")


def parse_dtype(dtype: str) -> torch.dtype:
    """One of DTYPES. Raises ConfigError."""
    if dtype not in DTYPES:
        raise ConfigError(f"{dtype!r} is not a dtype for weights; use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]
