"""One table says which status and type each error has on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from alignment.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    one_line,
)
from server.http.errors import ANSWERS, UnauthorizedError, status_of
from server.http.refusals import refusal

SCOPE = {"type": "http", "path": "/v1/chat/completions"}


def _descendants(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


def test_every_request_error_has_its_row():
    assert {RequestError, *_descendants(RequestError)} == set(ANSWERS)


@pytest.mark.parametrize(
    ("error", "status", "type", "code"),
    [
        (InvalidRequestError("No.", param="n"), 400, "invalid_request_error", None),
        (InvalidRequestError("No.", code="invalid_json"), 400, "invalid_request_error", "invalid_json"),
        (UnauthorizedError("No."), 401, "invalid_request_error", "invalid_api_key"),
        (OverloadedError("No."), 429, "rate_limit_error", "rate_limit_exceeded"),
        (RequestError("No."), 500, "server_error", None),
        (UnsupportedError("No."), 400, "invalid_request_error", "not_implemented"),
        (UnavailableError("No."), 503, "server_error", None),
    ],
)
def test_an_error_is_answered_as_the_table_says(error, status, type, code):
    response = refusal(SCOPE, error)
    detail = json.loads(response.body)["error"]
    assert (response.status_code, detail["type"], detail["code"]) == (status, type, code)
    assert (detail["message"], detail["param"]) == ("No.", error.param)


def test_retry_after_is_sent_where_it_is_known():
    assert refusal(SCOPE, OverloadedError("No.", retry_after=7)).headers["retry-after"] == "7"
    assert refusal(SCOPE, UnavailableError("No.", retry_after=4)).headers["retry-after"] == "4"
    assert "retry-after" not in refusal(SCOPE, UnavailableError("No.")).headers


def test_below_messages_errors_are_anthropics_also_behind_a_proxy():
    scope = {"type": "http", "path": "/llm/v1/messages/count_tokens", "root_path": "/llm"}
    body = json.loads(refusal(scope, OverloadedError("No.")).body)
    assert body == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "No."},
        "request_id": None,
    }


def test_what_no_user_was_meant_to_see_is_a_500():
    assert status_of(ValueError("secret")) == 500


def test_a_foreign_message_becomes_a_part_of_a_sentence():
    assert one_line(ValueError("it\n  broke.\n")) == "it broke"
    assert one_line("a " * 500, 9) == "a a a a a"
