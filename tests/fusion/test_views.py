from __future__ import annotations

import pytest

from alignment.text.boundaries import Located
from fusion.views import ModelView, original_spans

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Where?"},
]


def contents(messages):
    return [(message["role"], message["content"]) for message in messages]


def test_a_plain_view_shows_the_conversation_as_it_is():
    shown, at = ModelView().chat(CHAT, "user")
    assert shown == CHAT
    assert at == [(0, 9), (1, 2), (2, 5), (3, 6)]
    assert ModelView().is_plain
    assert ModelView(adapter="x").is_plain


def test_a_context_stands_before_the_last_question_and_the_rest_stays_in_front_of_it():
    shown, at = ModelView(context="Rome is in Italy.").chat(CHAT, "user")
    assert shown[:3] == CHAT[:3]
    assert shown[3]["content"] == "Rome is in Italy.\n\nWhere?"
    assert at[3] == (3, 6)


@pytest.mark.parametrize("place", ["user", "system"])
def test_without_a_message_to_stand_in_a_context_makes_one(place):
    messages = [{"role": "assistant", "content": "Hello"}] if place == "user" else CHAT[1:]
    shown, at = ModelView(context="Rome.").chat(messages, place)
    assert contents(shown)[0] == ("system", "Rome.")
    assert shown[1:] == messages
    assert at[0] == (1, len(messages[0]["content"]))


def test_system_texts_come_before_the_requests_own():
    shown, _ = ModelView(system="You are Ada.", context="Rome.").chat(CHAT, "system")
    assert shown[0]["content"] == "Rome.\n\nYou are Ada.\n\nBe brief."
    assert shown[1:] == CHAT[1:]


def test_a_second_prompt_takes_the_place_of_the_system_message_or_of_all():
    assert ModelView(negative="Be rude.").chat(CHAT, "user")[0][0]["content"] == "Be rude."
    shown, at = ModelView(negative="Be rude.").chat(CHAT[1:], "user")
    assert contents(shown)[:2] == [("system", "Be rude."), ("user", "Hi")]
    assert at[0] == (1, 2)
    shown, at = ModelView(negative=({"role": "user", "content": "?"},)).chat(CHAT, "user")
    assert contents(shown) == [("user", "?")]
    assert at == [None] * 4


def test_a_second_prompt_ends_with_the_message_that_is_continued():
    begun = [*CHAT, {"role": "assistant", "content": "The answer"}]
    view = ModelView(negative=({"role": "user", "content": "?"},), context="Rome.")
    shown, at = view.chat(begun, "user", continued=True)
    assert contents(shown) == [("user", "Rome.\n\n?"), ("assistant", "The answer")]
    assert at == [None] * 4 + [(1, len("The answer"))]
    assert view.chat(begun, "system", continued=True)[1][-1] == (2, len("The answer"))


def test_the_request_is_left_unchanged():
    before = contents(CHAT)
    ModelView(system="a", context="b", negative="c").chat(CHAT, "user")
    assert contents(CHAT) == before


def test_in_a_text_completion_all_of_it_stands_in_front():
    assert ModelView(system="S", context="C").text("prompt") == "S\n\nC\n\nprompt"
    assert ModelView(context="C", negative="other").text("prompt") == "C\n\nother"


def test_texts_are_found_again_at_the_end_of_what_is_shown():
    # "Rome.\n\nWhere?" at 10..23, of which the question is the last six
    located = Located.of([(10, 15), (15, 17), (17, 23)], [(0, 5), (10, 23)])
    spans = original_spans(located, [(1, 6), None, (0, 5)]).texts
    assert spans == ((17, 23), None, (0, 5))
