"""Reports of an evaluation: the table and the JSON file."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from alignment.errors import ConfigError
from server.commands.evaluate import report
from server.commands.evaluate.asking import Answer
from server.commands.evaluate.questions import Question
from server.commands.evaluate.scoring import chrf, is_right
from server.settings.fields import Match
from tests.support.questions import QUESTIONS, Oracle, ask


def test_the_table_shows_every_task_and_the_total():
    console = Console(file=io.StringIO(), width=120)
    console.print(report.scores_table(report.summarise(ask(Oracle(QUESTIONS)))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in ("numbers", "texts", "good", "100.0", "100.0–100.0", "sick", "12 failed"):
        assert expected in shown


def test_the_json_file_holds_every_answer_and_the_scores(tmp_path):
    answers = ask(Oracle(QUESTIONS), models=["good", "bad"])
    report.write_json(tmp_path / "r.json", answers, report.summarise(answers))
    written = json.loads((tmp_path / "r.json").read_text())
    assert [row["right"] for row in written["answers"]] == [answer.right for answer in answers]
    assert written["answers"][0]["question"]["references"] == ["0"]
    assert [one["total"]["exact"]["mean"] for one in written["summary"]] == [1, 0]
    with pytest.raises(ConfigError, match="cannot be written"):
        report.write_json(tmp_path / "no" / "r.json", answers, [])


def test_a_task_where_nothing_is_exact_and_much_is_alike_gets_a_hint():
    def answers(said: str, match: Match | None = None) -> list[Answer]:
        asked = Question("1", "capitals", "?", ("Paris",), match=match)
        return [Answer("m", asked, said, is_right(asked, said), chrf(asked, said), "stop", None, 0.1)]

    def hinted(found: list[Answer]) -> list[str]:
        return report.hints(report.summarise(found), found)

    [hint] = hinted(answers("The capital of France is Paris."))
    assert hint.startswith("capitals: no answer is exactly a reference, though chrF is up to ")
    assert "--match contains" in hint
    assert hinted(answers("Paris")) == []
    assert hinted(answers("")) == []
    assert hinted(answers("It is Rome, not Par.", "contains")) == []
