"""Files of questions: rows, kinds, and the complaints about other rows."""

from __future__ import annotations

import pytest

from alignment.errors import ConfigError
from server.commands.evaluate.questions import Question, read_all, read_questions
from server.commands.evaluate.scoring import is_right
from tests.support.questions import write
from tests.support.reference import shared


def test_rows_of_a_task_file(tmp_path):
    rows = [
        {"id": "1", "task": "t", "prompt": "line\u2028break", "reference": "a"},
        {"id": "2", "task": "t", "prompt": "p", "references": ["a", "b"], "solution": "ignored"},
        {"id": "3", "task": "u", "prompt": "p", "reference": "B", "choices": {"A": "x", "B": "y"}},
    ]
    assert read_questions(write(tmp_path / "t.jsonl", *rows)) == [
        Question("1", "t", "line\u2028break", ("a",)),
        Question("2", "t", "p", ("a", "b")),
        Question("3", "u", "p", ("B",), ("A", "B"), texts=("x", "y")),
    ]


def test_the_limit_counts_by_task(tmp_path):
    rows = [{"id": f"{task}{n}", "task": task, "prompt": "p", "reference": "a"} for task in "tu" for n in range(5)]
    path = write(tmp_path / "t.jsonl", *rows)
    assert [q.id for q in read_all([path], 2)] == ["t0", "t1", "u0", "u1"]
    assert len(read_all([path, path])) == 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "should be an object"),
        ('{"id": "1", "task": "\\ud800", "prompt": "p", "reference": "x"}', "half of a surrogate pair"),
        ('{"id": "1", "task": "t", "prompt": "p", "reference": "x", "metric": "best"}', "'metric' should be"),
        ('{"id": "1", "task": "t", "reference": "x"}', "'id', 'task' and 'prompt'"),
        ('{"id": 1, "task": "t", "prompt": "p", "reference": "x"}', "'id', 'task' and 'prompt'"),
        ('{"id": "1", "task": "t", "prompt": "p"}', "needs a text as 'reference'"),
        ('{"id": "1", "task": "t", "prompt": "p", "reference": 7}', "needs a text as 'reference'"),
        ('{"id": "1", "task": "t", "prompt": "p", "references": []}', "needs a text as 'reference'"),
        ('{"id": "1", "task": "t", "prompt": "p", "reference": "A", "choices": ["x"]}', "'choices' should be"),
    ],
)
def test_a_row_that_is_no_question_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "1", "task": "t", "prompt": "p", "reference": "x"}\n\n' + line)
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize("name", ["gsm8k_test", "arc_challenge", "piqa", "e2e_dev", "multi30k_en_de_val"])
def test_real_task_files_are_of_the_kind_their_name_says(name):
    questions = read_questions(shared("tasks", f"{name}.jsonl"))
    way = {"gsm8k_test": "last_number", "arc_challenge": "choice", "piqa": "choice"}.get(name, "exact")
    assert {q.matching for q in questions} == {way}
    assert all(is_right(q, q.references[-1]) for q in questions)


def test_a_line_names_its_way_of_matching_and_the_file_is_given_one_for_the_rest(tmp_path):
    own = {"id": "1", "task": "t", "prompt": "p", "reference": "a1", "match": "contains"}
    rest = {"id": "2", "task": "t", "prompt": "p", "reference": "b1"}
    path = write(tmp_path / "t.jsonl", own, rest)
    assert [q.matching for q in read_questions(path)] == ["contains", "exact"]
    assert [q.matching for q in read_questions(path, "normalized")] == ["contains", "normalized"]


def test_a_metric_for_the_file_is_for_rows_that_name_none(tmp_path):
    row = {"task": "t", "prompt": "?", "reference": "A"}
    rows = [
        row | {"id": "1", "metric": "bleu"},
        row | {"id": "2"},
        row | {"id": "3", "choices": {"A": "a", "B": "b"}},
    ]
    path = write(tmp_path / "t.jsonl", *rows)
    assert [q.metric for q in read_questions(path, metric="f1")] == ["bleu", "f1", "match"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"match": "fuzzy"}, "'match' should be one of exact, normalized"),
        ({"match": ["exact"]}, "'match' should be one of exact, normalized"),
        ({"match": "last_number"}, "takes references that are numbers"),
        ({"match": "choice"}, "takes 'choices'"),
        ({"match": "contains", "reference": "..."}, "with letters or digits"),
    ],
)
def test_a_way_that_no_answer_could_match_is_refused(tmp_path, fields, message):
    path = write(tmp_path / "t.jsonl", {"id": "1", "task": "t", "prompt": "p", "reference": "x", **fields})
    with pytest.raises(ConfigError, match=message):
        read_questions(path)
