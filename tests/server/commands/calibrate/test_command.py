"""`tutti calibrate` from questions to the report, on models that know nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fusion.calibrate.candidates import Candidate
from fusion.learned.weights import LearnedWeights
from server.settings import parse_settings
from tests.support.model_folders import run


def questions(folder: Path, count: int) -> Path:
    path = folder / "questions.jsonl"
    rows = [
        {"id": str(i), "task": "abc"[i % 2], "prompt": f"the band {i}", "reference": "a", "metric": "chrf"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_report_says_whether_it_pays_and_goes_on_where_it_stopped(site: Path, tmp_path: Path):
    tasks, out = questions(tmp_path, 8), tmp_path / "out"
    arguments = ("calibrate", site / "tutti.yaml", "--tasks", tasks, "--out", out, "--max-tokens", "3")
    code, said, _ = run(*arguments)
    assert code == 0, said
    assert "Fusing" in said
    found = json.loads((out / "report.json").read_text())
    assert [one["name"] for one in found["untouched"]][:3] == ["ada alone", "ben alone", "vote of the members"]
    assert found["search"][0]["questions"] == 4
    assert "<table>" in (out / "report.html").read_text()
    models = (site / "tutti.yaml").read_text().split("ensembles:")[0]
    pasted = models + (out / "ensemble.yaml").read_text()
    assert parse_settings(pasted, "pasted.yaml", site, {}).ensembles
    answers = (out / "answers.jsonl").read_text()
    assert run(*arguments)[0] == 0
    assert (out / "answers.jsonl").read_text() == answers, "nothing is asked twice"
    code, said, err = run(*arguments, "--metric", "f1")
    assert code == 0, err
    asked = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[1:]]
    pairs = [(one["candidate"], one["question"]) for one in asked]
    assert len(set(pairs)) == len(pairs), "what is only compared in another way is not asked again"
    code, _, err = run(*arguments[:-1], "4")
    assert code == 2
    assert "holds answers of other models or by other options" in " ".join(err.split())


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, (), "One question cannot be divided"),
        (2, (), "No task has two questions"),
        (8, ("--ensemble", "none"), "There is no ensemble 'none'"),
        (8, ("--alignment", "best"), "There is no alignment method 'best'"),
        (8, ("--metric", "best"), "--metric is one of match, chrf, bleu, f1."),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(site: Path, tmp_path: Path, count, options, message):
    tasks = questions(tmp_path, count)
    code, _, err = run("calibrate", site / "tutti.yaml", "--tasks", tasks, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_answers_of_another_configuration_are_not_taken(site: Path, tmp_path: Path):
    tasks, out = questions(tmp_path, 8), tmp_path / "out"
    arguments = ("--tasks", tasks, "--out", out, "--max-tokens", "3")
    assert run("calibrate", site / "tutti.yaml", *arguments)[0] == 0
    text = (site / "tutti.yaml").read_text()
    for old, new in [
        ("weights: {ada: 3, ben: 1}", "weights: {ada: 1, ben: 1}"),
        ("dtype: float32", "dtype: bfloat16"),
    ]:
        assert old in text
        (site / "other.yaml").write_text(text.replace(old, new, 1))
        code, _, err = run("calibrate", site / "other.yaml", *arguments)
        assert code == 2
        assert "of other models or by other options" in " ".join(err.split())


def test_questions_without_an_answer_are_said_and_asked_again(site: Path, tmp_path: Path):
    """A gate that draws refuses greedy decoding, so the ensemble as configured answers nothing."""
    text = (site / "tutti.yaml").read_text()
    (site / "drawn.yaml").write_text(text.replace("filter_top: 5", "renormalize: true, gate: draw"))
    out = tmp_path / "out"
    arguments = ("--tasks", questions(tmp_path, 24), "--out", out, "--max-tokens", "3")
    code, said, err = run("calibrate", site / "drawn.yaml", *arguments)
    assert code == 0, err
    said = " ".join(said.split())
    assert "questions got no answer from ada+ben, pivot ada," in said
    assert "temperature" in said
    kept = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert {row["candidate"] for row in kept[1:]} >= {"ada alone", "ben alone"}
    assert all(row["error"] is None for row in kept[1:])


@pytest.mark.parametrize("what", ["--learn-weights", "guidance"])
def test_choices_by_likelihood_do_not_go_with_what_changes_the_prompt(site: Path, tmp_path: Path, what: str):
    models = (site / "tutti.yaml").read_text().split("ensembles:")[0]
    (site / "sums.yaml").write_text(models + SUMS)
    tasks = tmp_path / "choices.jsonl"
    row = {"task": "t", "prompt": "p", "reference": "A", "choices": {"A": "x", "B": "y"}}
    tasks.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(8)))
    asked = ("views", "--learn-weights") if what == "--learn-weights" else ("guided",)
    arguments = ("calibrate", site / "sums.yaml", "--tasks", tasks, "--out", tmp_path / "out", "--likelihood")
    code, _, err = run(*arguments, "--ensemble", *asked)
    assert code == 2
    assert f"{what} changes what follows a prompt" in " ".join(err.split())


SUMS = """
ensembles:
  views:
    members: [ada, polite: {model: ada, system: Be polite.}]
    pivot: ada
  guided: {members: [ada], pivot: ada, guidance: {scale: 1.5, negative: Be rude.}}
  contrasted: {members: [ada, ben], pivot: ada, contrast: {amateur: ben}}
