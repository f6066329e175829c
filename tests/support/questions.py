"""Questions with known answers, and a server that answers them as its model names say."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from fusion.calibrate.asking import Form
from server.commands.client import client_of
from server.commands.evaluate.asking import Answer
from server.commands.evaluate.questions import Question
from server.commands.evaluate.run import evaluate


def question(*references: str, choices: tuple[str, ...] = ()) -> Question:
    return Question("q", "task", "prompt", references, choices)


class Oracle:
    """A server whose model `good` knows every answer, while `bad` says nothing of use, `sick` fails.

    It knows a question by its prompt, as a chat or as the first line of a text.
    """

    def __init__(self, questions: list[Question]) -> None:
        self.known = {question.prompt: question.references[0] for question in questions}
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.refusals = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "good"}, {"id": "bad"}, {"id": "sick"}]})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self.refusals:
            self.refusals -= 1
            return httpx2.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "full"}})
        body = json.loads(request.content)
        self.bodies.append(body)
        if body["model"] == "sick":
            return httpx2.Response(503, json={"error": {"message": "a member is down"}})
        chat = request.url.path == "/v1/chat/completions"
        asked = body["messages"][0]["content"] if chat else body["prompt"].splitlines()[0]
        content = self.known[asked] if body["model"] == "good" else "hm"
        said = {"message": {"content": content}} if chat else {"text": content}
        return httpx2.Response(200, json={"choices": [said | {"finish_reason": "stop"}]})


QUESTIONS = [Question(f"n{n}", "numbers", f"{n} and {n}?", (str(2 * n),)) for n in range(6)] + [
    Question(f"t{n}", "texts", f"Say {n} in words.", (f"word {n} it is",)) for n in range(6)
]


CHAT = Form()


def ask(oracle: Any, form: Form = CHAT, retries: int = 0, **options: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(oracle))
        async with client_of("http://tutti", http=http).with_options(max_retries=retries) as client:
            return await evaluate(client, QUESTIONS, Console(file=io.StringIO()), form=form, **options)

    return asyncio.run(run())


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
