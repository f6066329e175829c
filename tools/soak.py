"""Soak and kill: `python -m tools.soak [--seconds S] [--config FILE] [--model NAME]`, or `make soak SECONDS=900`.

Three parts, each of which fails with a sentence and exit status 1:

* load: `CONCURRENCY` clients of the ensemble. 30 % go away in the middle of a stream, the others ask for one to
  three choices, stop strings and log-probabilities. Every answer that is waited for is whole and equal to what the
  same request gets when nothing else runs (temperature 0). Afterwards no sequence is open and the server's memory
  has stopped growing.
* kill: as many clients, and every member in a process of its own, one of which is killed every ten seconds. Every
  request ends within `PATIENCE` seconds with an answer, with a 503, or, as a stream that had begun, with an error
  event. Afterwards the members come back.
* orphans: no process is left after the server had SIGTERM, nor after it had SIGKILL.

The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

REPOSITORY = Path(__file__).parents[1]
CONCURRENCY = 64
CANCELLED = 0.3
PATIENCE = 60.0  # seconds in which a request has to end while workers are killed
KILL_EVERY = 10.0
REQUESTS = 96  # different requests; each is asked alone first
PATH = "/v1/chat/completions"
# As in the tests of memory: what the server itself holds, without what oneDNN and malloc keep for later.
MEMORY = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}


class SoakFailedError(Exception):
    """A property did not hold; the message says which."""


class EndedByErrorError(Exception):
    """A stream that had begun ended with an error event; the message is the event's."""


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise SoakFailedError(sentence)


@dataclass(frozen=True)
class Served:
    """A running server: its root URL and its process."""

    url: str
    process: subprocess.Popen[str]

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def gauge(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@contextmanager
def serving(config: Path, log: Path) -> Iterator[Served]:
    environ = os.environ | MEMORY | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "server", "serve", str(config), "--port", "0"]
    with (
        log.open("a") as stderr,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            require(bool(ready), f"the server did not start: {log.read_text()[-2000:]}")
            yield Served(ready.split()[-1].removesuffix("/v1"), process)
        finally:
            process.kill()


def requests_of(model: str, prompts: list[str], seed: int) -> list[dict[str, Any]]:
    """Seeded requests with 1 to 3 choices, stop strings and log-probabilities, all at temperature 0."""
    draw = random.Random(seed)
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": draw.choice((8, 24, 48)),
            "n": draw.randint(1, 3),
            **({"stop": draw.choice((".", " is ", "\n", "="))} if draw.random() < 0.3 else {}),
            **({"logprobs": True, "top_logprobs": draw.randint(0, 3)} if draw.random() < 0.3 else {}),
        }
        for prompt in prompts
    ]