"""


@pytest.mark.parametrize(
    ("ensemble", "alone", "tried"),
    [
        ("views", {"ada alone", "polite alone"}, "ada+polite, pivot ada, spelled, product, packllm-sim"),
        ("guided", {"ada alone"}, "ada, pivot ada, spelled, mixture, as configured, strength 2"),
        (
            "contrasted",
            {"ada alone", "ben alone"},
            "ada+ben, pivot ada, spelled, mixture, as configured, strength 1",
        ),
    ],
)
def test_views_and_sums_are_compared_with_what_they_are_made_of(
    site: Path, tmp_path: Path, ensemble: str, alone: set[str], tried: str
):
    models = (site / "tutti.yaml").read_text().split("ensembles:")[0]
    (site / "sums.yaml").write_text(models + SUMS)
    tasks, out = questions(tmp_path, 8), tmp_path / "out"
    arguments = ("calibrate", site / "sums.yaml", "--tasks", tasks, "--out", out, "--max-tokens", "3")
    code, said, err = run(*arguments, "--ensemble", ensemble)
    assert code == 0, said + err
    found = json.loads((out / "report.json").read_text())
    assert {one["name"] for one in found["untouched"] if one["name"].endswith("alone")} == alone
    assert tried in [Candidate(**one["candidate"]).name for one in found["search"]]
    assert "Fusing" in said
    (chosen,) = (one for one in found["untouched"] if not one["name"].endswith(("alone", "members")))
    if "packllm" not in chosen["name"]:  # which gives a member that it does not need no weight
        assert chosen["passes"] == 2 * chosen["tokens"], "two views or models, or one with a second prompt"
    pasted = models + (out / "ensemble.yaml").read_text()
    assert parse_settings(pasted, "pasted.yaml", site, {}).ensembles[ensemble].members


def test_weights_are_not_learned_for_sums(site: Path, tmp_path: Path):
    models = (site / "tutti.yaml").read_text().split("ensembles:")[0]
    (site / "sums.yaml").write_text(models + SUMS)
    arguments = ("calibrate", site / "sums.yaml", "--tasks", questions(tmp_path, 8), "--out", tmp_path / "out")
    code, _, err = run(*arguments, "--ensemble", "contrasted", "--learn-weights")
    assert code == 2
    assert "contrasted adds up log-probabilities" in " ".join(err.split())


def learn(site: Path, folder: Path, count: int, *options: str) -> tuple[str, dict]:
    tasks, out = questions(folder, count), folder / "out"
    arguments = ("calibrate", site / "tutti.yaml", "--tasks", tasks, "--out", out, "--max-tokens", "3")
    code, said, err = run(*arguments, "--learn-weights", *options)
    assert code == 0, said + err
    return " ".join(said.split()), json.loads((out / "report.json").read_text())


def test_learned_weights_are_written_compared_and_served(site: Path, tmp_path: Path):
    said, found = learn(site, tmp_path, 32)
    out = tmp_path / "out"
    assert found["learned"]["kind"] == "one member", "of these two, whose weights are seeded, one guesses better"
    assert "Learned weights:" in said
    assert sum(found["learned"]["weights"]["a"].values()) == pytest.approx(1)
    names = [one["name"] for one in found["untouched"]]
    assert {"oracle that knows the task"} < set(names)
    assert any("learned, prune" in name for name in names)
    assert any("centred packllm-sim" in name for name in names)
    assert all(set(one["tasks"]) == {"a", "b"} for one in found["untouched"])
    text = (site / "tutti.yaml").read_text()
    learned = f"weights: learned, weighting: {{file: {out / 'learned.safetensors'}}}"
    served = site / "learned.yaml"
    served.write_text(text.replace("weights: {ada: 3, ben: 1}", learned))
    code, said, _ = run("check", served)
    assert code == 0
    assert "expect ada (checkpoint" in " ".join(said.split())
    served.write_text(text.replace("[ada, ben]", "[ben, ada]").replace("weights: {ada: 3, ben: 1}", learned))
    code, said, err = run("check", served)
    assert code != 0
    assert "was fitted to another ensemble" in " ".join((said + err).split())


def test_from_few_questions_weights_stay_equal_and_the_report_says_so(site: Path, tmp_path: Path):
    said, found = learn(site, tmp_path, 3)
    assert found["learned"]["kind"] == "equal"
    assert "too few to learn weights from" in said


def test_weights_that_differ_by_rounding_are_kept_so_that_no_answer_is_asked_for_again(site: Path, tmp_path: Path):
    learn(site, tmp_path, 32)
    file, answers = tmp_path / "out" / "learned.safetensors", tmp_path / "out" / "answers.jsonl"
    found = LearnedWeights.load(file)
    replace(found, bias=found.bias + 1e-6).save(file)
    written = file.read_bytes()
    learn(site, tmp_path, 32)
    asked = answers.read_text()
    learn(site, tmp_path, 32)
    assert (file.read_bytes(), answers.read_text()) == (written, asked)
    replace(found, about=replace(found.about, questions=1)).save(file)
    learn(site, tmp_path, 32)
    assert LearnedWeights.load(file).about.questions == found.about.questions
