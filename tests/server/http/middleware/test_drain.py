"""Requests to a server that is shutting down."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.support.scraped_server import Scrape
from tests.support.small_requests import CHAT, CHAT_PATH


def test_who_is_sent_elsewhere_while_the_server_drains_met_no_error(client: TestClient) -> None:
    client.app.state.lifecycle.draining = True
    answer = client.post(CHAT_PATH, json=CHAT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.value("request_errors_total") == scrape.value("request_errors_total", type="draining") == 1
    assert scrape.value("http_requests_total") == scrape.value("http_requests_total", path="draining") == 1
