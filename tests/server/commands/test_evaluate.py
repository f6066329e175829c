"""What counts as right, how sure a score is, and what is asked of a server."""

from __future__ import annotations

import asyncio
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from alignment.errors import ConfigError
from server.commands.evaluate import report
from server.commands.evaluate.asking import Answer, Asking, EvaluationError
from server.commands.evaluate.questions import Question, read_questions
from server.commands.evaluate.run import client_of, evaluate, read_all
from server.commands.evaluate.scoring import bootstrap, chosen_letter, chrf, is_right, last_number
from tests.support.reference import shared


def question(*references: str, choices: tuple[str, ...] = ()) -> Question:
    return Question("q", "task", "prompt", references, choices)


# Scoring


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("Anna has 12 + 7 = 19 apples. The answer is 19.", 19),
        ("That is $1,234.50", Decimal("1234.5")),
        ("-5", -5),
        ("It is −5 degrees.", -5),
        ("x = -2", -2),
        ("10-3", 3),
        ("10 - 3", 3),
        ("on pages 3-4", 4),
        ("1,2,3", 3),
        ("0.0", 0),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_an_answer(answer, number):
    assert last_number(answer) == number


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12), st.text()
)
def test_a_number_is_found_behind_any_text_however_it_is_written(number, before):
    for spelling in (f"{number:f}", f"{number:,f}"):
        assert last_number(f"{before}\n= {spelling}.") == number


@given(st.integers(), st.integers())
def test_a_number_is_right_exactly_if_it_is_the_same_number(said, wanted):
    assert is_right(question(str(wanted)), f"So the answer is {said}.") == (said == wanted)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B. water", "B"),
        (" (B) water", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("A good guess is B", "B"),
        ("Not A, so B", "B"),
        ("E", None),
        ("water", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_chooses(answer, letter):
    assert chosen_letter(answer, "ABCD") == letter


def test_a_question_asks_for_a_letter_a_number_or_a_text():
    assert question("A", choices=("A", "B")).kind == "letter"
    assert question("1,200").kind == "number"
    assert question("7", "seven").kind == "text"


@given(st.text())
def test_white_space_does_not_make_a_text_wrong(text):
    reference = f"The {text} cat."
    assert is_right(question("another", reference), "\n The\t" + reference.removeprefix("The ") + "  ")
    assert not is_right(question(reference), reference + "!")


def test_chrf_compares_with_the_closest_reference():
    both = question("La kato dormas.", "The cat sleeps.")
    assert chrf(both, "The cat sleeps.") == 100
    assert 0 < chrf(both, "The cat slept.") < 100
    assert chrf(both, "") == 0
    assert chrf(question("7"), "7") is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_holds_the_mean_and_is_the_same_every_time(values):
    estimate = bootstrap(values)
    assert estimate == bootstrap(values)
    assert min(values) - 1e-9 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= max(values) + 1e-9


def test_an_interval_is_as_wide_as_theory_says():
    """400 coin flips: the standard error is 0.5 / 20, the interval 1.96 of these to either side."""
    estimate = bootstrap([0.0, 1.0] * 200)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)


# Task files


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_a_task_file(tmp_path):
    rows = [
        {"id": "1", "task": "t", "prompt": "line\u2028break", "reference": "a"},
        {"id": "2", "task": "t", "prompt": "p", "references": ["a", "b"], "solution": "ignored"},
        {"id": "3", "task": "u", "prompt": "p", "reference": "B", "choices": {"A": "x", "B": "y"}},
    ]
    assert read_questions(write(tmp_path / "t.jsonl", *rows)) == [
        Question("1", "t", "line\u2028break", ("a",)),
        Question("2", "t", "p", ("a", "b")),
        Question("3", "u", "p", ("B",), ("A", "B")),
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
    kind = {"gsm8k_test": "number", "arc_challenge": "letter", "piqa": "letter"}.get(name, "text")
    assert {q.kind for q in questions} == {kind}
    assert all(is_right(q, q.references[-1]) for q in questions)


# Asking


class Oracle:
    """A server whose model `good` knows every answer, while `bad` says nothing of use, `sick` fails.

    It knows a question by its prompt, as a chat or as the first line of a text.
    """

    def __init__(self, questions: list[Question]) -> None:
        self.known = {question.prompt: question.references[0] for question in questions}
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.refusals = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "good"}, {"id": "bad"}, {"id": "sick"}]})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self.refusals:
            self.refusals -= 1
            return httpx2.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "full"}})
        body = json.loads(request.content)
        self.bodies.append(body)
        if body["model"] == "sick":
            return httpx2.Response(503, json={"error": {"message": "a member is down"}})
        chat = request.url.path == "/v1/chat/completions"
        asked = body["messages"][0]["content"] if chat else body["prompt"].splitlines()[0]
        content = self.known[asked] if body["model"] == "good" else "hm"
        said = {"message": {"content": content}} if chat else {"text": content}
        return httpx2.Response(200, json={"choices": [said | {"finish_reason": "stop"}]})


