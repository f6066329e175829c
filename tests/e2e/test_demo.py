"""The demo ensemble answers the questions it was made for."""

from __future__ import annotations

import openai
import pytest

from tests.support.demo import ENSEMBLE, TASKS, questions, user


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_text_that_ends(client: openai.OpenAI, task: str) -> None:
    answers = set()
    for text in questions(4, task):
        answer = client.chat.completions.create(model=ENSEMBLE, messages=user(text), temperature=0, max_tokens=200)
        content = answer.choices[0].message.content or ""
        assert answer.choices[0].finish_reason == "stop", content
        assert len(content.split()) >= 2
        assert "\ufffd" not in content
        assert not any(mark in content for mark in ("<|", "[INST]", "</s>")), "control tokens are not text"
        answers.add(content)
    assert len(answers) > 1, "they depend on the question"
