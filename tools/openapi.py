"""Schemathesis against a served ensemble: no 5xx, nothing undocumented. `python -m tools.openapi ST`.

ST is the `st` command of an environment with `tools/openapi.lock`, as `make openapi` makes it. Requests are made
from /openapi.json with a seed. Exits with its status.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.demo import REPOSITORY
from tests.support.model_folders import save_site
from tests.support.serving import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    """Serve two tiny models and have every operation asked; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("st", help="the command of schemathesis")
    parser.add_argument("--examples", type=int, default=30, help="requests of each operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_site(Path(folder))
        configuration = Path(folder, "tutti.yaml")
        text = configuration.read_text(encoding="utf-8")
        limits = {"port": 0, "default_max_tokens": 8, "request_seconds": 20, "max_choices": 2}
        configuration.write_text(text.replace("server: {port: 0}", f"server: {json.dumps(limits)}"))
        with serving(configuration, Path(folder, "server.log")) as server:
            command = [options.st, "run", f"{server.url}/openapi.json", "--checks", CHECKS]
            # One worker: threads that parse Python at once, as hypothesis does for its messages, fail in
            # CPython before 3.11.8 ("AST constructor recursion depth mismatch").
            command += ["--max-examples", str(options.examples), "--seed", str(options.seed), "--workers", "1"]
            return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