QUESTIONS = [Question(f"n{n}", "numbers", f"{n} and {n}?", (str(2 * n),)) for n in range(6)] + [
    Question(f"t{n}", "texts", f"Say {n} in words.", (f"word {n} it is",)) for n in range(6)
]


CHAT = Asking()


def ask(oracle: Any, asking: Asking = CHAT, retries: int = 0, **options: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(oracle))
        async with client_of("http://tutti", http=http).with_options(max_retries=retries) as client:
            return await evaluate(client, QUESTIONS, Console(file=io.StringIO()), asking=asking, **options)

    return asyncio.run(run())


def test_every_served_name_is_asked_everything_greedily():
    oracle = Oracle(QUESTIONS)
    answers = ask(oracle, Asking(max_tokens=9), concurrency=4)
    assert [(a.model, a.question) for a in answers] == [(m, q) for m in ("good", "bad", "sick") for q in QUESTIONS]
    assert all(body["temperature"] == 0 and body["max_tokens"] == 9 for body in oracle.bodies)
    assert all("messages" in body and "stop" not in body for body in oracle.bodies)
    assert 1 < oracle.most_at_once <= 4
    good, bad, sick = report.summarise(answers)
    assert good.total.exact.mean == 1
    assert good.total.chrf is not None
    assert good.total.chrf.mean == 100
    assert bad.total.exact.mean == 0
    assert (good.failed, bad.failed, sick.failed) == (0, 0, 12)
    assert "a member is down" in str(answers[-1].error)
    assert report.first_failures(answers) == {"sick": answers[-len(QUESTIONS)].error}


def test_plain_text_is_asked_for_a_completion():
    oracle = Oracle(QUESTIONS)
    answers = ask(oracle, Asking("{prompt}\n{Answer}:", stop=("\n", "Q:")), models=["good"])
    assert all(answer.right for answer in answers)
    assert {body["prompt"] for body in oracle.bodies} == {f"{q.prompt}\n{{Answer}}:" for q in QUESTIONS}
    assert all(body["stop"] == ["\n", "Q:"] and "messages" not in body for body in oracle.bodies)


def test_a_model_without_a_chat_template_is_told_from_one_that_fails():
    error = {"message": "The model m has no chat template.", "code": "no_chat_template"}
    oracle = Oracle(QUESTIONS)

    async def base(request: httpx2.Request) -> httpx2.Response:
        if b"bad" in request.content and request.url.path == "/v1/chat/completions":
            return httpx2.Response(400, json={"error": error})
        return await oracle(request)

    with pytest.raises(EvaluationError, match=r"'bad' cannot be asked in a chat.*give --completions"):
        ask(base)
    assert len(ask(base, Asking("{prompt}"), models=["bad"])) == len(QUESTIONS)


def test_an_overloaded_server_is_asked_again():
    oracle = Oracle(QUESTIONS)
    oracle.refusals = 5
    assert all(answer.right for answer in ask(oracle, models=["good"], concurrency=2, retries=5))


def test_only_the_chosen_models_are_asked():
    assert {answer.model for answer in ask(Oracle(QUESTIONS), models=["bad", "bad"])} == {"bad"}
    with pytest.raises(EvaluationError, match="'ugly' is not served; choose from good, bad, sick"):
        ask(Oracle(QUESTIONS), models=["ugly"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx2.Response(401), "401 Unauthorized"),
        (httpx2.Response(200, text="<html>"), "does not answer like an OpenAI-compatible server"),
        (httpx2.Response(200, json=[]), "does not answer like an OpenAI-compatible server"),
    ],
)
def test_a_server_that_cannot_be_evaluated(answer, message):
    with pytest.raises(EvaluationError, match=message):
        ask(lambda request: answer)


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "x"}]}, []])
def test_an_answer_of_the_wrong_shape_is_a_failure_of_that_question_only(body):
    oracle = Oracle(QUESTIONS)

    async def odd(request: httpx2.Request) -> httpx2.Response:
        if b"0 and 0" in request.content:
            return httpx2.Response(200, json=body)
        return await oracle(request)

    assert [a.question.id for a in ask(odd, models=["good"]) if a.error] == ["n0"]


# Reporting


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
