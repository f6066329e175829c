"""Questions of lm-evaluation-harness, from data in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.errors import ConfigError
from server.commands.evaluate.harness import harness_questions


def written(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def arc(tmp_path: Path) -> Path:
    choices = {"text": ["snow", "sand"], "label": ["A", "B"]}
    rows = [
        {"id": str(n), "question": f"What is in desert {n}?", "choices": choices, "answerKey": "B"} for n in (1, 2)
    ]
    return written(tmp_path / "arc", rows)


def test_multiple_choice_has_the_texts_of_the_choices(arc: Path):
    first, second = harness_questions([f"arc_easy={arc}"])
    assert first.prompt == "Question: What is in desert 1?\nAnswer:"
    assert (first.texts, first.choices, first.references) == (("snow", "sand"), ("A", "B"), ("B",))
    assert (second.id, second.task) == ("1", "arc_easy")
    assert harness_questions([f"arc_easy={arc}"], 1) == [first]


def test_answers_that_end_in_a_number_are_compared_by_it(tmp_path: Path):
    folder = written(tmp_path / "gsm", [{"question": "How many?", "answer": "3 and 4 make 7.\n#### 7"}])
    [question] = harness_questions([f"gsm8k={folder}"])
    assert (question.references, question.matching) == (("7",), "last_number")


def test_answers_with_a_year_are_texts(tmp_path: Path):
    """Only a task that cuts the number out itself compares by it."""
    folder = written(tmp_path / "years", [{"question": "When?", "answer": "14 December 1972 UTC"}])
    task = tmp_path / "years.yaml"
    task.write_text(
        "task: years\noutput_type: generate_until\ntest_split: test\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl}}}}\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\nfilter_list:\n"
        "  - {name: whole, filter: [{function: remove_whitespace}, {function: take_first}]}\n"
    )
    [question] = harness_questions([str(task)])
    assert (question.references, question.matching) == (("14 December 1972 UTC",), "exact")
    [question] = harness_questions([str(task)], match="contains", metric="f1")
    assert (question.matching, question.metric) == ("contains", "f1")
    with pytest.raises(ConfigError, match="question 0: match last_number takes references"):
        harness_questions([str(task)], match="last_number")


def test_what_cannot_be_asked_is_one_sentence(arc: Path, tmp_path: Path):
    for name, reason in (
        ("no_such_task", "There is no task 'no_such_task'"),
        (f"arc_easy={tmp_path / 'none'}", "is no folder"),
        ("arc_easy", "give --lm-eval arc_easy=FOLDER"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            harness_questions([name])
        assert "\n" not in str(caught.value)
