"""Requests leave nothing behind, neither those that end nor those whose client goes away."""

from __future__ import annotations

import asyncio

import httpx
import psutil
import pytest

from tests.support.demo import ENSEMBLE, questions, user
from tests.support.open_sequences import answers_that_wait, assert_none_open
from tests.support.scripted_fuser import eventually
from tests.support.serving import Server

AT_A_TIME = 24
WARM_UP, REQUESTS = 300, 500
# After the warm-up, 500 requests still add 4 to 7 MiB, and the next 500 up to 3 MiB. If those that are cancelled
# were never let go, each time would add more than this bound: 25 KiB each, about what the members' newest answers,
# the prompts and the request itself take.
GROWTH = 6 * 2**20


async def half_cancelled(url: str, count: int) -> tuple[int, int]:
    """So many requests; every second one is a stream whose connection is closed after its first pieces.

    Returns how many were answered whole and how many were cancelled.
    """
    places = asyncio.Semaphore(AT_A_TIME)
    asked = questions(40)
    limits = httpx.Limits(max_connections=AT_A_TIME, max_keepalive_connections=AT_A_TIME)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def one(index: int) -> bool:
            body = {"model": ENSEMBLE, "messages": user(asked[index % len(asked)]), "max_tokens": 16}
            async with places:
                if index % 2 == 0:
                    response = await http.post("/v1/chat/completions", json=body)
                    assert response.status_code == 200, response.text
                    assert response.json()["choices"][0]["finish_reason"]
                    return True
                body |= {"stream": True, "ignore_eos": True, "max_tokens": 900}
                async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                    assert response.status_code == 200
                    lines = response.aiter_lines()
                    for _ in range(2 + index % 7):
                        assert "[DONE]" not in await anext(lines)
                return False

        whole = await asyncio.gather(*map(one, range(count)))
    return whole.count(True), whole.count(False)


@pytest.mark.timeout(900)
def test_five_hundred_requests_half_of_them_cancelled(
    server: Server, http: httpx.Client, members: list[str]
) -> None:
    process = psutil.Process(server.pid)
    asyncio.run(half_cancelled(server.url, WARM_UP))
    growth = []
    for _ in range(2):
        before = process.memory_info().rss
        assert asyncio.run(half_cancelled(server.url, REQUESTS)) == (REQUESTS // 2, REQUESTS // 2)
        for name in members:
            assert_none_open(http, name)
        growth.append(process.memory_info().rss - before)
    assert min(growth) < GROWTH


def test_what_is_open_shows(server: Server, http: httpx.Client, members: list[str]) -> None:
    """The measure itself: one sequence of the ensemble takes room from every member, until its client goes."""
    body = {"model": ENSEMBLE, "messages": user("Hello"), "max_tokens": 900, "ignore_eos": True, "stream": True}
    with server.http() as other, other.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()  # kept, since the connection goes with it
        next(lines)
        for name in members:
            assert eventually(lambda name=name: answers_that_wait(http, name) == 1)
    for name in members:
        assert_none_open(http, name)
