"""The web page in headless Chromium: `python -m tools.bench.page`. Needs Debian's chromium and chromium-driver.

An answer of 2,000 tokens by an ensemble of three, with a report of every round, comes from the real HTTP server
and a fuser that plays a script: at 200 tokens a second, and as fast as the server can send. Measured are the
time from the answer's first byte to its first token on the page; the longest time between two frames of the
page while the answer comes, which counts other programs' turns on a busy machine; and, from a trace, the
processor time that the tasks of the page's main thread took: the longest, and how many took more than 50 ms
("long tasks"). The last line is a JSON object.
"""

from __future__ import annotations

import json
import platform
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from selenium.webdriver import Chrome

from fusion.core import Delta, End
from fusion.reports import RoundReport
from server.http.app import create_app
from server.settings import ServerSettings
from tests.support.browser import browser, until
from tests.support.scripted_fuser import ScriptedFuser, ensemble, token

TOKENS = 2000
MEMBERS = ("llama", "qwen", "mistral")
PAUSES = {"200 tokens/s": 0.005, "at once": 0.0}
WATCH = """
window.measured = { longest: 0, first: null };
let last = null;
const frame = (now) => {
  if (measured.first !== null && last !== null) measured.longest = Math.max(measured.longest, now - last);
  last = now;
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
const talk = document.getElementById("talk");
new MutationObserver((_, observer) => {
  if (!talk.querySelector(".token")) return;
  measured.first = performance.now();
  observer.disconnect();
}).observe(talk, { childList: true, subtree: true });
"""
RESULT = """
const answer = performance.getEntriesByType("resource").findLast((entry) => entry.name.endsWith("completions"));
const tokens = document.querySelectorAll(".token").length;
return { ...measured, first: measured.first - answer.responseStart, tokens };
"""


def answer(pause: float) -> Iterator[Delta | float]:
    """Words in lines of twelve, led by each member in turn."""
    rounds = []
    for number in range(TOKENS):
        shares = {name: 0.8 if index == number % 3 else 0.1 for index, name in enumerate(MEMBERS)}
        text = f"word{number}" + ("\n" if number % 12 == 11 else " ")
        report = RoundReport(
            token=number,
            weights=dict.fromkeys(MEMBERS, 1 / 3),
            kept=dict.fromkeys(MEMBERS, True),
            contribution=shares,
            mass=dict.fromkeys(MEMBERS, 0.97),
            rolled_back=dict.fromkeys(MEMBERS, 0),
            text=text,
        )
        rounds.append(report)
        yield Delta(text, (token(text.encode()[:1]),), round=report)
        if pause:
            yield pause
    yield End("", (token(b""),), finish="stop", rounds=tuple(rounds))


def measured(url: str) -> dict[str, Any]:
    """What a browser sees of one answer."""
    with browser(trace=True) as driver:
        driver.get(url)
        until(driver, lambda _: driver.execute_script("return document.querySelectorAll('#model option').length"))
        driver.execute_script(WATCH)
        began = time.monotonic() * 1e6  # the trace's clock, in microseconds
        driver.execute_script(
            "document.getElementById('question').value = 'Count';"
            "document.getElementById('composer').requestSubmit();"
        )
        until(driver, lambda _: driver.execute_script("return document.querySelector('.shares') !== null"), 120)
        found: dict[str, Any] = driver.execute_script(RESULT)
        trace = events(driver)
    threads = main_threads(trace)
    tasks = [
        event["tdur"] / 1000
        for event in trace
        if event["name"].endswith("RunTask")
        and event["ts"] > began
        and "tdur" in event
        and (event["pid"], event["tid"]) in threads
    ]
    if found["tokens"] != TOKENS:
        raise RuntimeError(f"the page shows {found['tokens']} of {TOKENS} tokens")
    return {
        "first_token_ms": round(found["first"], 1),
        "longest_between_frames_ms": round(found["longest"], 1),
        "long_tasks": sum(1 for task in tasks if task > 50),
        "longest_task_ms": round(max(tasks), 1),
    }


def events(driver: Chrome) -> list[dict[str, Any]]:
    """The trace, which ends with the call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [message["params"] for message in messages if message["method"] == "Tracing.dataCollected"]


def main_threads(trace: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """Process and thread of each page's main thread."""
    named = [event for event in trace if event["name"] == "thread_name"]
    return {(event["pid"], event["tid"]) for event in named if event["args"]["name"] == "CrRendererMain"}


def main() -> None:
    fuser = ScriptedFuser()
    app = create_app({"trio": ensemble("trio", members=MEMBERS)}, fuser, ServerSettings())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    results = {}
    try:
        for name, pause in PAUSES.items():
            fuser.script = lambda submission, pause=pause: answer(pause)
            results[name] = measured(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            print(f"{name}: {results[name]}", flush=True)
    finally:
        server.should_exit = True
        thread.join()
    print(json.dumps({"machine": platform.machine(), "tokens": TOKENS, **results}))


if __name__ == "__main__":
    main()
