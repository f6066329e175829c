"""The page's files over HTTP: open to everyone, strict, whole in themselves, and only where they are wanted."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.http.paths import PAGE_PATHS
from server.settings import ServerSettings
from tests.support.scripted_fuser import ScriptedFuser, ensemble

each_file = pytest.mark.parametrize("path", PAGE_PATHS)


def client_of(fuser: ScriptedFuser, **options: object) -> TestClient:
    return TestClient(create_app({"pair": ensemble()}, fuser, ServerSettings(**options)))


@each_file
def test_every_file_comes_without_a_key_under_a_strict_policy(fuser: ScriptedFuser, path: str) -> None:
    answer = client_of(fuser, api_keys=("sk-right",)).get(path)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_rest_still_asks_for_the_key(fuser: ScriptedFuser) -> None:
    client = client_of(fuser, api_keys=("sk-right",))
    assert [client.get(path).status_code for path in ("/v1/models", "/page", "/page/")] == [401] * 3


@each_file
def test_the_page_can_be_switched_off(fuser: ScriptedFuser, path: str) -> None:
    assert client_of(fuser, page=False).get(path).status_code == 404


@each_file
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(fuser: ScriptedFuser, path: str) -> None:
    text = client_of(fuser).get(path).text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "//" not in re.sub(r"^\s*// .*$", "", text, flags=re.MULTILINE).replace("// ", "")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_paths_are_relative_so_that_a_proxy_may_put_the_page_under_a_prefix(fuser: ScriptedFuser) -> None:
    text = client_of(fuser).get("/").text
    assert re.findall(r'(?:href|src)="([^"]+)"', text) == ["page/icon.svg", "page/style.css", "page/script.js"]
