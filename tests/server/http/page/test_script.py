"""The page in a real browser, against the API with a fuser that plays a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from alignment.errors import OverloadedError, UnavailableError
from fusion.core import Delta, End
from tests.support.browser import INSTALLED, browser, until
from tests.support.scripted_fuser import ScriptedFuser, ensemble, eventually, report, says, token
from tests.support.served import Served

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs Debian's packages chromium and chromium-driver")
Serve = Callable[..., Served]
OUTAGE = UnavailableError("Member 'b' failed: it is out of memory.", retry_after=7)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with browser() as driver:
        yield driver


class Page:
    """The page as a person uses it."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        driver.get(f"{url}/")
        driver.execute_script("sessionStorage.clear()")
        driver.refresh()
        until(driver, lambda _: self.all("#model option") or self.text("#notice"))

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return "\n".join(element.get_attribute("textContent") or "" for element in self.all(selector))

    def ask(self, question: str, *, wait: bool = True) -> None:
        self.one("#question").send_keys(question, Keys.ENTER)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until nothing runs and all is drawn."""
        until(self.driver, lambda _: self.one("#send").is_displayed() and not self.all(".waiting"))

    @property
    def inspected(self) -> list[list[str]]:
        """The inspector's table: what it says of each member."""
        rows = [row.find_elements(By.CSS_SELECTOR, "th, td") for row in self.all("#inspector tbody tr:not(.role)")]
        roles = [row.text for row in self.all("#inspector tbody tr.role")]
        return [[*(cell.text for cell in row), role] for row, role in zip(rows, roles, strict=True)]

    @property
    def harm(self) -> list[Any]:
        """Violations of the policy, and what was written to the console."""
        violations: list[Any] = self.driver.execute_script("return window.violations")
        logged = [entry["message"] for entry in self.driver.get_log("browser")]
        return violations + [line for line in logged if "Failed to load resource" not in line]


def round_of(text: str, **changes: Any) -> Delta:
    """A round that says this, most of which came from `a`, and its report."""
    return Delta(text, (token(text.encode()[:1]),), round=replace(report(65), text=text, **changes))


def answering(*rounds: Delta) -> Callable[[Any], list[Delta]]:
    return lambda submission: [*rounds, End("", (token(b""),), finish="stop")]