def said(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """The text and the finish reason of each choice."""
    return [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]


async def streamed(
    http: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None
) -> list[tuple[str, str]]:
    """As `said`, from a stream; the connection is closed after `leave_after` events, if that is given."""
    texts, finishes, ended = [""] * body["n"], [""] * body["n"], False
    async with http.stream("POST", PATH, json=body | {"stream": True}) as response:
        if response.status_code != 200:
            await response.aread()
            raise httpx.HTTPStatusError("refused", request=response.request, response=response)
        events = 0
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            events += 1
            if leave_after is not None and events > leave_after:
                return []
            if line == "data: [DONE]":
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                require(event["error"]["type"] == "server_error", f"a stream ended with {event['error']}")
                raise EndedByErrorError(event["error"]["message"])
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
                finishes[choice["index"]] = choice["finish_reason"] or finishes[choice["index"]]
    require(ended or leave_after is not None, "a stream ended without [DONE]")
    return list(zip(texts, finishes, strict=True))


async def alone(url: str, bodies: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        answers = [await http.post(PATH, json=body) for body in bodies]
    for answer in answers:
        require(answer.status_code == 200, f"a request alone got {answer.status_code}: {answer.text[:300]}")
    return [said(answer.json()) for answer in answers]


async def load(
    url: str, bodies: list[dict[str, Any]], expected: list[list[tuple[str, str]]], seconds: float
) -> Counter[str]:
    """Run clients until time is up; return the number of requests by outcome."""
    outcomes: Counter[str] = Counter()
    deadline, turn, draw = time.monotonic() + seconds, itertools.count(), random.Random(7)
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)

    async with httpx.AsyncClient(base_url=url, timeout=240, limits=limits) as http:

        async def client() -> None:
            while time.monotonic() < deadline:
                index = next(turn) % len(bodies)
                if draw.random() < CANCELLED:
                    body = bodies[index] | {"max_tokens": 400, "ignore_eos": True, "n": 1}
                    body.pop("stop", None)
                    await streamed(http, body, draw.randint(0, 12))
                    outcomes["cancelled"] += 1
                    continue
                if draw.random() < 0.5:
                    got = await streamed(http, bodies[index], None)
                else:
                    answer = await http.post(PATH, json=bodies[index])
                    require(answer.status_code == 200, f"got {answer.status_code}: {answer.text[:300]}")
                    got = said(answer.json())
                outcomes["whole"] += 1
                if got != expected[index]:
                    outcomes["different"] += 1

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return outcomes


async def load_while_killing(served: Served, bodies: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Run clients until time is up, while a worker is killed every `KILL_EVERY` seconds."""
    outcomes: Counter[str] = Counter()
    longest, kills = 0.0, 0
    deadline, turn, draw = time.monotonic() + seconds, itertools.count(), random.Random(11)

    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=served.url, timeout=2 * PATIENCE, limits=limits) as http:

        async def client() -> None:
            nonlocal longest
            while time.monotonic() < deadline:
                body, began = bodies[next(turn) % len(bodies)], time.monotonic()
                try:
                    if draw.random() < 0.5:
                        await streamed(http, body, None)
                        outcomes["answered"] += 1
                    else:
                        answer = await http.post(PATH, json=body)
                        outcomes["answered" if answer.status_code == 200 else str(answer.status_code)] += 1
                except httpx.HTTPStatusError as error:
                    outcomes[str(error.response.status_code)] += 1
                except EndedByErrorError:
                    outcomes["streams ended by an error event"] += 1
                longest = max(longest, time.monotonic() - began)
                if not outcomes["answered"] or time.monotonic() - began < 0.05:
                    await asyncio.sleep(0.2)  # a refused client comes back, but not at once

        async def killer() -> None:
            nonlocal kills
            while time.monotonic() + KILL_EVERY < deadline:
                await asyncio.sleep(KILL_EVERY)
                workers = [
                    p for p in served.descendants() if "fusion.members.hosts.worker" in " ".join(p.cmdline())
                ]
                if workers:
                    draw.choice(workers).kill()
                    kills += 1

        await asyncio.gather(killer(), *(client() for _ in range(CONCURRENCY)))
    return {"kills": kills, "longest_seconds": round(longest, 1), **outcomes}


def soak(config: Path, model: str, prompts: list[str], seconds: float, log: Path) -> dict[str, Any]:
    bodies = requests_of(model, prompts, seed=3)
    with serving(config, log) as served:
        process = psutil.Process(served.process.pid)
        expected = asyncio.run(alone(served.url, bodies))
        outcomes = asyncio.run(
            load(served.url, bodies, expected, seconds / 2)
        )  # warm: what is kept is kept by now
        middle = process.memory_info().rss
        outcomes += asyncio.run(load(served.url, bodies, expected, seconds / 2))
        end = process.memory_info().rss
        require(
            not outcomes["different"], f"{outcomes['different']} of {outcomes['whole']} answers were different"
        )
        for _ in range(50):
            if not (open_ := served.gauge("tutti_sequences_running") + served.gauge("tutti_sequences_waiting")):
                break
            time.sleep(0.1)
        require(not open_, f"{open_:.0f} sequences are still open")
        growth = (end - middle) / 2**20
        per_request = 2**20 * growth / max(1, outcomes.total() / 2)
        require(growth < 8 or per_request < 2048, f"memory grew by {growth:.1f} MiB in the second half")
    return {**outcomes, "memory_mib": round(end / 2**20), "growth_mib_second_half": round(growth, 1)}


def in_processes(config: Path, folder: Path) -> Path:
    """The same configuration with every model in a process of its own."""
    data = yaml.safe_load(config.read_text())
    for model in data["models"].values():
        model["host"] = "process"
        source = config.parent / model["source"]
        model["source"] = str(source if source.exists() else model["source"])
    data.pop("evaluation", None)
    path = folder / "processes.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def ready_again(served: Served) -> float:
    """Seconds until all members are back."""
    began = time.monotonic()
    while httpx.get(f"{served.url}/ready", timeout=10).status_code != 200:
        require(time.monotonic() - began < 2 * PATIENCE, "members that were killed did not come back")
        time.sleep(0.5)
    return round(time.monotonic() - began, 1)


def kill(config: Path, model: str, prompts: list[str], seconds: float, log: Path) -> dict[str, Any]:
    with serving(config, log) as served:
        figures = asyncio.run(load_while_killing(served, requests_of(model, prompts, seed=5), seconds))
        figures["seconds_until_ready_again"] = ready_again(served)
    wrong = [status for status in figures if status.isdigit() and status != "503"]
    require(not wrong, f"requests got {', '.join(wrong)} instead of an answer or 503")
    require(figures["longest_seconds"] <= PATIENCE, f"a request took {figures['longest_seconds']} s")
    require(bool(figures.get("answered")), "nothing was answered")
    return figures


def orphans(config: Path, log: Path) -> dict[str, Any]:
    figures = {}
    for name in ("SIGTERM", "SIGKILL"):
        with serving(config, log) as served:
            started = served.descendants()
            require(bool(started), "the server has no workers")
            served.process.send_signal(getattr(signal, name))
            with suppress(subprocess.TimeoutExpired):
                served.process.wait(timeout=60)
            _, left = psutil.wait_procs(started, timeout=20)
        require(not left, f"{len(left)} processes are left after {name}")
        figures[name] = len(started)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0, help="for all parts together")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "deploy" / "demo.yaml")
    parser.add_argument("--model", default="tutti-demo")
    parser.add_argument("--questions", type=Path, default=REPOSITORY / "deploy" / "demo" / "test.jsonl")
    given = parser.parse_args()
    lines = given.questions.read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[:: max(1, len(lines) // REQUESTS)]]
    figures: dict[str, Any] = {"seconds": given.seconds, "concurrency": CONCURRENCY}
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        processes = in_processes(given.config.resolve(), Path(scratch))
        try:
            figures["load"] = soak(given.config, given.model, prompts, given.seconds / 2, log)
            print("load:", figures["load"], flush=True)
            figures["kill"] = kill(processes, given.model, prompts, given.seconds / 2, log)
            print("kill:", figures["kill"], flush=True)
            figures["orphans"] = orphans(processes, log)
            require("Traceback" not in log.read_text(), f"the log holds a traceback: {log.read_text()[-3000:]}")
        except SoakFailedError as error:
            print(json.dumps(figures))
            sys.exit(f"soak: {error}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
