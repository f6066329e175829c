"""Validation of engine options by vLLM itself, without loading engines.

vLLM takes seconds to import and changes classes of transformers where it is, so it is asked in a process of its
own, `python -m fusion.members.vllm.validate`, which sees the devices that the engines will.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import ConfigError
from fusion.members.hosts.process import child_environment
from fusion.members.vllm.options import Options, configured, require_installed


def refusals(engines: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> list[str | None]:
    """Return for each engine the reason why vLLM refuses its options, one sentence, or None.

    Args:
        engines: each the fields of `Options`.
        environment: variables of their process beside those of this one.

    Raises:
        ConfigError: vLLM is not installed, or ends the process that asks it.
    """
    require_installed(engines[0]["source"])
    asked = subprocess.run(
        [sys.executable, "-m", "fusion.members.vllm.validate"],
        input=json.dumps([dict(engine) for engine in engines], default=str),
        env=child_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        last = (asked.stderr.strip() or f"exit code {asked.returncode}").splitlines()[-1]
        raise ConfigError(f"{engines[0]['source']}: vLLM cannot be asked about its options: {last[:300]}.")
    said: list[str | None] = json.loads(asked.stdout.splitlines()[-1])
    return said


def main() -> None:
    """Print the answer as the last line of the output; vLLM's own output comes before it."""
    said: list[str | None] = []
    for engine in json.load(sys.stdin):
        try:
            configured(Options(**engine))
        except ConfigError as error:
            said.append(str(error))
        else:
            said.append(None)
    sys.stdout.write(f"\n{json.dumps(said)}\n")


if __name__ == "__main__":
    main()
