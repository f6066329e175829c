"""Processor: its name, to stand beside figures."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name as Linux has it, the instruction set that matters for matrices, and the cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    widest = next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), platform.machine())
    return f"{facts.get('model name', platform.processor())}, {widest}, {os.cpu_count()} cores"