def test_tokens_are_shown_as_they_come_and_coloured_by_their_leader(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    go_on = threading.Event()

    def script(submission: Any) -> Iterator[Delta]:
        yield round_of("One")
        go_on.wait(20)
        yield round_of(" two", contribution={"a": 0.1, "b": 0.9})
        yield round_of(" three", contribution={"a": 0.49, "b": 0.51})
        yield End("", (token(b""),), finish="stop")

    fuser.script = script
    page = Page(chrome, serve().url)
    page.ask("Count", wait=False)
    until(chrome, lambda _: page.text(".token") == "One")
    assert page.one("#stop").is_displayed()
    go_on.set()
    page.wait()
    assert page.text(".asked") == "Count"
    assert page.one(".text").text == "One two three"
    colours = [element.get_attribute("class").split()[1:] for element in page.all(".token")]
    assert colours == [["m0"], ["m1", "strong"], ["m1", "slight"]]
    assert page.one(".foot").text.split("\n") == ["a", "45 %", "b", "55 %"]
    assert page.text(".answer .hint").startswith("4 tokens")
    assert fuser.last.fusion.report
    assert page.harm == []


def test_pointing_at_a_token_shows_every_members_part(chrome: Chrome, serve: Serve, fuser: ScriptedFuser) -> None:
    left_out: dict[str, Any] = {"weights": {"a": 1.0, "b": 0.0}, "kept": {"a": True, "b": False}}
    alone: dict[str, Any] = {
        name: {"a": getattr(report(65), name)["a"]} for name in ("weights", "kept", "mass", "rolled_back")
    }
    fuser.script = answering(
        round_of("plain"),
        round_of("\n", **left_out, drafted=True),
        round_of("z", **alone, contribution={"a": 1.0}),
    )
    page = Page(chrome, serve().url)
    page.ask("Who?")
    told = []
    for element in page.all(".token"):
        ActionChains(chrome).move_to_element(element).perform()
        told.append((page.text("#inspector h2"), page.text("#inspector p"), page.inspected))
    plain, drafted, lonely = told
    assert plain[0:2] == ("plain", "Token 1 of 3, id 65; not drafted")
    assert plain[2] == [
        ["a", "75 %", "50 %", "100 %", "Took part"],
        ["b", "25 %", "50 %", "90 %", "Took part, took back 1 token"],
    ]
    assert drafted[0:2] == ("↵", "Token 2 of 3, id 65; drafted")
    assert drafted[2][1][4] == "Filtered out, took back 1 token"
    assert lonely[2][1] == ["b", "–", "–", "–", "Not asked in this round"]


def test_the_keyboard_goes_through_an_answer(chrome: Chrome, serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = answering(*(round_of(f" {word}") for word in ["one", "two", "three", "four"]))
    page = Page(chrome, serve().url)
    page.ask("Count")
    page.one("#talk").click()
    seen = []
    for key in (
        Keys.TAB,
        Keys.ARROW_RIGHT,
        Keys.ARROW_RIGHT,
        Keys.END,
        Keys.ARROW_RIGHT,
        Keys.ARROW_LEFT,
        Keys.HOME,
    ):
        chrome.switch_to.active_element.send_keys(key)
        seen.append(page.text("#inspector h2").strip("␣"))
    assert seen == ["one", "two", "three", "four", "four", "three", "one"]
    chrome.switch_to.active_element.send_keys(Keys.TAB)  # an answer is one stop on the way
    assert chrome.switch_to.active_element.get_attribute("id") == "question"


def test_members_stand_side_by_side_with_the_ensemble(chrome: Chrome, serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda s: (
        says(f"I am {s.ensemble.name}") if s.ensemble.name != "pair" else [*answering(round_of("We"))(s)]
    )
    served = serve({"pair": ensemble(), **{name: ensemble(name, members=(name,)) for name in "ab"}})
    page = Page(chrome, served.url)
    page.one("#compare").click()
    page.ask("Who are you?")
    assert [answer.text for answer in page.all(".text")] == ["We", "I am a", "I am b"]
    tops = {answer.rect["y"] for answer in page.all(".answer")}
    assert len(tops) == 1
    page.ask("Really?")
    asked = {
        s.ensemble.name: bytes(s.prompt.ids["b" if s.ensemble.name == "b" else "a"]).decode()
        for s in fuser.submissions[3:]
    }
    assert "assistant:We" in asked["pair"]
    assert "assistant:I am b\nuser:Really?" in asked["b"]


def test_what_was_said_goes_with_the_next_question(chrome: Chrome, serve: Serve, fuser: ScriptedFuser) -> None:
    fuser.script = lambda submission: says("Yes", ".")
    page = Page(chrome, serve().url)
    page.ask("Is it?")
    page.ask("Sure?")
    assert bytes(fuser.last.prompt.ids["a"]).decode().startswith("user:Is it?\nassistant:Yes.\nuser:Sure?")
    page.one("#fresh").click()
    page.ask("Hello")
    assert bytes(fuser.last.prompt.ids["a"]).decode().startswith("user:Hello")


def test_a_key_is_asked_for_and_kept_for_the_tab(chrome: Chrome, serve: Serve) -> None:
    served = serve(api_keys=("sk-right",))
    page = Page(chrome, served.url)
    assert page.text("#notice") == "This server asks for an API key; enter it above."
    for key, sentence in (("sk-wrong", "The server does not accept this API key."), ("sk-right", "")):
        page.one("#key").clear()
        page.one("#key").send_keys(key, Keys.ENTER)
        until(chrome, lambda _, sentence=sentence: page.text("#notice") == sentence)
    page.ask("Hello")
    assert page.one(".text").text == "Hello world"
    chrome.refresh()
    until(chrome, lambda _: page.all("#model option"))
    assert chrome.execute_script("return [localStorage.length, document.cookie]") == [0, ""]


HOSTILE = "<img src=x onerror=document.title='taken'>"


def test_markup_is_text_wherever_it_comes_from(chrome: Chrome, serve: Serve, fuser: ScriptedFuser) -> None:
    names = (HOSTILE, "\u202egnol" + "<b>" * 60)
    share = {"contribution": {names[0]: 0.75, names[1]: 0.25}}
    parts: dict[str, Any] = {field: dict.fromkeys(names, 1.0) for field in ("weights", "mass")}
    parts |= {"kept": dict.fromkeys(names, True), "rolled_back": dict.fromkeys(names, 0)}
    fuser.script = answering(round_of(f"</span><script>{HOSTILE}</script>", **share, **parts))
    page = Page(chrome, serve({HOSTILE: ensemble(HOSTILE, members=names)}).url)
    page.ask(HOSTILE)
    ActionChains(chrome).move_to_element(page.one(".token")).perform()
    assert page.text(".asked") == HOSTILE
    assert page.one(".text").text == f"</span><script>{HOSTILE}</script>"
    assert page.text("#inspector tbody tr:first-child bdi") == HOSTILE
    assert page.one(".token").get_attribute("aria-description") == f"75 % from {HOSTILE}"
    assert (chrome.title, page.all("img, script:not([src]), main b")) == ("Tutti", [])
    assert fits(page)
    assert page.harm == []


@pytest.mark.parametrize("name", ["__proto__", "constructor"])
def test_a_member_may_be_called_anything(chrome: Chrome, serve: Serve, fuser: ScriptedFuser, name: str) -> None:
    names, one = (name, "b"), {"b": 1.0}
    alone: dict[str, Any] = {"weights": one, "mass": one, "kept": {"b": True}, "rolled_back": {"b": 0}}
    fuser.script = answering(round_of("x", contribution=one, **alone))
    page = Page(chrome, serve({"pair": ensemble(members=names)}).url)
    page.ask("Hello")
    ActionChains(chrome).move_to_element(page.one(".token")).perform()
    assert page.inspected[0] == [name, "–", "–", "–", "Not asked in this round"]
    assert page.one(".foot").text.split("\n")[:2] == [name, "0 %"]


def test_a_sum_of_log_probabilities_has_terms_and_no_shares(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    fuser.script = answering(round_of("x", contribution={"a": -0.5, "b": 0.25}, weights={"a": 1.0, "b": -0.5}))
    page = Page(chrome, serve().url)
    page.ask("Hello")
    ActionChains(chrome).move_to_element(page.one(".token")).perform()
    assert [row[:3] for row in page.inspected] == [["a", "-0.50 nats", "1.00"], ["b", "0.25 nats", "-0.50"]]
    assert page.one(".token").get_attribute("class").split()[1:3] == ["m1", "shown"]
    assert page.all(".shares") == []


def fits(page: Page) -> bool:
    """Whether nothing has to be scrolled sideways."""
    widths = "[document.documentElement, ...document.querySelectorAll('#talk, #inspector, .answer, header')]"
    return bool(page.driver.execute_script(f"return {widths}.every((e) => e.scrollWidth <= e.clientWidth + 1)"))


def test_long_words_break_and_each_line_has_its_own_direction(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    fuser.script = answering(round_of("x" * 3000), round_of("\n"), round_of("שלום"), round_of(" world"))
    page = Page(chrome, serve({"pair": ensemble(context=4000)}).url)
    page.ask("y" * 500)
    assert fits(page)
    directions = [
        chrome.execute_script("return getComputedStyle(arguments[0]).direction", line)
        for line in page.all(".line")
    ]
    assert directions == ["ltr", "rtl"]


def test_an_answer_can_be_stopped_and_keeps_what_it_has(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    def script(submission: Any) -> Iterator[Delta | float]:
        yield round_of("Half")
        yield 60.0

    fuser.script = script
    page = Page(chrome, serve().url)
    page.ask("Tell me", wait=False)
    until(chrome, lambda _: page.text(".token") == "Half")
    page.one("#stop").click()
    page.wait()
    assert eventually(fuser.last.cancelled.is_set)
    assert "stopped" in page.text(".answer .hint")
    assert (page.text(".text"), page.text(".error")) == ("Half", "")


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (
            OverloadedError("256 sequences wait already.", retry_after=1),
            "256 sequences wait already; try again in 1 second.",
        ),
        (OUTAGE, "Member 'b' failed: it is out of memory; try again in 7 seconds."),
        (RuntimeError("secret"), "The server failed to answer this request; its log says why."),
    ],
)
def test_a_refusal_is_one_sentence(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser, refusal: Exception, sentence: str
) -> None:
    fuser.refuse = (0, refusal)
    page = Page(chrome, serve().url)
    page.ask("Hello")
    assert page.text(".error") == sentence
    fuser.refuse = None
    page.ask("Again")  # a question without an answer is not repeated to the model
    assert page.all(".text")[1].text == "Hello world"
    assert bytes(fuser.last.prompt.ids["a"]).decode().startswith("user:Again")


def test_an_error_on_the_way_keeps_the_text_and_says_why(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    fuser.script = lambda submission: [round_of("So far"), 0.2, End("", error=OUTAGE)]
    page = Page(chrome, serve().url)
    page.ask("Hello")
    assert (page.text(".text"), page.text(".error")) == ("So far", "Member 'b' failed: it is out of memory.")


CHUNK = "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "So far"}}]})
LOST = "The connection was lost before the answer ended."


@pytest.mark.parametrize(
    ("fetched", "sentence", "text"),
    [
        (f"new Response({json.dumps(CHUNK)} + '\\n\\n')", LOST, "So far"),
        (f"new Response({json.dumps(CHUNK[:40])})", LOST, ""),
        (
            f"new Response({json.dumps(CHUNK)} + '\\r\\n\\r\\n: idle\\ndata: {{no\\n\\n')",
            "The server sent something that is no part of an answer.",
            "So far",
        ),
        ("new Response('<h1>Bad gateway</h1>', {status: 502})", "The server answered with status 502.", ""),
        (
            "Promise.reject(new TypeError('network'))",
            "The server cannot be reached; check that it is running.",
            "",
        ),
        ("new Response('data: [DONE]\\n\\n')", "", ""),
    ],
)
def test_a_broken_answer_is_one_sentence(
    chrome: Chrome, serve: Serve, fetched: str, sentence: str, text: str
) -> None:
    page = Page(chrome, serve().url)
    chrome.execute_script(f"window.fetch = async () => {fetched}")
    page.ask("Hello")
    assert (page.text(".error"), page.text(".text")) == (sentence, text)


def test_a_long_answer_is_drawn_whole_and_followed_to_its_end(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    words = [str(number) + " \n"[number % 20 == 0] for number in range(1, 2001)]
    fuser.script = answering(*map(round_of, words))
    page = Page(chrome, serve().url)
    page.ask("Count")
    assert page.text(".text").split() == [str(number) for number in range(1, 2001)]
    until(chrome, lambda _: at_end(page))
    chrome.execute_script("talk.style.height = '200px'")
    until(chrome, lambda _: at_end(page))
    assert page.harm == []


def test_who_scrolls_up_stays_there_while_the_answer_goes_on(
    chrome: Chrome, serve: Serve, fuser: ScriptedFuser
) -> None:
    go_on = threading.Event()
    lines = [round_of(f"line {number}\n") for number in range(400)]

    def script(submission: Any) -> Iterator[Delta]:
        yield from lines[:200]
        go_on.wait(20)
        yield from lines[200:]
        yield End("", (token(b""),), finish="stop")

    fuser.script = script
    page = Page(chrome, serve().url)
    page.ask("Count", wait=False)
    until(chrome, lambda _: len(page.all(".token")) == 200 and at_end(page))
    chrome.execute_script("talk.scrollTop -= 600")
    chrome.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    go_on.set()
    page.wait()
    assert not at_end(page)
    page.ask("Again")
    until(chrome, lambda _: at_end(page))


def at_end(page: Page) -> bool:
    """Whether the conversation is scrolled to its end."""
    below = "return talk.scrollHeight - talk.scrollTop - talk.clientHeight"
    return bool(page.driver.execute_script(below) < 2)


CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const channels = (node, name) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  context.fillStyle = getComputedStyle(node)[name];
  context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const behind = (node) => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.unshift(channels(at, "backgroundColor"));
  const over = (under, [r, g, b, a]) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  return layers.reduce(over, [255, 255, 255]);
};
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
return [...document.querySelectorAll(arguments[0])].filter((node) => node.offsetParent).map((node) => {
  const [one, other] = [light(channels(node, "color")), light(behind(node))].sort((a, b) => b - a);
  return [node.className || node.id || node.tagName, (one + 0.05) / (other + 0.05)];
});
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_themes_and_fits_a_narrow_window(
    serve: Serve, fuser: ScriptedFuser, dark: bool
) -> None:
    names = tuple("abcdefgh")
    share = dict.fromkeys(names, 0.3)
    fuser.script = lambda s: [
        *(round_of(name, contribution=share | {name: most}) for name in names for most in (0.35, 0.6, 0.9)),
        End("", error=OUTAGE),
    ]
    with browser(dark=dark, width=360, height=700) as driver:
        page = Page(driver, serve({"pair": ensemble(members=names)}).url)
        page.ask("Hello")
        assert fits(page)
        page.one(".token").click()
        found = driver.execute_script(CONTRAST, "h1, h3, p, th, td, label, button, select, .token, .asked")
        assert len(found) > 40
        assert [pair for pair in found if pair[1] < 4.5] == []
        controls = page.all("input, select, textarea")
        assert all(driver.execute_script("return arguments[0].labels.length", control) for control in controls)
