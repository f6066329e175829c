"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that has its name only when it is whole. OSError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
