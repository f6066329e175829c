"""Token ids that a caller gives."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.errors import InvalidRequestError


def require_ids(ids: Sequence[int], vocabulary_size: int, *, param: str) -> None:
    """InvalidRequestError, naming `param` and the place in it, unless all ids are below `vocabulary_size`."""
    for index, token in enumerate(ids):
        if not 0 <= token < vocabulary_size:
            raise InvalidRequestError(
                f"{param}[{index}] is {str(token)[:40]}, but token ids go from 0 to {vocabulary_size - 1}.",
                param=param,
            )
